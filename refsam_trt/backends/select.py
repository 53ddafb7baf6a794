"""Which backend runs a bundle: by name, or the first of a documented order that works here."""

from __future__ import annotations

import logging

from refsam_trt.backends.base import Backend
from refsam_trt.backends.fake import FakeBackend
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.errors import BackendError, RefsamError

AUTO = "auto"
AUTO_ORDER = ("ort-cpu",)
"""What `auto` tries, best first."""

_BACKENDS: dict[str, type[OrtCpuBackend] | type[FakeBackend]] = {
    "ort-cpu": OrtCpuBackend,
    "fake": FakeBackend,
}
_LOG = logging.getLogger("refsam_trt")


def open_backend(name: str, num_threads: int | None = None) -> Backend:
    """Open a backend.

    Args:
        name: a backend, which is then used or refused but never replaced; or `auto`, which takes
            the first of `AUTO_ORDER` that opens and logs why the ones before it were skipped.
        num_threads: threads inside one graph run on a CPU; None is the backend's default.

    Raises:
        BackendError: an unknown name, or nothing in `AUTO_ORDER` opened.
        MissingExtraError: the named backend's library is not installed.
    """
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


def _open(name: str, num_threads: int | None) -> Backend:
    if name not in _BACKENDS:
        known = ", ".join((AUTO, *AUTO_ORDER))
        raise BackendError(f"this version has no backend {name!r}; it has: {known}")
    return _BACKENDS[name](num_threads)
