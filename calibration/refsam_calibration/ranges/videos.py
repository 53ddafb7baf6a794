"""The videos that calibration runs: few frames of many, spread over sequences and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refsam_bench.datasets.outcome import ContentHash
from refsam_bench.synthetic import generate
from refsam_bench.synthetic.video import NUM_FRAMES
from refsam_calibration.clips import Clips, FolderClips, OwnVideo, Source, SyntheticClips
from refsam_trt.errors import CalibrationError, DatasetError
from refsam_trt.media.frames import FrameSource, open_frames
from refsam_trt.run.datasets import DatasetVideo
from refsam_trt.run.meta_expressions import expression_file, load_meta_expressions

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class CalibrationVideo:
    """Some frames of a video, in order, and expressions for it.

    Attributes:
        name: for messages.
        texts: at least one.
        frames: makes or reads the frames, uint8 [H, W, 3], RGB; may be called again.
    """

    name: str
    texts: tuple[str, ...]
    frames: Callable[[], Iterator[Frame]]


def open_videos(clips: Clips, folder: Path) -> list[CalibrationVideo]:
    """Return the videos to calibrate with; frames are read when they are asked for.

    Args:
        clips: what to take.
        folder: what relative paths in it start from.

    Raises:
        DatasetError, VideoError: a folder or file that cannot be used.
    """
    rng = np.random.default_rng(clips.seed)
    return [video for source in clips.calibrate for video in _videos(source, folder, rng)]


def digest_of(videos: Sequence[CalibrationVideo]) -> tuple[str, int]:
    """Return a SHA-256 of all frames and expressions, and how many frames there are.

    Raises:
        CalibrationError: there is no frame.
    """
    content, num_frames = ContentHash(), 0
    for video in videos:
        content.texts(video.texts)
        num_frames += sum(1 for _ in content.frames(video.frames()))
    if not num_frames:
        raise CalibrationError(
            "the clips hold no frame to calibrate with; name videos that have some under "
            "[[calibrate]]"
        )
    return content.sha256, num_frames


def spread(total: int, count: int, phase: float) -> list[int]:
    """Return numbers of frames, sorted, one in each of `count` equal stretches of a video.

    Args:
        total: how many frames the video has; with fewer than `count`, all are returned.
        count: how many to take.
        phase: where in its stretch each lies, 0 to below 1.
    """
    if count >= total:
        return list(range(total))
    return [int((number + phase) * total / count) for number in range(count)]


def _videos(source: Source, folder: Path, rng: np.random.Generator) -> Iterator[CalibrationVideo]:
    if isinstance(source, SyntheticClips):
        for index in range(source.num_videos):
            yield _synthetic(
                source, index, spread(NUM_FRAMES, source.frames_per_video, rng.random())
            )
    elif isinstance(source, OwnVideo):
        path = folder / source.path
        with open_frames(path) as opened:
            total = opened.num_frames or sum(1 for _ in opened)
        indices = spread(total, source.frames_per_video, rng.random())
        yield CalibrationVideo(
            str(path), source.expressions, partial(_frames_at, partial(open_frames, path), indices)
        )
    else:
        yield from _folder_videos(source, folder / source.root, rng)


def _synthetic(source: SyntheticClips, index: int, indices: list[int]) -> CalibrationVideo:
    name = source.slices[index % len(source.slices)]
    video = generate(source.seed, index, slice=name, frame_indices=indices[:1])

    def frames() -> Iterator[Frame]:
        return iter(generate(source.seed, index, slice=name, frame_indices=indices).frames)

    return CalibrationVideo(
        f"synthetic {name} {source.seed}/{index}", (video.expressions[0].text,), frames
    )


def _folder_videos(
    source: FolderClips, root: Path, rng: np.random.Generator
) -> Iterator[CalibrationVideo]:
    path = expression_file(root, source.split)
    entries = load_meta_expressions(path)
    if source.num_videos > len(entries):
        raise DatasetError(
            f"{path}: names {len(entries)} videos, but num_videos is {source.num_videos}; ask for "
            "fewer, or for all with 0"
        )
    names = sorted(entries)
    count = source.num_videos or len(names)
    for number in sorted(rng.permutation(len(names))[:count]):
        name, entry = names[number], entries[names[number]]
        images = root / source.split / "JPEGImages" / name
        if not images.is_dir():
            raise DatasetError(
                f"{images}: no such folder, though {path} names the video; restore it"
            )
        texts = [expression.text for expression in entry.expressions.values()]
        drawn = sorted(rng.permutation(len(texts))[: source.expressions_per_video])
        video = DatasetVideo(name, images, entry.frames, {})
        indices = spread(len(entry.frames), source.frames_per_video, rng.random())
        frames = partial(_frames_at, video.open, indices)
        yield CalibrationVideo(str(images), tuple(texts[i] for i in drawn), frames)


def _frames_at(opener: Callable[[], FrameSource], numbers: list[int]) -> Iterator[Frame]:
    """Yield some frames of a source, which is closed afterwards."""
    left = set(numbers)
    with opener() as source:
        for index, frame in enumerate(source):
            if index in left:
                yield frame
            if index == numbers[-1]:
                return
