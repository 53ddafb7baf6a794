"""The `meta_expressions.json` of Ref-DAVIS17, Ref-YouTube-VOS and MeViS, read strictly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refsam_trt.errors import DatasetError


@dataclass(frozen=True)
class Expression:
    """One sentence and the ids of what it names: one, several (MeViS), or none that is told."""

    text: str
    object_ids: tuple[str, ...]


@dataclass(frozen=True)
class VideoExpressions:
    """The expressions of one video by their ids, and its frame names, both in file order."""

    frames: tuple[str, ...]
    expressions: dict[str, Expression]


def load_meta_expressions(path: Path) -> dict[str, VideoExpressions]:
    """Return the videos of an expression file by name, in file order.

    Raises:
        DatasetError: the file is missing, no JSON, names no video, or a video in it has no frame,
            no expression, or an entry of another form.
    """
    videos = _object(_json(path), "videos", f"{path}")
    if not videos:
        raise DatasetError(f"{path}: names no video; expected at least one entry under 'videos'")
    return {name: _video(entry, f"{path}: video {name}") for name, entry in videos.items()}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); expected the expression file of a data set"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"{path}: is no JSON in UTF-8 ({error}); download the expression file again"
        ) from error


def _video(entry: Any, where: str) -> VideoExpressions:
    frames = entry.get("frames") if isinstance(entry, dict) else None
    if not isinstance(frames, list) or not frames or not all(_is_name(name) for name in frames):
        raise DatasetError(f"{where}: expected 'frames', a list of at least one file name")
    if len(set(frames)) != len(frames):
        raise DatasetError(f"{where}: a frame is listed twice; list every frame once")
    expressions = _object(entry, "expressions", where)
    if not expressions:
        raise DatasetError(f"{where}: has no expression; expected at least one")
    parsed = {key: _expression(e, f"{where}, expression {key}") for key, e in expressions.items()}
    return VideoExpressions(tuple(frames), parsed)


def _expression(entry: Any, where: str) -> Expression:
    text = entry.get("exp") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DatasetError(f"{where}: expected 'exp', a sentence, found {text!r}")
    ids = entry.get("obj_id", [])
    return Expression(text, tuple(str(key) for key in (ids if isinstance(ids, list) else [ids])))


def _object(entry: Any, key: str, where: str) -> dict[str, Any]:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected an object '{key}', found {type(value).__name__}")
    bad = [name for name in value if not _is_name(name)]
    if bad:
        raise DatasetError(f"{where}: {bad[0]!r} under '{key}' cannot be a folder name")
    return value


def _is_name(name: Any) -> bool:
    """Tell whether a name from the file stays inside the folder that it is joined to."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
