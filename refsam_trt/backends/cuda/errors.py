"""Whatever the CUDA libraries raise, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from refsam_trt.errors import BackendError, DeviceMemoryError, InternalError, RefsamError

_NO_MEMORY = ("OUT_OF_MEMORY", "OutOfMemory", "out of memory")


@contextmanager
def device_errors(action: str) -> Iterator[None]:
    """Turn whatever cuda-core raises into ours.

    Raises:
        DeviceMemoryError: out of memory.
        BackendError: everything else.
    """
    try:
        yield
    except (RefsamError, InternalError):
        raise
    except Exception as error:
        if any(text in f"{type(error).__name__} {error}" for text in _NO_MEMORY):
            raise DeviceMemoryError(
                f"CUDA: {action} failed, the GPU is out of memory ({error}); close other programs "
                "on it, or use fewer expressions"
            ) from error
        raise BackendError(
            f"CUDA: {action} failed ({error}); run refsam-doctor, and try backend ort-cpu"
        ) from error
