"""Which backend runs a bundle: by name, or the first of a documented order that works here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from refsam_trt.backends.base import Backend
from refsam_trt.backends.fake import FakeBackend
from refsam_trt.backends.openvino.backend import CPU, GPU, NPU, OpenVinoBackend
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.plans import Plans
from refsam_trt.errors import BackendError, InternalError, RefsamError, UsageError
from refsam_trt.files.cache_folder import user_cache_folder

AUTO = "auto"
AUTO_ORDER = ("ort-cpu",)
"""What `auto` tries, best first: only what has run on hardware; others are asked for by name.
`load` may replace it by `openvino-cpu` where it was measured (`session.fastest`)."""

PLAN_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""Backends that run plans of `refsam-build` instead of the bundle's graphs."""

_ON_ORT = ("ort-cpu", "fake")
_ON_OPENVINO = (CPU, GPU, NPU)
ON_CPUS = (*_ON_ORT, CPU)
_NONE_ON_ORT = {
    "bf16": "ONNX Runtime has no bf16 matrix product or addition for CPUs",
    "fp8": "ONNX Runtime has no fp8 matrix product for CPUs",
}
_NONE_ON_OPENVINO = {
    "bf16": "it would compute them in fp32; precision bf16 on this backend takes the fp32 variant",
    "fp8": "OpenVINO has no fp8 matrix product for CPUs",
}

REFUSED_PRECISIONS = {
    **dict.fromkeys(_ON_ORT, _NONE_ON_ORT),
    **dict.fromkeys(_ON_OPENVINO, _NONE_ON_OPENVINO),
}
"""Per backend, the precisions of graphs that it cannot run, and why."""

ROUNDED_FP32 = {CPU: ("bf16",)}
"""Per backend, the precisions that it computes fp32 graphs in where that is asked for."""

PREFERRED_BASE = dict.fromkeys((AUTO, *ON_CPUS, *_ON_OPENVINO), ("fp32", "fp16"))
"""Per backend, what a quantised variant should do all else in, best first, where it is not
`DEFAULT_BASE`: on CPUs, ONNX Runtime has integer kernels between fp32 nodes only."""
DEFAULT_BASE = ("fp16", "fp32")

PREFERRED_ATTENTION = dict.fromkeys(
    (AUTO, *ON_CPUS, *_ON_OPENVINO), ("bias", "augmented", "reference")
)
"""Per backend, forms of attention, best first, where it is not `DEFAULT_ATTENTION`: CPUs fuse
none, so that wider products cost more than they save (docs/proof/precision.md)."""
DEFAULT_ATTENTION = ("augmented", "bias", "reference")
"""`augmented` is what TensorRT fuses with the least memory; see docs/proof/precision.md."""


def _ort_cuda(num_threads: int | None) -> Backend:
    from refsam_trt.backends.cuda.ort import OrtCudaBackend

    return OrtCudaBackend()


_BACKENDS: dict[str, Callable[[int | None], Backend]] = {
    "ort-cpu": OrtCpuBackend,
    "ort-cuda": _ort_cuda,
    "fake": FakeBackend,
    **{name: partial(OpenVinoBackend, name=name) for name in _ON_OPENVINO},
}
_LOG = logging.getLogger("refsam_trt")


def open_backend(
    name: str,
    num_threads: int | None = None,
    plans: Plans | None = None,
    precision: str | None = None,
    arithmetic: str | None = None,
) -> Backend:
    """Open a backend.

    Args:
        name: a backend, which is then used or refused but never replaced; or `auto`, which takes
            the first of `AUTO_ORDER` that opens and logs why the ones before it were skipped.
        num_threads: threads inside one graph run on a CPU, which GPUs refuse; None is the
            backend's default.
        plans: to run instead of graphs, on the backend that they were built for.
        precision: of the graphs that it is to run; None if any will do.
        arithmetic: one of the backend's `ROUNDED_FP32`; None computes as the graphs are written.

    Raises:
        PlanError: the plans are not for this machine.
        UsageError: plans of another backend than the one asked for, or none for one that needs it;
            `num_threads` for a GPU.
        BackendError: an unknown name, one that cannot run that precision, or nothing in
            `AUTO_ORDER` opened.
        MissingExtraError: the named backend's library is not installed.
    """
    if plans is not None:
        return _open_plans(name, plans, num_threads)
    if name != AUTO:
        return _open(name, num_threads, precision, arithmetic)
    reasons = []
    for candidate in AUTO_ORDER:
        try:
            return _open(candidate, num_threads, precision)
        except RefsamError as error:
            reasons.append(f"{candidate} ({error})")
            _LOG.info("backend %s skipped: %s", candidate, error)
    raise BackendError(f"no backend works on this machine: {'; '.join(reasons)}")


def _open_plans(name: str, plans: Plans, num_threads: int | None) -> Backend:
    needed = plans.manifest.builder.backend
    if name not in (AUTO, needed):
        raise UsageError(
            f"{plans.folder}: plans for backend {needed}, asked for was {name}; ask for {needed}, "
            "or leave the plans out"
        )
    _refuse_threads(needed, num_threads)
    from refsam_trt.backends.tensorrt.backend import TrtBackend

    return TrtBackend(plans, _marks())


def _marks() -> Path | None:
    """Return where passed self-tests are remembered, None where an account has no home."""
    try:
        return user_cache_folder() / "self-tests"
    except UsageError:
        return None


def stored_precision(backend: str, precision: str | None) -> str | None:
    """Return the precision of the graphs that a backend runs where `precision` is asked for."""
    return "fp32" if precision in ROUNDED_FP32.get(backend, ()) else precision


def _open(
    name: str, num_threads: int | None, precision: str | None, arithmetic: str | None = None
) -> Backend:
    if name in PLAN_BACKENDS:
        raise UsageError(
            f"backend {name} runs plans, and none were given: refsam-build BUNDLE --backend {name} "
            "--precision fp16 --output PLANS, then plans=PLANS (--plans PLANS)"
        )
    if name not in _BACKENDS:
        known = ", ".join((AUTO, *(key for key in _BACKENDS if key != "fake"), *PLAN_BACKENDS))
        raise BackendError(f"this version has no backend {name!r}; it has: {known}")
    if reason := REFUSED_PRECISIONS.get(name, {}).get(precision or ""):
        raise BackendError(
            f"backend {name} cannot run {precision} graphs: {reason}; choose an fp32 or fp16 "
            "variant of the bundle (precision=...), or another backend"
        )
    if name not in ON_CPUS:
        _refuse_threads(name, num_threads)
    if arithmetic is None:
        return _BACKENDS[name](num_threads)
    if arithmetic not in ROUNDED_FP32.get(name, ()):
        raise InternalError(f"backend {name} was asked to compute in {arithmetic}")
    return OpenVinoBackend(num_threads, name, arithmetic)


def _refuse_threads(name: str, num_threads: int | None) -> None:
    if num_threads is not None:
        device = "NPU" if name == NPU else "GPU"
        raise UsageError(
            f"num_threads={num_threads}: backend {name} computes on a {device} and has no use for "
            "CPU threads; leave it out (--threads)"
        )
