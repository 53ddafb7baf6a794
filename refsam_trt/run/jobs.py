"""What `refsam-run` was asked to do, checked, and the videos that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from refsam_trt.backends.select import AUTO
from refsam_trt.errors import UsageError
from refsam_trt.media.frames import FrameSource
from refsam_trt.media.sources import Selection, open_source
from refsam_trt.run.datasets import (
    YOUTUBE_THRESHOLD,
    DatasetKind,
    DatasetVideo,
    draw_for_dataset,
    load_dataset,
    open_dataset_outputs,
)
from refsam_trt.run.outputs import (
    DEFAULT_OUTPUTS,
    Draw,
    FrameWriter,
    OutputTarget,
    check_outputs,
    draw_for,
    open_outputs,
)
from refsam_trt.run.shared_tracks import TrackStateScope
from refsam_trt.text.disk import TextCacheChoice
from refsam_trt.text.encoder import TextMode


@dataclass(frozen=True)
class RunRequest:
    """What to run; None means the default.

    Attributes:
        bundle: folder of a bundle, or the name of a shipped one (`bundle.shipped`).
        source: video, folder, image, camera or address; with `dataset` its root.
        expressions: what to look for; none with `dataset`, which brings its own.
        output: folder to write.
        dataset: layout of the data set at `source`; None is one video.
        save: names of outputs; None is masks, RLE and overlay. Not with `dataset`.
        selection: which frames of each video.
        backend, variant, precision, plans, num_threads: as for `load`.
        text: as for `load`; None is `lazy`, with `dataset` `resident`.
        text_cache: as for `load`.
        threshold: logits above it belong to a mask; None is 0, for Ref-YouTube-VOS 0.01. Label maps
            are merged by a rule of their own, so not with Ref-DAVIS17.
        track_state_scope: whose a track token is: `object` shares it between the annotators of
            Ref-DAVIS17, as the released scripts do; only with that data set.
        is_dropping: of a live source, take the newest frame whenever one can be done.
        is_overwrite: replace what an earlier run wrote.

    Raises:
        UsageError: options that cannot be met, alone or together.
    """

    bundle: str | Path
    source: str
    expressions: tuple[str, ...]
    output: Path
    dataset: DatasetKind | None = None
    save: tuple[str, ...] | None = None
    selection: Selection = field(default_factory=Selection)
    backend: str = AUTO
    variant: str | None = None
    precision: str | None = None
    plans: Path | None = None
    num_threads: int | None = None
    text: TextMode | None = None
    text_cache: TextCacheChoice = "off"
    threshold: float | None = None
    track_state_scope: TrackStateScope = "expression"
    is_dropping: bool = False
    is_overwrite: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageError(f"threshold {self.threshold}: expected a finite logit, such as 0")
        if self.track_state_scope == "object" and self.dataset != "ref-davis":
            raise UsageError(
                "--track-state-scope object shares tokens between the annotators of Ref-DAVIS17; "
                "it goes with --dataset ref-davis only"
            )
        if self.dataset is not None:
            self._check_dataset_options(self.dataset)
        elif not self.expressions:
            raise UsageError(
                'no expression was given; say what to look for, such as "the dog on the left", or '
                "name a file with --expressions"
            )
        else:
            check_outputs(self.outputs, len(self.expressions))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of a video."""
        return DEFAULT_OUTPUTS if self.save is None else self.save

    @property
    def mask_threshold(self) -> float:
        """Logits above it belong to a mask."""
        if self.threshold is not None:
            return self.threshold
        return YOUTUBE_THRESHOLD if self.dataset == "ref-youtube-vos" else 0.0

    @property
    def text_mode(self) -> TextMode:
        """How the text encoder is kept: a data set needs it again for every video."""
        return self.text or ("lazy" if self.dataset is None else "resident")

    def _check_dataset_options(self, dataset: DatasetKind) -> None:
        if self.expressions:
            raise UsageError(
                f"found {len(self.expressions)} expressions with a data set, whose own are used; "
                "leave them out, or run one video of it without --dataset"
            )
        if self.save is not None:
            raise UsageError(
                "--save does not go with --dataset, which writes what the evaluation reads; leave "
                "it out"
            )
        if dataset == "ref-davis" and self.threshold is not None:
            raise UsageError(
                "--threshold does not go with --dataset ref-davis: its objects are merged into "
                "label maps by a rule of their own; leave it out"
            )


@dataclass(frozen=True)
class Job:
    """One video to run.

    Attributes:
        name: of the video.
        expressions: what to look for in it.
        num_frames: before selection, None if unknown.
        open: gives its frames.
        outputs: opens its results: folder, frames and whether weights are random.
        draw: computes what they need of a frame.
    """

    name: str
    expressions: tuple[str, ...]
    num_frames: int | None
    open: Callable[[], FrameSource]
    outputs: Callable[[Path, FrameSource, bool], AbstractContextManager[FrameWriter]]
    draw: Draw


def open_jobs(request: RunRequest, stack: ExitStack) -> list[Job]:
    """Return the videos to run, at least one; `stack` closes what is open.

    Raises:
        VideoError, DatasetError, MissingExtraError: the source cannot be used.
    """
    if request.dataset is not None:
        videos = load_dataset(request.dataset, Path(request.source))
        return [_dataset_job(request.dataset, video) for video in videos]
    return [_video_job(request, stack.enter_context(open_source(request.source)))]


def _dataset_job(kind: DatasetKind, video: DatasetVideo) -> Job:
    return Job(
        name=video.name,
        expressions=tuple(video.expressions.values()),
        num_frames=len(video.frames),
        open=video.open,
        outputs=lambda folder, _, __: open_dataset_outputs(kind, folder, video),
        draw=draw_for_dataset(kind),
    )


def _video_job(request: RunRequest, source: FrameSource) -> Job:
    expressions, stride = request.expressions, request.selection.stride
    return Job(
        name=source.name,
        expressions=expressions,
        num_frames=source.num_frames,
        open=lambda: source,
        outputs=lambda folder, source, is_random: open_outputs(
            OutputTarget(folder, source, expressions, stride, is_random), request.outputs
        ),
        draw=draw_for(request.outputs),
    )
