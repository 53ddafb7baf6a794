"""Every precision of a bundle that a backend runs, timed in turn on the same frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refsam_bench.speed.gate import SpeedGate, gate_of, summaries, time_in_turn
from refsam_bench.speed.measure import environment
from refsam_bench.speed.request import FRAME_SEED, Measured, SpeedRequest, expressions
from refsam_bench.speed.timing import Summary
from refsam_export.parity.inputs import moving_frames
from refsam_trt.backends.select import (
    AUTO,
    AUTO_ORDER,
    REFUSED_PRECISIONS,
    ROUNDED_FP32,
    open_backend,
)
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.plans import open_plans
from refsam_trt.contract.precision import QUANTISED
from refsam_trt.errors import BackendError, UsageError
from refsam_trt.session.load import load
from refsam_trt.session.session import Session
from refsam_trt.session.variants import choose_variant


@dataclass(frozen=True, kw_only=True)
class PrecisionSpeeds(Measured):
    """Whole frames of every precision, and what the quantised ones buy.

    `variants` and `precisions` are by the name of the precision; `gates`, one per quantised one.
    """

    variants: dict[str, str]
    precisions: dict[str, Summary]
    gates: list[SpeedGate]


def measure_precisions(
    request: SpeedRequest, progress: Callable[[], None], plans: Sequence[Path] = ()
) -> PrecisionSpeeds:
    """Time sessions of every precision in turn, frame by frame.

    Args:
        request: what to measure; its variant and its reference have no say.
        progress: called after every frame.
        plans: folders of `refsam-build`, of one backend and a precision each, to time instead of
            the bundle's graphs.

    Raises:
        UsageError: there are not two precisions that the backend runs.
        PlanError: plans that this machine cannot run.
    """
    bundle = open_bundle(request.bundle)
    if plans:
        backend, variants, options = _of_plans(request, plans)
    else:
        backend, variants, options = _of_graphs(request, bundle)
    texts = expressions(request.num_expressions)
    num_frames = request.num_warmup + request.num_frames
    frames = moving_frames(num_frames, FRAME_SEED, request.frame_hw)
    with contextlib.ExitStack() as stack:
        forms = {}
        for name in variants:
            engine = stack.enter_context(
                load(
                    bundle,
                    num_threads=request.num_threads,
                    verify="deferred",
                    **options[name],
                )
            )
            video = stack.enter_context(engine.open_video(original_hw=request.frame_hw))
            for text in texts:
                video.add_expression(text)
            forms[name] = _next_masks(video, iter(frames))
        seconds = time_in_turn(forms, request.num_frames, request.num_warmup, progress)
    return PrecisionSpeeds(
        bundle_id=bundle.bundle_id,
        backend=backend,
        random_weights=bundle.manifest.weights.random_init_seed is not None,
        num_warmup=request.num_warmup,
        num_expressions=request.num_expressions,
        frame_hw=request.frame_hw,
        variants=variants,
        precisions=summaries(seconds),
        gates=_gates(seconds),
        environment=environment(request.num_threads),
    )


_Forms = tuple[str, dict[str, str], dict[str, dict[str, Any]]]
"""Backend; per precision the variant, and what `load` is given."""


def _of_graphs(request: SpeedRequest, bundle: Bundle) -> _Forms:
    backend = AUTO_ORDER[0] if request.backend == AUTO else request.backend
    refused = REFUSED_PRECISIONS.get(backend, {})
    present = sorted({variant.precision for variant in bundle.manifest.variants.values()})
    precisions = [name for name in present if name not in refused]
    rounded = _rounded(backend) if "fp32" in precisions else []
    if len(precisions) + len(rounded) < 2:
        raise UsageError(
            f"{request.bundle}: nothing to compare on backend {backend}: the bundle has "
            f"{', '.join(present)}; export or quantise it in another precision"
        )
    variants = {name: choose_variant(bundle.manifest, None, name, backend) for name in precisions}
    options = {name: {"backend": backend, "variant": each} for name, each in variants.items()}
    for name in rounded:
        variants[name] = variants["fp32"]
        options[name] = {**options["fp32"], "precision": name}
    return backend, variants, options


def _rounded(backend: str) -> list[str]:
    """Return the precisions that a backend computes fp32 graphs in on this machine."""
    names = []
    for name in ROUNDED_FP32.get(backend, ()):
        with contextlib.suppress(BackendError):
            open_backend(backend, precision="fp32", arithmetic=name).close()
            names.append(name)
    return names


def _of_plans(request: SpeedRequest, folders: Sequence[Path]) -> _Forms:
    opened = [(folder, open_plans(folder).manifest) for folder in folders]
    by_precision = {manifest.precision: (folder, manifest) for folder, manifest in opened}
    backends = {manifest.builder.backend for _, manifest in opened}
    if len(by_precision) != len(opened) or len(by_precision) < 2 or len(backends) != 1:
        told = ", ".join(f"{f} ({m.builder.backend}, {m.precision})" for f, m in opened)
        raise UsageError(
            f"--plans: expected folders of one backend, at least two of a precision each, found "
            f"{told}; build them with refsam-build"
        )
    (backend,) = backends
    if request.backend not in (AUTO, backend):
        raise UsageError(f"--backend {request.backend}: the plans are for {backend}; leave it out")
    variants = {name: manifest.variant for name, (_, manifest) in sorted(by_precision.items())}
    return backend, variants, {name: {"plans": by_precision[name][0]} for name in variants}


def _next_masks(video: Session, frames: Iterator[NDArray[np.uint8]]) -> Callable[[], object]:
    """Return what steps a session to the masks of its next frame."""
    return lambda: [result.mask for result in video.step(next(frames))]


def _gates(seconds: dict[str, list[float]]) -> list[SpeedGate]:
    floats = {name: runs for name, runs in seconds.items() if name not in QUANTISED}
    return [
        gate_of({**floats, name: runs}, name) for name, runs in seconds.items() if name in QUANTISED
    ]
