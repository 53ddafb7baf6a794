"""What to calibrate, search and verify with: a TOML file read into frozen structures.

Unknown keys are refused. Calibration needs frames and expressions, and no annotation; search and
verification need annotated videos, other ones each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import msgspec

from refsam_bench.datasets.synthetic import RANKED_SLICES
from refsam_bench.synthetic import EVALUATE_SEED, SLICES, TUNE_SEED, Slice, split_of
from refsam_trt.errors import UsageError

SCHEMA = 1


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class _Source(_Table, frozen=True, kw_only=True, tag_field="kind"):
    """Videos to calibrate with.

    frames_per_video: so many frames of each, evenly spread over its time; all, where it has fewer.
    """

    frames_per_video: int = 4


class SyntheticClips(_Source, frozen=True, kw_only=True, tag="synthetic"):
    """Synthetic videos, slices in rotation. seed: below those that tune and evaluate."""

    slices: tuple[Slice, ...] = RANKED_SLICES
    seed: int = 0
    num_videos: int = 16


class FolderClips(_Source, frozen=True, kw_only=True):
    """A data set: `<root>/<split>/JPEGImages`, `<root>/meta_expressions/<split>/...`.

    num_videos: so many, drawn at random; 0 means all. expressions_per_video: of each, drawn too.
    """

    root: str
    split: str = "train"
    num_videos: int = 0
    expressions_per_video: int = 1


class RefDavisClips(FolderClips, frozen=True, kw_only=True, tag="ref-davis"):
    """Ref-DAVIS17."""


class RefYoutubeVosClips(FolderClips, frozen=True, kw_only=True, tag="ref-youtube-vos"):
    """Ref-YouTube-VOS."""


class OwnVideo(_Source, frozen=True, kw_only=True, tag="video"):
    """A video file or a folder of images, with what to look for in it."""

    path: str
    expressions: tuple[str, ...]


Source: TypeAlias = SyntheticClips | RefDavisClips | RefYoutubeVosClips | OwnVideo


class SyntheticSet(_Table, frozen=True, kw_only=True, tag_field="kind", tag="synthetic"):
    """Synthetic videos with annotation: indices 0 to `num_videos - 1`, slices in rotation."""

    seed: int
    num_videos: int
    slices: tuple[Slice, ...] = RANKED_SLICES


class RefDavisSet(_Table, frozen=True, kw_only=True, tag_field="kind", tag="ref-davis"):
    """Ref-DAVIS17's validation videos."""

    root: str


class RefYoutubeVosSet(_Table, frozen=True, kw_only=True, tag_field="kind", tag="ref-youtube-vos"):
    """A part of Ref-YouTube-VOS, or any folder in its layout, that has annotations."""

    root: str
    split: str = "train"


AnnotatedSet: TypeAlias = SyntheticSet | RefDavisSet | RefYoutubeVosSet


class Clips(_Table, frozen=True, kw_only=True):
    """The whole file.

    seed: of what is drawn: videos of folders, expressions, where in time frames are taken.
    calibrate: where ranges are measured. rank: where every block's layers are judged alone. search:
    where sets of them are judged. verify: what the result is measured on, once.
    """

    schema: int
    calibrate: tuple[Source, ...] = ()
    rank: AnnotatedSet = SyntheticSet(seed=TUNE_SEED, num_videos=6)
    search: AnnotatedSet = SyntheticSet(seed=TUNE_SEED, num_videos=24)
    verify: AnnotatedSet = SyntheticSet(seed=EVALUATE_SEED, num_videos=200)
    seed: int = 0


