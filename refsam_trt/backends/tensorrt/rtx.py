"""What TensorRT-RTX has and TensorRT has not: plans that tell whether they run here, own graphs.

Nothing here has run on a GPU yet (docs/proof/limits.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.backends.tensorrt.log import TrtLog
from refsam_trt.errors import (
    PlanDamagedError,
    PlanDeviceError,
    PlanError,
    PlanMemoryError,
    PlanVersionError,
)

_REMEDIES: dict[str, tuple[type[PlanError], str]] = {
    "VERSION_MISMATCH": (PlanVersionError, "it is of another version of TensorRT-RTX;"),
    "OLD_CUDA_DRIVER": (PlanVersionError, "NVIDIA's driver is too old: update it, or"),
    "OLD_CUDA_RUNTIME": (PlanVersionError, "the CUDA runtime is too old: update it, or"),
    "UNSUPPORTED_CC": (PlanDeviceError, "TensorRT-RTX does not support this GPU: use another, or"),
    "INSUFFICIENT_GPU_MEMORY": (PlanMemoryError, "the GPU has too little memory: free some, or"),
    "MALFORMED_ENGINE": (PlanDamagedError, "it is damaged;"),
    "CUDA_ERROR": (PlanDeviceError, "CUDA failed: run refsam-doctor, or"),
}
"""Diagnostic, by name -> error, and what it means."""


def check_validity(
    flavour: Flavour, runtime: Any, path: Path, plan: bytes, build_command: str
) -> None:
    """Ask the library whether it can run a plan; a plan that is merely slow here passes.

    Raises:
        PlanError: it cannot; the subclass tells why.
    """
    trt = flavour.trt
    validity, flags = engine_validity(runtime, plan)
    if validity != trt.EngineValidity.INVALID:
        return
    for name, (error, meaning) in _REMEDIES.items():
        if flags & int(getattr(trt.EngineInvalidityDiagnostics, name)):
            raise error(f"{path}: {meaning} build the plans again: {build_command}")
    raise PlanDeviceError(
        f"{path}: {flavour.backend} {flavour.version} cannot run it here and does not say why, as "
        "it does without a GPU; run refsam-doctor"
    )


def engine_validity(runtime: Any, plan: bytes) -> tuple[Any, int]:
    """Return what the library thinks of a plan: an `EngineValidity`, and its diagnostics as bits.

    Invalid without any diagnostic means that there is no GPU.
    """
    validity, flags = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    return validity, int(flags)


def new_context(flavour: Flavour, trt_engine: Any, log: TrtLog) -> Any:
    """Return an execution context that captures CUDA graphs by itself.

    Raises:
        PlanMemoryError: there is no room for it.
    """
    since = len(log.lines)
    runtime_config = trt_engine.create_runtime_config()
    runtime_config.cuda_graph_strategy = flavour.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    trt_context = trt_engine.create_execution_context(runtime_config)
    if trt_context is None:
        raise PlanMemoryError(
            f"{flavour.backend}: no execution context ({log.errors(since)}); free GPU memory, "
            "close sessions, or build smaller plans with refsam-build --max-expressions NUMBER"
        )
    return trt_context
