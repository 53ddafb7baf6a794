"""All engines and both forms of PyTorch, frame by frame in turn, in one process (job `speed`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refsam_bench.gpu.bundles import OpenedCase, open_case
from refsam_bench.gpu.pytorch import EAGER
from refsam_bench.gpu.pytorch_checks import MAKERS, torch_model
from refsam_bench.gpu.request import GpuRequest, Job
from refsam_bench.gpu.steps import StepRunner
from refsam_bench.speed.request import FRAME_SEED, SCOPE, expressions
from refsam_bench.speed.timing import FrameSummary, Ratio, Stopwatch
from refsam_export.parity.compare import mask_iou
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.reference import ReferenceSession
from refsam_trt.session.session import Session

Masks = list[NDArray[np.bool_]]
_FRAME = "frame"


class Racer(Protocol):
    """Whoever decodes frames."""

    name: str

    def step(self, frame: NDArray[np.uint8]) -> Masks:
        """Return the masks, bool [H, W] on the host, of the next frame."""


class EngineRacer:
    """A session on an engine, or in PyTorch."""

    def __init__(self, name: str, video: Session | ReferenceSession) -> None:
        self.name, self._video = name, video

    def step(self, frame: NDArray[np.uint8]) -> Masks:
        """Return the masks of the next frame."""
        return [result.mask for result in self._video.step(frame)]


def race(job: Job, steps: StepRunner) -> None:
    """Load whatever can be loaded, then time it; who fails in the race leaves it."""
    with ExitStack() as stack:
        racers: list[Racer] = []
        for name in MAKERS:
            racers += _loaded(steps, name, lambda name=name: _torch(job, name))  # type: ignore[misc]
        for case in job.cases:
            racers += _loaded(
                steps,
                case.name,
                lambda case=case: _engine(open_case(job, case), job, stack),  # type: ignore[misc]
            )
        if not racers:
            steps.skip("race", "nothing could be loaded")
            return
        steps.run("race", lambda: run_race(racers, job.request, steps))


def run_race(racers: Sequence[Racer], request: GpuRequest, steps: StepRunner) -> dict[str, Any]:
    """Time racers frame by frame, each frame begun by another one.

    Args:
        racers: in any order; speed and masks are compared with `pytorch-fp32-eager`, if there.
        request: sizes.
        steps: told of racers that fail.
    """
    num_frames = request.num_warmup + request.num_frames
    running = {racer.name: racer for racer in racers}
    watches = {name: Stopwatch() for name in running}
    ious: dict[str, list[float]] = {name: [] for name in running}
    for index, frame in enumerate(moving_frames(num_frames, FRAME_SEED, request.frame_hw)):
        masks: dict[str, Masks] = {}
        for name in _in_turn(list(running), index):
            racer_masks = _timed(running[name], frame, watches[name], steps)
            if racer_masks is None:
                del running[name], watches[name], ious[name]
            else:
                masks[name] = racer_masks
        for name, watch in watches.items():
            (watch.discard if index < request.num_warmup else watch.lap)()
            if EAGER in masks:
                ious[name] += map(mask_iou, masks[name], masks[EAGER])
    return {
        "scope": SCOPE,
        "num_warmup": request.num_warmup,
        "num_expressions": request.num_expressions,
        "frame_hw": list(request.frame_hw),
        "baseline": EAGER if EAGER in watches else None,
        "racers": {name: _figures(name, watches, ious[name]) for name in watches},
    }


def _in_turn(names: list[str], index: int) -> list[str]:
    at = index % len(names) if names else 0
    return names[at:] + names[:at]


def _timed(
    racer: Racer, frame: NDArray[np.uint8], watch: Stopwatch, steps: StepRunner
) -> Masks | None:
    try:
        with watch.stage(_FRAME):
            return racer.step(frame)
    except Exception as error:
        steps.fail(f"race of {racer.name}", error)
        return None


def _figures(name: str, watches: dict[str, Stopwatch], ious: list[float]) -> dict[str, Any]:
    seconds = watches[name].seconds(_FRAME)
    figures = asdict(FrameSummary.of(seconds))
    if EAGER in watches:
        figures["times_as_fast"] = asdict(Ratio.of(watches[EAGER].seconds(_FRAME), seconds))
        figures["min_mask_iou"] = min(ious)
    return figures


def _loaded(steps: StepRunner, name: str, load: Callable[[], Racer]) -> list[Racer]:
    racer = steps.keep(f"load {name}", lambda: (load(), {}))
    return [] if racer is None else [racer]


def _torch(job: Job, name: str) -> Racer:
    return _racer(name, torch_model(job, name).open_video(), job)


def _engine(opened: OpenedCase, job: Job, stack: ExitStack) -> Racer:
    engine = stack.enter_context(opened.load())
    video = stack.enter_context(engine.open_video(original_hw=job.request.frame_hw))
    return _racer(opened.case.name, video, job)


def _racer(name: str, video: Session | ReferenceSession, job: Job) -> Racer:
    for text in expressions(job.request.num_expressions):
        video.add_expression(text)
    return EngineRacer(name, video)
