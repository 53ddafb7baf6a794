"""Which backend runs a bundle: by name, or the first of a documented order that works here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from refsam_trt.backends.base import Backend
from refsam_trt.backends.fake import FakeBackend
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.cache_folder import user_cache_folder
from refsam_trt.errors import BackendError, RefsamError, UsageError
from refsam_trt.plan import Plans

AUTO = "auto"
AUTO_ORDER = ("ort-cpu",)
"""What `auto` tries, best first: only what has run on hardware; others are asked for by name."""

PLAN_BACKENDS = ("tensorrt", "tensorrt-rtx")
"""Backends that run plans of `refsam-build` instead of the bundle's graphs."""


def _ort_cuda(num_threads: int | None) -> Backend:
    from refsam_trt.backends.ort_cuda import OrtCudaBackend

    return OrtCudaBackend()


_BACKENDS: dict[str, Callable[[int | None], Backend]] = {
    "ort-cpu": OrtCpuBackend,
    "ort-cuda": _ort_cuda,
    "fake": FakeBackend,
}
_LOG = logging.getLogger("refsam_trt")


def open_backend(name: str, num_threads: int | None = None, plans: Plans | None = None) -> Backend:
    """Open a backend.

    Args:
        name: a backend, which is then used or refused but never replaced; or `auto`, which takes
            the first of `AUTO_ORDER` that opens and logs why the ones before it were skipped.
        num_threads: threads inside one graph run on a CPU; None is the backend's default.
        plans: to run instead of graphs, on the backend that they were built for.

    Raises:
        PlanError: the plans are not for this machine.
        UsageError: plans of another backend than the one asked for, or none for one that needs it.
        BackendError: an unknown name, or nothing in `AUTO_ORDER` opened.
        MissingExtraError: the named backend's library is not installed.
    """
    if plans is not None:
        return _open_plans(name, plans)
    if name != AUTO:
        return _open(name, num_threads)
    reasons = []
    for candidate in AUTO_ORDER:
        try:
            return _open(candidate, num_threads)
        except RefsamError as error:
            reasons.append(f"{candidate} ({error})")
            _LOG.info("backend %s skipped: %s", candidate, error)
    raise BackendError(f"no backend works on this machine: {'; '.join(reasons)}")


def _open_plans(name: str, plans: Plans) -> Backend:
    needed = plans.manifest.builder.backend
    if name not in (AUTO, needed):
        raise UsageError(
            f"{plans.folder}: plans for backend {needed}, asked for was {name}; ask for {needed}, "
            "or leave the plans out"
        )
    from refsam_trt.backends.trt import TrtBackend

    return TrtBackend(plans, _marks())


def _marks() -> Path | None:
    """Return where passed self-tests are remembered, None where an account has no home."""
    try:
        return user_cache_folder() / "self-tests"
    except UsageError:
        return None


def _open(name: str, num_threads: int | None) -> Backend:
    if name in PLAN_BACKENDS:
        raise UsageError(
            f"backend {name} runs plans, and none were given: refsam-build BUNDLE --backend {name} "
            "--precision fp16 --output PLANS, then plans=PLANS (--plans PLANS)"
        )
    if name not in _BACKENDS:
        known = ", ".join((AUTO, *(key for key in _BACKENDS if key != "fake"), *PLAN_BACKENDS))
        raise BackendError(f"this version has no backend {name!r}; it has: {known}")
    return _BACKENDS[name](num_threads)
