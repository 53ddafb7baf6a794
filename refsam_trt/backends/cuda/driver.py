"""What the CUDA driver says of itself and its devices, asked without creating a context."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_CUDA_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def describe() -> dict[str, Any]:
    """Ask the CUDA driver for its version and devices; creates no context."""
    try:
        driver = ctypes.CDLL(_CUDA_LIBRARY)
        version, count = ctypes.c_int(), ctypes.c_int()
        _call(driver, "cuInit", 0)
        _call(driver, "cuDriverGetVersion", ctypes.byref(version))
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        return {
            # 13010 is CUDA 13.1.
            "driver_version": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "devices": [_device(driver, index) for index in range(count.value)],
        }
    except (OSError, AttributeError) as error:
        return {"error": f"not found ({error})"}
    except _CudaError as error:
        return {"error": str(error)}


class _CudaError(Exception):
    """A driver call that did not return CUDA_SUCCESS."""


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code:
        raise _CudaError(f"{function} failed with {_cuda_error_name(driver, code)}")


def _cuda_error_name(driver: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"


def _device(driver: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, memory_bytes = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    # The name without `_v2` counts in 32 bits.
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory_bytes), device)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": ".".join(capability),
        "memory_mib": memory_bytes.value // 2**20,
    }
