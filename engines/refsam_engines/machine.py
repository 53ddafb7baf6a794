"""The machine that builds: what its driver says, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass

from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.backends.tensorrt.machine_check import platform_name
from refsam_trt.doctor import probe
from refsam_trt.errors import PlanDeviceError


@dataclass(frozen=True)
class BuildMachine:
    """Where plans are built; the GPU's fields are None where there is none."""

    platform: str
    gpu_name: str | None
    compute_capability: str | None
    driver_version: str | None


def examine_machine(flavour: Flavour) -> BuildMachine:
    """Ask the driver, in a process of its own, before anything of TensorRT is created.

    Raises:
        PlanDeviceError: TensorRT proper measures kernels on the GPU, and there is none.
    """
    driver = probe.ask("cuda")
    devices = driver.get("devices") or []
    if devices:
        first = devices[0]
        return BuildMachine(
            platform_name(), first["name"], first["compute_capability"], driver["driver_version"]
        )
    if not flavour.is_rtx:
        raise PlanDeviceError(
            f"backend {flavour.backend} builds on the GPU that is to run the plans, and there is "
            f"none here: CUDA driver {driver.get('error', 'has no device')}; run refsam-build on "
            "that machine, or use --backend tensorrt-rtx, which builds without one"
        )
    return BuildMachine(platform_name(), None, None, None)
