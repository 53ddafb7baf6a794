"""`refsam-doctor`: which backends work on this machine, which do not and why.

Asks and tells, changes nothing. What creates a CUDA context or a TensorRT runtime is a process of
its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click
import msgspec

from refsam_trt.backends import cpu
from refsam_trt.command.ending import run_command
from refsam_trt.doctor import probe
from refsam_trt.errors import RefsamError, UsageError

_NAME = "refsam-doctor"
_PACKAGES = (
    *("numpy", "pillow", "tokenizers", "safetensors", "msgspec", "click", "av"),
    *("onnxruntime", "onnxruntime-gpu", "openvino", "cuda-core", "tensorrt"),
    *("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings", "torch", "onnx", "transformers"),
)
_RUNNING_BACKENDS = ("ort-cuda", "openvino-cpu", "ort-cpu")
"""Backends that are tried on a graph; the others need plans, so only their library is opened."""
_TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""Backend, which is also the extra's name -> the module it needs."""
_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16"),
    *("avx512_vnni", "avx_vnni", "avxvnniint8", "amx_int8", "asimddp", "i8mm"),
)
_INT8_FEATURES = {"avx512_vnni", "avx_vnni", "avxvnniint8", "amx_int8", "asimddp", "i8mm"}
"""x86 and Arm instructions that add up products of 8-bit numbers without overflow."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.version_option(package_name="refsam-trt")
def command(as_json: bool) -> None:
    """Tell which backends work on this machine, which do not and why.

    Exit codes: 0 at least one backend works, 2 none does.
    """
    answers = examine()
    click.echo(json.dumps(answers) if as_json else "\n".join(_lines(answers)))
    if not any(entry["works"] for entry in answers["backends"].values()):
        raise click.exceptions.Exit(RefsamError.exit_code)


def examine() -> dict[str, Any]:
    """Return everything that is known about this machine, ready for `json.dumps`.

    A part that cannot be used is an object with the one key `error`. `backends` maps names to
    `works` and `reason`, best backend first. Takes seconds: libraries are tried in processes of
    their own, so that none can take this one with it.
    """
    packages = _package_versions()
    return {
        "refsam_trt": packages.pop("refsam-trt"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "packages": packages,
        "problems": _problems(packages),
        "onnxruntime": probe.ask("onnxruntime"),
        "video": probe.ask("video"),
        "cuda": probe.ask("cuda"),
        "tensorrt": {module: _is_installed(module) for module in _TENSORRT_MODULES.values()},
        "backends": {
            **{name: _tried("tensorrt", name) for name in _TENSORRT_MODULES},
            **{name: _tried("backend", name) for name in _RUNNING_BACKENDS},
        },
        "auto": _auto(),
    }


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in ("refsam-trt", *_PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _problems(packages: dict[str, str | None]) -> list[str]:
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall both, then install one of them"
        ]
    return []


def _cpu() -> dict[str, Any]:
    flags = cpu.features()
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    return {
        "name": cpu.processor(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "features": [name for name in _FEATURES if name in flags] if flags else None,
        "has_int8_dot_product": bool(flags & _INT8_FEATURES) if flags else None,
    }


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _tried(question: str, name: str) -> dict[str, Any]:
    answer = probe.ask(question, name)
    if "error" in answer:
        return {"works": False, "reason": answer["error"]}
    reason = (
        f"version {answer['version']} opened on {answer['gpu']}; plans are tried when loaded"
        if question == "tensorrt"
        else f"its test graph ran; {answer['precision_notes']}"
    )
    return {"works": True, "reason": reason}


def _auto() -> dict[str, Any]:
    """Return what `auto` has measured on this account: per bundle the backend, and why."""
    from refsam_trt.session import fastest  # numpy and more, which may be what is broken

    try:
        folder = fastest.records_folder()
    except UsageError as error:
        return {"error": str(error)}
    return {
        "folder": str(folder),
        "measured": [
            {
                **msgspec.to_builtins(measurement.key),
                "backend": measurement.backend,
                "reason": measurement.reason,
            }
            for measurement in fastest.kept_measurements(folder)
        ],
    }


def _lines(answers: dict[str, Any]) -> list[str]:
    return [
        f"refsam-trt {answers['refsam_trt']}, Python {answers['python']}, {answers['platform']}",
        _cpu_line(answers["cpu"]),
        f"packages: {_listed(answers['packages'])}",
        *(f"PROBLEM: {problem}" for problem in answers["problems"]),
        _part_line("ONNX Runtime", answers["onnxruntime"], _onnxruntime_text),
        _part_line("video", answers["video"], _video_text),
        _part_line("CUDA driver", answers["cuda"], _cuda_text),
        *(
            f"module {name}: {'installed' if is_there else 'not installed'}"
            for name, is_there in answers["tensorrt"].items()
        ),
        "backends:",
        *(
            f"  {name:<13}{'works' if entry['works'] else 'no':<7}{entry['reason']}"
            for name, entry in answers["backends"].items()
        ),
        _part_line("backend auto", answers["auto"], _auto_text),
    ]


def _part_line(label: str, part: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
    return f"{label}: {part['error'] if 'error' in part else text(part)}"


def _cpu_line(cpu: dict[str, Any]) -> str:
    features = "unknown" if cpu["features"] is None else " ".join(cpu["features"]) or "none"
    int8 = {None: "unknown", True: "yes", False: "no"}[cpu["has_int8_dot_product"]]
    return (
        f"CPU: {cpu['name']}, {cpu['num_usable_cores']} of {cpu['num_cores']} cores usable; "
        f"features: {features}; 8-bit dot products: {int8}"
    )


def _listed(packages: dict[str, str | None]) -> str:
    there = [f"{name} {version}" for name, version in packages.items() if version]
    absent = [name for name, version in packages.items() if not version]
    return ", ".join(there) + (f"; not installed: {', '.join(absent)}" if absent else "")


def _auto_text(part: dict[str, Any]) -> str:
    lines = [
        f"  bundle {entry['bundle_id'][:12]}, {entry['variant']}: {entry['backend']}; "
        f"{entry['reason']}"
        for entry in part["measured"]
    ]
    told = "what was measured is kept in" if lines else "nothing measured yet in"
    return "\n".join([f"{told} {part['folder']}", *lines])


def _onnxruntime_text(part: dict[str, Any]) -> str:
    return f"{part['version']}, providers {', '.join(part['providers'])}"


def _video_text(part: dict[str, Any]) -> str:
    encoders = ", ".join(part["encoders"]) or "nothing that overlay videos need (libx264)"
    return f"PyAV {part['pyav']}, decodes {', '.join(part['decoders'])}, encodes {encoders}"


def _cuda_text(part: dict[str, Any]) -> str:
    devices = [
        f"{device['name']} (compute capability {device['compute_capability']}, "
        f"{device['memory_mib']} MiB)"
        for device in part["devices"]
    ]
    return f"for CUDA {part['driver_version']}; {', '.join(devices) or 'no device'}"


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "cpu", _NAME)
