"""Zip files for the evaluation servers of Ref-YouTube-VOS and MeViS.

Both want one 8-bit grey PNG of 0 and 255 per video, expression and frame, in the original size:
`<video>/<expression id>/<frame>.png`, below `Annotations/` for Ref-YouTube-VOS, without a parent
folder for MeViS.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from refsam_bench.accuracy.mask_png import read_grey_mask
from refsam_bench.accuracy.protocols import Progress
from refsam_trt.errors import DatasetError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.target import make_folder
from refsam_trt.run.meta_expressions import VideoExpressions, load_meta_expressions


def write_ref_youtube_vos_zip(
    results: Path,
    meta_expressions: Path,
    output: Path,
    *,
    test_meta_expressions: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Zip the masks of Ref-YouTube-VOS validation, atomically.

    Args:
        results: `<video>/<expression id>/<frame>.png`; anything else in it stays out.
        meta_expressions: the expression file of `valid`, which says what must be there.
        output: the zip file.
        test_meta_expressions: the expression file of `test`, whose videos are also listed in that
            of `valid` and are left out; None means that every video of `valid` is submitted.
        progress: called with (masks done, masks in all); None means not to tell.

    Raises:
        DatasetError: a mask is missing, is no grey PNG of 0 and 255, or has another size than the
            other masks of its video; or an expression file cannot be used.
        OutputError: the zip file cannot be written.
    """
    videos = load_meta_expressions(meta_expressions)
    if test_meta_expressions is not None:
        held_out = load_meta_expressions(test_meta_expressions)
        videos = {name: entry for name, entry in videos.items() if name not in held_out}
        if not videos:
            raise DatasetError(
                f"{test_meta_expressions}: names every video of {meta_expressions}; nothing is "
                "left to submit"
            )
    _write_zip(results, videos, output, "Annotations/", progress)


def write_mevis_zip(
    results: Path, meta_expressions: Path, output: Path, *, progress: Progress | None = None
) -> None:
    """Zip the masks of MeViS validation, atomically; arguments and errors as for the other zip."""
    _write_zip(results, load_meta_expressions(meta_expressions), output, "", progress)


def _write_zip(
    results: Path,
    videos: Mapping[str, VideoExpressions],
    output: Path,
    prefix: str,
    progress: Progress | None,
) -> None:
    names = {
        video: [f"{e}/{frame}.png" for e in entry.expressions for frame in entry.frames]
        for video, entry in videos.items()
    }
    _refuse_missing(results, names)
    total, done = sum(len(members) for members in names.values()), 0
    make_folder(output.parent)
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for video, members in names.items():
            size_hw = read_grey_mask(results / video / members[0]).shape
            for name in members:
                _add(archive, f"{prefix}{video}/{name}", results / video / name, size_hw)
                done += 1
                if progress is not None:
                    progress(done, total)


def _refuse_missing(results: Path, names: Mapping[str, list[str]]) -> None:
    paths = [results / video / name for video, members in names.items() for name in members]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]}: no such file; {len(missing)} of {len(paths)} masks are missing in "
            f"{results}; a submission needs every frame of every expression"
        )


def _add(archive: zipfile.ZipFile, name: str, path: Path, size_hw: tuple[int, ...]) -> None:
    mask_hw = read_grey_mask(path).shape
    if mask_hw != size_hw:
        raise DatasetError(
            f"{path}: found a mask of {mask_hw[1]}x{mask_hw[0]}, expected {size_hw[1]}x"
            f"{size_hw[0]} as in the rest of the video; write masks in the original size"
        )
    # A fixed date makes equal masks an equal zip; PNG is compressed already.
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.external_attr = 0o644 << 16
    archive.writestr(member, path.read_bytes())
