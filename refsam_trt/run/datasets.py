"""Ref-DAVIS17 and Ref-YouTube-VOS as `refsam-run` runs them: what to do, and where results go.

Only what inference needs: frames, expressions and the folders that the evaluations expect
(refsam-model 10.1, 10.2). Annotations are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refsam_trt.errors import DatasetError
from refsam_trt.media.frames import FrameSource, open_frames
from refsam_trt.result.result import FrameResults
from refsam_trt.result.writers import PalettePngWriter
from refsam_trt.run.meta_expressions import (
    NUM_ANNOTATORS,
    VideoExpressions,
    expression_file,
    keys_by_object,
    load_meta_expressions,
)
from refsam_trt.run.outputs import Draw, FinishedFrame, FrameWriter, draw_masks

DatasetKind = Literal["ref-davis", "ref-youtube-vos"]

YOUTUBE_THRESHOLD = 0.01
"""Logit above which the Ref-YouTube-VOS scripts count a pixel (refsam-model 2.3)."""


@dataclass(frozen=True)
class DatasetVideo:
    """One video: its frames by name, in order, and its expressions by their ids, in order.

    In Ref-DAVIS17 the expression of object o and annotator k is entry 4 o + k.
    """

    name: str
    folder: Path
    frames: tuple[str, ...]
    expressions: dict[str, str]

    def open(self) -> FrameSource:
        """Open the listed frames; images of the folder that are not listed are passed over.

        Raises:
            DatasetError: a listed frame is missing, or they are not listed in order.
            VideoError: an image cannot be used.
        """
        source = open_frames(self.folder)
        indices = {source.frame_name(i): i for i in range(source.num_frames or 0)}
        for frame in self.frames:
            if frame not in indices:
                raise DatasetError(
                    f"{self.folder / frame}: no such image, though the expression file lists it; "
                    "restore the frame"
                )
        listed = [indices[frame] for frame in self.frames]
        if listed != sorted(listed):
            raise DatasetError(
                f"{self.folder}: the expression file lists its frames out of order; sort them"
            )
        return source if len(listed) == len(indices) else _Listed(source, listed)


class _Listed(FrameSource):
    """Some frames of a source as a source of their own."""

    def __init__(self, source: FrameSource, indices: list[int]) -> None:
        self.name = source.name
        self.original_hw = source.original_hw
        self.num_frames = len(indices)
        self.fps = None
        self._source = source
        self._indices = indices

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        indices = set(self._indices)
        return (frame for index, frame in enumerate(self._source) if index in indices)

    def frame_name(self, index: int) -> str:
        return self._source.frame_name(self._indices[index])

    def close(self) -> None:
        self._source.close()


def load_dataset(kind: DatasetKind, root: Path) -> list[DatasetVideo]:
    """Read the validation videos of a data set, in the order of its expression file.

    Ref-YouTube-VOS leaves out the videos that `meta_expressions/test` names, if that file is there:
    202 remain, which the evaluation server expects.

    Args:
        kind: which layout.
        root: holds `valid/JPEGImages/<video>/<frame>.jpg` and
            `meta_expressions/valid/meta_expressions.json`.

    Raises:
        DatasetError: a file or folder is missing, or the expression file cannot be used.
    """
    path = expression_file(root, "valid")
    videos = load_meta_expressions(path)
    if kind == "ref-youtube-vos" and expression_file(root, "test").exists():
        held_out = load_meta_expressions(expression_file(root, "test"))
        videos = {name: video for name, video in videos.items() if name not in held_out}
    if not videos:
        raise DatasetError(f"{path}: names no video to run; expected at least one under 'videos'")
    return [_video(kind, root, name, video, path) for name, video in videos.items()]


def draw_for_dataset(kind: DatasetKind) -> Draw:
    """Return what computes what a data set's outputs need of a frame."""
    return draw_masks if kind == "ref-youtube-vos" else _draw_nothing


def _draw_nothing(results: FrameResults) -> None:
    """Leave label maps to be merged from logits, annotator by annotator, when they are written."""


@contextmanager
def open_dataset_outputs(
    kind: DatasetKind, folder: Path, video: DatasetVideo
) -> Iterator[FrameWriter]:
    """Open the results of one video below `folder`; the function writes one frame.

    `ref-davis`: label maps `<annotator>/<video>/<frame>.png`. `ref-youtube-vos`: masks, grey 0 and
    255, `<video>/<expression id>/<frame>.png`.
    """
    if kind == "ref-davis":
        with ExitStack() as stack:
            writers = [
                stack.enter_context(PalettePngWriter(_folder(folder / str(k)) / video.name))
                for k in range(NUM_ANNOTATORS)
            ]
            yield lambda done: _write_label_maps(writers, done)
    else:
        folders = [folder / video.name / key for key in video.expressions]
        yield lambda done: _write_masks(folders, done)


def _write_label_maps(writers: Sequence[PalettePngWriter], done: FinishedFrame) -> None:
    results = done.results
    for annotator, writer in enumerate(writers):
        said = results[annotator::NUM_ANNOTATORS]
        merged = FrameResults(results.frame_index, results.frame_hw, said)
        writer.write(done.name, merged.label_map())


def _write_masks(folders: Sequence[Path], done: FinishedFrame) -> None:
    for folder, result in zip(folders, done.results, strict=True):
        grey = np.where(result.mask, np.uint8(255), np.uint8(0))
        Image.fromarray(grey).save(_folder(folder) / f"{done.name}.png", format="PNG")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _video(
    kind: DatasetKind, root: Path, name: str, video: VideoExpressions, path: Path
) -> DatasetVideo:
    folder = root / "valid" / "JPEGImages" / name
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder, though {path} names the video; restore it")
    keys = list(video.expressions)
    if kind == "ref-davis":
        keys = keys_by_object(video, f"{path}: video {name}")
    texts = {key: video.expressions[key].text for key in keys}
    return DatasetVideo(name, folder, video.frames, texts)
