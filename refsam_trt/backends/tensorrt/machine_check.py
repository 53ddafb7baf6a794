"""Plans against the machine that is to run them, before anything of them is deserialised.

TensorRT says no such thing in a usable way: it logs a line and returns None, or crashes.
"""

from __future__ import annotations

import platform

from refsam_trt.backends.cuda.device import DeviceFacts
from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.bundle.plans import Plans
from refsam_trt.errors import PlanDeviceError, PlanMemoryError, PlanVersionError

_NEWEST_KNOWN = (12, 1)
_LATER = ">12.0"
"""TensorRT-RTX's name for GPUs newer than it knows; 12.1 has a name of its own."""
_MIB = 2**20


def platform_name() -> str:
    """Return operating system and architecture, such as `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def check_machine(plans: Plans, flavour: Flavour, device: DeviceFacts) -> None:
    """Refuse plans of another library, version, CUDA, system or GPU.

    Raises:
        PlanVersionError: library, version, CUDA or system is another one.
        PlanDeviceError: the GPU is another one.
    """
    manifest = plans.manifest
    builder = manifest.builder
    for what, needed, present in (
        ("backend", builder.backend, flavour.backend),
        ("version", builder.version, flavour.version),
        ("CUDA", builder.cuda_major, flavour.cuda_major),
        ("system", builder.platform, platform_name()),
    ):
        if None not in (needed, present) and needed != present:
            raise PlanVersionError(
                f"{plans.folder}: built for {what} {needed}, here is {present}; build the plans "
                f"again: {manifest.build_command}"
            )
    capabilities = builder.compute_capabilities
    if capabilities is not None and not _is_among(device.compute_capability, capabilities):
        raise PlanDeviceError(
            f"{plans.folder}: built for GPUs of compute capability {', '.join(capabilities)}, "
            f"here is {device.name} with {device.compute_capability}; build the plans again: "
            f"{manifest.build_command}"
        )


def needed_bytes(plans: Plans, graph: str) -> int:
    """Return how much GPU memory a graph needs at least, as far as that is known."""
    entry = plans.manifest.graphs[graph]
    weights = entry.report.weights_bytes or plans.manifest.files[entry.file].size_bytes
    return weights + (entry.report.activation_bytes or 0)


def check_memory(plans: Plans, graph: str, free_bytes: int) -> None:
    """Refuse a graph for which the GPU has no room.

    Raises:
        PlanMemoryError: too little is free.
    """
    needed = needed_bytes(plans, graph)
    if needed > free_bytes:
        raise PlanMemoryError(
            f"{plans.plan(graph)}: needs {needed // _MIB} MiB of GPU memory, {free_bytes // _MIB} "
            "MiB are free; close other programs on the GPU, or build smaller plans: "
            f"{plans.manifest.build_command} --max-expressions NUMBER"
        )


def _is_among(capability: str, known: tuple[str, ...]) -> bool:
    number = tuple(int(part) for part in capability.split("."))
    return capability in known or (_LATER in known and number > _NEWEST_KNOWN)
