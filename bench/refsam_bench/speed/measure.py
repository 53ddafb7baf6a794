"""Engine against the reference loop, interleaved in one run (`refsam-bench speed`).

The reference loop is what the released scripts do: for every expression of every frame it encodes
the text and the image again, then decodes. Both sides are timed from the frame in host memory to
the masks in host memory at the frame's size. PyTorch is imported for the loop alone: the process
that measures the engine's memory must not hold it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsam_bench.speed.memory import peak_mib
from refsam_bench.speed.request import (
    FRAME_SEED,
    Measured,
    SpeedRequest,
    expressions,
    reference_loop,
)
from refsam_bench.speed.timing import FrameSummary, Ratio, Stopwatch, Summary, TimedBackend
from refsam_export.parity.compare import mask_iou
from refsam_export.parity.inputs import moving_frames
from refsam_trt.backends import cpu
from refsam_trt.backends.select import open_backend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.command.in_process import in_process
from refsam_trt.session.engine import Engine
from refsam_trt.session.session import Session
from refsam_trt.session.variants import choose_variant
from refsam_trt.versions import version_of

_INSIDE = ("upload", "image_encoder", "decoder_step", "download")


@dataclass(frozen=True, kw_only=True)
class Speed(Measured):
    """Both sides in turn; `reference`, `speedup` and `min_mask_iou` are None without a reference.

    Attributes:
        variant: which graphs.
        stages: of the engine's frames.
        engine, reference: whole frames of each side.
        speedup: time of the reference over that of the engine, frame by frame.
        min_mask_iou: between the masks of both sides.
        peak_memory_mib: resident, per side, each in a process of its own.
    """

    variant: str
    stages: dict[str, Summary]
    engine: FrameSummary
    reference: FrameSummary | None
    speedup: Ratio | None
    min_mask_iou: float | None
    peak_memory_mib: dict[str, float | None]


def measure_speed(request: SpeedRequest, progress: Callable[[], None]) -> Speed:
    """Time both sides frame by frame, in turn.

    Args:
        request: what to measure.
        progress: called after every frame.
    """
    bundle = open_bundle(request.bundle)
    variant = choose_variant(bundle.manifest, request.variant)
    loop = reference_loop(bundle, request) if request.with_reference else None
    stopwatch, slow = Stopwatch(), Stopwatch()
    backend = TimedBackend(open_backend(request.backend, request.num_threads), stopwatch)
    texts = expressions(request.num_expressions)
    agreement: list[float] = []
    with (
        Engine(bundle, variant, backend, "lazy") as engine,
        engine.open_video(original_hw=request.frame_hw) as video,
    ):
        for text in texts:
            video.add_expression(text)
        stopwatch.discard()
        num_frames = request.num_warmup + request.num_frames
        for index, frame in enumerate(moving_frames(num_frames, FRAME_SEED, request.frame_hw)):
            masks = _engine_frame(video, frame, stopwatch)
            if loop:
                with slow.stage("frame"):
                    expected = loop.step(frame, texts)
                agreement.extend(map(mask_iou, masks, expected))
            for watch in (stopwatch, slow):
                (watch.discard if index < request.num_warmup else watch.lap)()
            progress()
    fast_s, slow_s = stopwatch.seconds("frame"), slow.seconds("frame")
    return Speed(
        bundle_id=bundle.bundle_id,
        variant=variant,
        backend=backend.name,
        random_weights=bundle.manifest.weights.random_init_seed is not None,
        num_warmup=request.num_warmup,
        num_expressions=request.num_expressions,
        frame_hw=request.frame_hw,
        stages=_stages(stopwatch),
        engine=FrameSummary.of(fast_s),
        reference=FrameSummary.of(slow_s) if loop else None,
        speedup=Ratio.of(slow_s, fast_s) if loop else None,
        min_mask_iou=min(agreement) if loop else None,
        peak_memory_mib={
            "engine": in_process(peak_mib, "engine", request),
            "reference": in_process(peak_mib, "reference", request) if loop else None,
        },
        environment=environment(request.num_threads),
    )


def environment(num_threads: int | None) -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("refsam-trt", "onnxruntime", "openvino", "torch", "numpy")
    return {
        "machine": platform.machine(),
        "processor": cpu.processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": num_threads,
        "python": platform.python_version(),
        **{name: version_of(name) for name in packages},
    }


def _engine_frame(
    video: Session, frame: np.ndarray[Any, Any], stopwatch: Stopwatch
) -> list[np.ndarray[Any, Any]]:
    with stopwatch.stage("frame"):
        with stopwatch.stage("step"):
            results = video.step(frame)
        with stopwatch.stage("postprocess"):
            return [result.mask for result in results]


def _stages(stopwatch: Stopwatch) -> dict[str, Summary]:
    """Summarise the stages of the step; `preprocess` is what the others leave of it."""
    inside = {name: stopwatch.seconds(name) for name in _INSIDE if name in stopwatch.stages}
    rest = np.asarray(stopwatch.seconds("step")) - np.sum(list(inside.values()), axis=0)
    stages = {"preprocess": rest, **inside, "postprocess": stopwatch.seconds("postprocess")}
    return {name: Summary.of(seconds) for name, seconds in stages.items()}
