"""All engines and both forms of PyTorch, frame by frame in turn, in one process (job `speed`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refsam_bench.gpu.bundles import open_case
from refsam_bench.gpu.pytorch import EAGER
from refsam_bench.gpu.pytorch_checks import MAKERS, torch_model
from refsam_bench.gpu.request import Case, GpuRequest, Job
from refsam_bench.gpu.steps import StepRunner
from refsam_bench.speed.request import FRAME_SEED, SCOPE, expressions
from refsam_bench.speed.timing import FrameSummary, Ratio, Stopwatch
from refsam_export.parity.compare import mask_iou
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.reference import ReferenceSession
from refsam_trt.session.session import Session

Masks = list[NDArray[np.bool_]]
Racer = Callable[[NDArray[np.uint8]], Masks]
"""Returns the masks, bool [H, W] on the host, of the next frame."""
_FRAME = "frame"


def race(job: Job, steps: StepRunner) -> None:
    """Load whatever can be loaded, then time it; who fails in the race leaves it."""
    with ExitStack() as stack:
        loaders: dict[str, Callable[[], Racer]] = {
            name: functools.partial(_torch, job, name) for name in MAKERS
        }
        loaders |= {case.name: functools.partial(_engine, job, case, stack) for case in job.cases}
        racers: dict[str, Racer] = {}
        for name, load in loaders.items():
            racer = steps.keep(f"load {name}", lambda load=load: (load(), {}))  # type: ignore[misc]
            if racer is not None:
                racers[name] = racer
        if not racers:
            steps.skip("race", "nothing could be loaded")
            return
        steps.run("race", lambda: run_race(racers, job.request, steps))


def run_race(racers: Mapping[str, Racer], request: GpuRequest, steps: StepRunner) -> dict[str, Any]:
    """Time racers frame by frame, each frame begun by another one.

    Args:
        racers: by name; speed and masks are compared with `pytorch-fp32-eager`, if there.
        request: sizes.
        steps: told of racers that fail.
    """
    num_frames = request.num_warmup + request.num_frames
    running = dict(racers)
    watches = {name: Stopwatch() for name in running}
    ious: dict[str, list[float]] = {name: [] for name in running}
    for index, frame in enumerate(moving_frames(num_frames, FRAME_SEED, request.frame_hw)):
        masks: dict[str, Masks] = {}
        for name in _in_turn(list(running), index):
            try:
                with watches[name].stage(_FRAME):
                    masks[name] = running[name](frame)
            except Exception as error:
                steps.fail(f"race of {name}", error)
                del running[name], watches[name], ious[name]
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


def _figures(name: str, watches: dict[str, Stopwatch], ious: list[float]) -> dict[str, Any]:
    seconds = watches[name].seconds(_FRAME)
    figures = asdict(FrameSummary.of(seconds))
    if EAGER in watches:
        figures["times_as_fast"] = asdict(Ratio.of(watches[EAGER].seconds(_FRAME), seconds))
        figures["min_mask_iou"] = min(ious)
    return figures


def _torch(job: Job, name: str) -> Racer:
    return _racer(torch_model(job, name).open_video(), job)


def _engine(job: Job, case: Case, stack: ExitStack) -> Racer:
    engine = stack.enter_context(open_case(job, case).load())
    return _racer(stack.enter_context(engine.open_video(original_hw=job.request.frame_hw)), job)


def _racer(video: Session | ReferenceSession, job: Job) -> Racer:
    for text in expressions(job.request.num_expressions):
        video.add_expression(text)
    return lambda frame: [result.mask for result in video.step(frame)]
