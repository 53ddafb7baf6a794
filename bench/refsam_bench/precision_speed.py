"""Every precision of a bundle that a backend runs, timed in turn on the same frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from refsam_bench.speed import FRAME_SEED, SpeedRequest, environment, expressions
from refsam_bench.speed_gate import judge, summaries, time_in_turn
from refsam_export.parity.inputs import moving_frames
from refsam_trt.backends.select import AUTO, AUTO_ORDER, REFUSED_PRECISIONS
from refsam_trt.bundle import open_bundle
from refsam_trt.engine import load
from refsam_trt.errors import UsageError
from refsam_trt.graph_precision import QUANTISED
from refsam_trt.variants import choose_variant


def measure_precisions(request: SpeedRequest, progress: Callable[[], None]) -> dict[str, Any]:
    """Time sessions of every precision in turn, frame by frame, and return one JSON object.

    Args:
        request: what to measure; its variant and its reference have no say.
        progress: called after every frame.

    Raises:
        UsageError: the bundle has not two precisions that the backend runs.
    """
    bundle = open_bundle(request.bundle)
    backend = AUTO_ORDER[0] if request.backend == AUTO else request.backend
    refused = REFUSED_PRECISIONS.get(backend, {})
    found = sorted({variant.precision for variant in bundle.manifest.variants.values()})
    precisions = [name for name in found if name not in refused]
    if len(precisions) < 2:
        raise UsageError(
            f"{request.bundle}: nothing to compare on backend {backend}: the bundle has "
            f"{', '.join(found)}; export or quantise it in another precision"
        )
    texts = expressions(request.num_expressions)
    num_frames = request.num_warmup + request.num_frames
    frames = moving_frames(num_frames, FRAME_SEED, request.frame_hw)
    variants = {name: choose_variant(bundle.manifest, None, name, backend) for name in precisions}
    with contextlib.ExitStack() as stack:
        forms = {}
        for name, variant in variants.items():
            engine = stack.enter_context(
                load(
                    request.bundle,
                    backend=backend,
                    variant=variant,
                    num_threads=request.num_threads,
                    verify="deferred",
                )
            )
            video = stack.enter_context(engine.open_video(original_hw=request.frame_hw))
            for text in texts:
                video.add_expression(text)
            forms[name] = _Masks(video, frames)
        seconds = time_in_turn(forms, request.num_frames, request.num_warmup, progress)
    gates = [asdict(gate) | {"verdict": gate.verdict} for gate in _gates(seconds)]
    return {
        "bundle_id": bundle.bundle_id,
        "backend": backend,
        "random_weights": bundle.manifest.weights.random_init_seed is not None,
        "scope": "frame in host memory to masks in host memory, at the frame's size",
        "num_warmup": request.num_warmup,
        "num_expressions": request.num_expressions,
        "frame_hw": list(request.frame_hw),
        "variants": variants,
        "precisions": {name: asdict(row) for name, row in summaries(seconds).items()},
        "gates": gates,
        "environment": environment(request.num_threads),
    }


class _Masks:
    """Steps one session to the masks of its next frame."""

    def __init__(self, video: Any, frames: Any) -> None:
        self._video, self._frames = video, iter(frames)

    def __call__(self) -> None:
        for result in self._video.step(next(self._frames)):
            _ = result.mask


def _gates(seconds: dict[str, list[float]]) -> list[Any]:
    floats = {name: runs for name, runs in seconds.items() if name not in QUANTISED}
    return [
        judge({**floats, name: runs}, name) for name, runs in seconds.items() if name in QUANTISED
    ]


__all__ = ["measure_precisions"]