def read_clips(path: Path) -> Clips:
    """Read a file of clips; folders and files in it are relative to where it lies.

    Raises:
        UsageError: no such file, not TOML, a key unknown, missing or of a wrong type, no clips, or
            data that calibration, search and verification would share.
    """
    try:
        clips = msgspec.toml.decode(path.read_bytes(), type=Clips)
    except OSError as error:
        raise UsageError(
            f"{path}: no readable file of clips ({error.strerror}); give a TOML file such as "
            "calibration/clips.toml"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    if problems := [*_problems(clips), *_shared(clips, path.parent)]:
        raise UsageError(f"{path}: {'; '.join(problems)}")
    return clips


def _problems(clips: Clips) -> list[str]:
    problems = []
    if clips.schema != SCHEMA:
        problems.append(f"schema {clips.schema}: this version reads {SCHEMA}")
    if clips.seed < 0:
        problems.append(f"seed {clips.seed}: expected 0 or more")
    if not clips.calibrate:
        problems.append("no clips: give at least one [[calibrate]] table")
    for number, source in enumerate(clips.calibrate):
        problems += _source_problems(f"calibrate {number}", source)
    expected = f"{TUNE_SEED} to below {EVALUATE_SEED}"
    for where, annotated in (("rank", clips.rank), ("search", clips.search)):
        if isinstance(annotated, SyntheticSet):
            problems += _synthetic_problems(where, annotated, "tune", expected)
    if isinstance(clips.verify, SyntheticSet):
        problems += _synthetic_problems(
            "verify", clips.verify, "evaluate", f"{EVALUATE_SEED} or more"
        )
    return problems


def _source_problems(where: str, source: Source) -> list[str]:
    if isinstance(source, SyntheticClips):
        problems = _synthetic_problems(where, source, "train", f"below {TUNE_SEED}")
    elif isinstance(source, OwnVideo):
        problems = [] if source.expressions else [f"{where}: expressions: give at least one"]
    else:
        problems = _too_small(where, source, expressions_per_video=1, num_videos=0)
    return [*problems, *_too_small(where, source, frames_per_video=1)]


def _too_small(where: str, table: _Table, **least: int) -> list[str]:
    return [
        f"{where}: {name} {getattr(table, name)}: expected {smallest} or more"
        for name, smallest in least.items()
        if getattr(table, name) < smallest
    ]


def _synthetic_problems(
    where: str, source: SyntheticClips | SyntheticSet, split: str, expected: str
) -> list[str]:
    problems = []
    if source.seed < 0 or split_of(source.seed) != split:
        problems.append(f"{where}: seed {source.seed}: expected {expected}")
    problems += _too_small(where, source, num_videos=1)
    if not source.slices:
        problems.append(f"{where}: slices: name at least one of {', '.join(SLICES)}")
    return problems


def _shared(clips: Clips, base: Path) -> list[str]:
    """Tell which videos serve two purposes: what was chosen on them would be judged on them.

    Folders are compared as they lie on the disk, whatever they are called in the file.
    """
    seen: dict[Path, str] = {}
    problems = []
    named = [(f"calibrate {n}", source) for n, source in enumerate(clips.calibrate)]
    annotated = [("rank", clips.rank), ("search", clips.search), ("verify", clips.verify)]
    for where, source in [*named, *annotated]:
        place = _folder_of(source, base)
        if place is None:
            continue
        shown, videos = place
        purpose = where.partition(" ")[0]
        for folder, other in seen.items():
            if {other, purpose} not in ({purpose}, {"rank", "search"}) and _overlap(folder, videos):
                problems.append(f"{where}: {shown}: {other} uses {folder} too; name other videos")
        seen.setdefault(videos, purpose)
    return problems


def _folder_of(source: Source | AnnotatedSet, base: Path) -> tuple[str, Path] | None:
    """Return what a source is called and where it lies, links followed; None if it is made."""
    if isinstance(source, SyntheticClips | SyntheticSet):
        return None
    if isinstance(source, OwnVideo):
        return source.path, (base / source.path).resolve()
    split = "valid" if isinstance(source, RefDavisSet) else source.split
    return source.root, (base / source.root / split / "JPEGImages").resolve()


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
