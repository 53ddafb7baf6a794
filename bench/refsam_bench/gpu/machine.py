"""The machine that is measured: its GPU, its versions, and which backends open on it."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from refsam_bench.report.provenance import commit
from refsam_bench.speed.measure import environment
from refsam_trt.doctor import probe
from refsam_trt.errors import BackendError

_PACKAGES = re.compile(
    r"(refsam|onnx|torch|triton|tensorrt|cuda|nvidia|cupy|numpy|transformers|tokenizers|safetensors)"
)


def require_gpu() -> dict[str, Any]:
    """Return what the driver says of itself and its devices, asked in a process of its own.

    Raises:
        BackendError: no driver, or no GPU.
    """
    gpu = probe.ask("cuda")
    if not gpu.get("devices"):
        raise BackendError(
            f"no NVIDIA GPU here: CUDA driver {gpu.get('error', 'has no device')}; run this "
            "command on a machine that has one (refsam-bench speed, parity, precision and accuracy "
            "need none)"
        )
    return gpu


def machine(gpu: dict[str, Any], stated_commit: str | None) -> dict[str, Any]:
    """Return everything that figures depend on.

    Args:
        gpu: of `require_gpu`.
        stated_commit: of the source; None asks git.
    """
    return {
        "commit": stated_commit or commit(),
        "driver_version": gpu["driver_version"],
        "device": gpu["devices"][0],
        "num_devices": len(gpu["devices"]),
        "environment": environment(None),
        "onnxruntime": probe.ask("onnxruntime"),
        "packages": _packages(),
    }


def backends(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return per backend whether it opens here, its version where it tells one, or why not."""
    return {name: _tried(name) for name in names}


def _tried(name: str) -> dict[str, Any]:
    question = "backend" if name == "ort-cuda" else "tensorrt"
    answer = probe.ask(question, name)
    if "error" in answer:
        return {"works": False, "reason": answer["error"]}
    return {"works": True, **answer}


def _packages() -> dict[str, str]:
    versions = {
        str(distribution.metadata["Name"]): distribution.version
        for distribution in metadata.distributions()
    }
    return {name: versions[name] for name in sorted(versions) if _PACKAGES.match(name.lower())}
