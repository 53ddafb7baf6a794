"""A machine with a GPU, for `refsam-bench gpu`: CUDA, TensorRT and ONNX Runtime are stand-ins."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import fake_ort_cuda
import pytest
import torch
from fake_tensorrt import fake_tensorrt

from refsam_bench.gpu import pytorch_checks
from refsam_bench.gpu.pytorch import COMPILED, compiled_graphs
from refsam_bench.gpu.request import Job
from refsam_bench.gpu.steps import Event, StepRunner
from refsam_bench.gpu.worker import JOBS
from refsam_trt.doctor import probe

NO_RTX = "TensorRT-RTX is not for this GPU"


def install(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
    """Make this machine one with a GPU; returns the stand-in for TensorRT."""
    fake_cuda.install(monkeypatch)
    fake_ort_cuda.install(monkeypatch)
    trt = fake_tensorrt("11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(probe, "ask", answer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(pytorch_checks, "torch_device", lambda: torch.device("cpu"))
    eager = functools.partial(compiled_graphs, backend="eager")
    monkeypatch.setitem(pytorch_checks.MAKERS, COMPILED, ("fp16", eager))
    return trt


def answer(*question: str) -> dict[str, Any]:
    """Answer as `probe` would there."""
    answers: dict[tuple[str, ...], dict[str, Any]] = {
        ("cuda",): fake_cuda.GPU,
        ("onnxruntime",): {"version": "1.31.1", "providers": [fake_ort_cuda.CUDA]},
        ("tensorrt", "tensorrt"): {"version": "11.4.0.106", "gpu": "Some GPU"},
        ("tensorrt", "tensorrt-rtx"): {"error": NO_RTX},
        ("backend", "ort-cuda"): {"precision_notes": "every type as written"},
    }
    return answers[question]


def run_here(job: Job, tell: Callable[[Event], None], log: Path, timeout_s: float | None) -> None:
    """Run a job in this process, through the same JSON as between processes."""
    del log, timeout_s
    JOBS[job.kind](
        Job.from_json(job.to_json()), StepRunner(lambda event: tell(json.loads(json.dumps(event))))
    )
