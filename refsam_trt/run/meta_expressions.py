"""The `meta_expressions.json` of Ref-DAVIS17, Ref-YouTube-VOS and MeViS, read strictly."""

from __future__ import annotations

from pathlib import Path

import msgspec

from refsam_trt.errors import DatasetError
from refsam_trt.limits import MAX_EXPRESSION_FILE_BYTES, MAX_NAME_BYTES

NUM_ANNOTATORS = 4
"""Of Ref-DAVIS17: each has an expression for every object."""


class Expression(msgspec.Struct, frozen=True):
    """One sentence and the ids of what it names: one, several (MeViS), or none that is told."""

    text: str = msgspec.field(name="exp")
    obj_id: int | str | list[int | str] | None = None

    @property
    def object_ids(self) -> tuple[str, ...]:
        """The ids as texts."""
        if self.obj_id is None:
            return ()
        ids = self.obj_id if isinstance(self.obj_id, list) else [self.obj_id]
        return tuple(str(number) for number in ids)


class VideoExpressions(msgspec.Struct, frozen=True):
    """The expressions of one video by their ids, and its frame names, both in file order."""

    frames: tuple[str, ...]
    expressions: dict[str, Expression]


class _File(msgspec.Struct):
    videos: dict[str, VideoExpressions]


def expression_file(root: Path, split: str) -> Path:
    """Return where a data set has the expressions of a split."""
    return root / "meta_expressions" / split / "meta_expressions.json"


def load_meta_expressions(path: Path) -> dict[str, VideoExpressions]:
    """Return the videos of an expression file by name, in file order.

    Raises:
        DatasetError: the file is missing, far too large, no JSON of this form, names no video, or a
            video in it has no frame or no expression, or a name that leads out of its folder.
    """
    videos = _read(path).videos
    if not videos:
        raise DatasetError(f"{path}: names no video; expected at least one entry under 'videos'")
    for name, video in videos.items():
        _check_video(name, video, f"{path}: video {name[:80]}")
    return videos


def keys_by_object(video: VideoExpressions, where: str) -> list[str]:
    """Return the ids 0, 1, ... of Ref-DAVIS17's expressions: object by object, four each.

    Raises:
        DatasetError: the expressions are others, or stand in another order; `where` names them.
    """
    keys = [str(index) for index in range(len(video.expressions))]
    if len(keys) % NUM_ANNOTATORS or set(keys) != video.expressions.keys():
        raise DatasetError(
            f"{where}: found the expressions {', '.join(video.expressions)}, expected 0, 1, ... "
            f"with {NUM_ANNOTATORS} per object; is this Ref-DAVIS17?"
        )
    for index, key in enumerate(keys):
        object_id, ids = str(index // NUM_ANNOTATORS + 1), video.expressions[key].object_ids
        if ids not in ((), (object_id,)):
            raise DatasetError(
                f"{where}: expression {key} is of object {', '.join(ids)}, expected {object_id}: "
                f"expressions stand object by object, {NUM_ANNOTATORS} each"
            )
    return keys


def _read(path: Path) -> _File:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_EXPRESSION_FILE_BYTES:
            raise DatasetError(
                f"{path}: found {size_bytes} bytes, expected at most {MAX_EXPRESSION_FILE_BYTES}; "
                "it is no expression file"
            )
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read ({error.strerror}); give the root of a data set, which holds "
            "meta_expressions/valid/meta_expressions.json and valid/JPEGImages"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(
            f"{path}: not an expression file ({error}); download it again"
        ) from error


def _check_video(name: str, video: VideoExpressions, where: str) -> None:
    if bad := [n for n in (name, *video.frames, *video.expressions) if not _is_name(n)]:
        raise DatasetError(f"{where}: {bad[0][:80]!r} cannot be the name of a file; correct it")
    if not video.frames or len(set(video.frames)) < len(video.frames) or not video.expressions:
        raise DatasetError(
            f"{where}: found {len(video.frames)} frames and {len(video.expressions)} expressions, "
            "expected at least one of each, and every frame once"
        )
    for key, expression in video.expressions.items():
        if not expression.text.strip():
            raise DatasetError(
                f"{where}, expression {key}: expected 'exp', a sentence, found {expression.text!r}"
            )


def _is_name(name: str) -> bool:
    """Tell whether a name from the file stays in the folder that it is joined to."""
    is_short = len(name.encode()) <= MAX_NAME_BYTES
    return is_short and name not in ("", ".", "..") and not set(name) & set("/\\\0")
