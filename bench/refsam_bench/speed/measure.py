"""Engine against the reference loop, interleaved in one run (`refsam-bench speed`).

The reference loop is what the released scripts do: for every expression of every frame it encodes
the text and the image again, then decodes. Both sides are timed from the frame in host memory to
the masks in host memory at the frame's size. PyTorch is imported for the loop alone: the process
that measures the engine's memory must not hold it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refsam_bench.speed.timing import Stopwatch, Summary, TimedBackend
from refsam_export.parity.compare import mask_iou
from refsam_export.parity.inputs import moving_frames
from refsam_trt.backends.select import open_backend
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.doctor import cpu
from refsam_trt.errors import InternalError
from refsam_trt.session.engine import Engine
from refsam_trt.session.session import Session
from refsam_trt.session.variants import choose_variant
from refsam_trt.versions import version_of

if TYPE_CHECKING:
    from refsam_bench.trackers.reference_loop import ReferenceLoop

WORDS = ("red disc", "blue ball on the left", "striped square", "the large star at the top")
FRAME_SEED = 21
_INSIDE = ("upload", "image_encoder", "decoder_step", "download")


@dataclass(frozen=True)
class SpeedRequest:
    """What `refsam-bench speed` was asked for."""

    bundle: Path
    source: Path | None = None
    variant: str | None = None
    backend: str = "auto"
    num_frames: int = 20
    num_warmup: int = 2
    num_expressions: int = 2
    frame_hw: tuple[int, int] = (480, 854)
    num_threads: int | None = None
    with_reference: bool = True

    def to_json(self) -> str:
        """Return the text from which `from_json` makes an equal request."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> SpeedRequest:
        """Make a request from the text of `to_json`."""
        values = json.loads(text)
        source = values["source"] and Path(values["source"])
        paths = {"bundle": Path(values["bundle"]), "source": source}
        return cls(**{**values, **paths, "frame_hw": tuple(values["frame_hw"])})


def expressions(count: int) -> list[str]:
    """Return that many different expressions."""
    return [f"{WORDS[i % len(WORDS)]} number {i}" for i in range(count)]


def measure_speed(request: SpeedRequest, progress: Callable[[], None]) -> dict[str, Any]:
    """Time both sides frame by frame, in turn, and return one JSON object.

    Args:
        request: what to measure.
        progress: called after every frame.
    """
    bundle = open_bundle(request.bundle)
    variant = choose_variant(bundle.manifest, request.variant)
    loop = reference_loop(bundle, request) if request.with_reference else None
    stopwatch, slow = Stopwatch(), Stopwatch()
    backend = TimedBackend(open_backend(request.backend, request.num_threads), stopwatch)
    texts = expressions(request.num_expressions)
    agreement: list[float] = []
    with (
        Engine(bundle, variant, backend, "lazy") as engine,
        engine.open_video(original_hw=request.frame_hw) as video,
    ):
        for text in texts:
            video.add_expression(text)
        stopwatch.discard()
        num_frames = request.num_warmup + request.num_frames
        for index, frame in enumerate(moving_frames(num_frames, FRAME_SEED, request.frame_hw)):
            masks = _engine_frame(video, frame, stopwatch)
            if loop:
                with slow.stage("frame"):
                    expected = loop.step(frame, texts)
                agreement.extend(map(mask_iou, masks, expected))
            for watch in (stopwatch, slow):
                (watch.discard if index < request.num_warmup else watch.lap)()
            progress()
    return {
        "bundle_id": bundle.bundle_id,
        "variant": variant,
        "backend": backend.name,
        "random_weights": bundle.manifest.weights.random_init_seed is not None,
        "scope": "frame in host memory to masks in host memory, at the frame's size",
        "num_warmup": request.num_warmup,
        "num_expressions": request.num_expressions,
        "frame_hw": list(request.frame_hw),
        "stages": _stages(stopwatch),
        "engine": _side(stopwatch.seconds("frame")),
        "reference": _side(slow.seconds("frame")) if loop else None,
        "speedup": _ratio(slow.seconds("frame"), stopwatch.seconds("frame")) if loop else None,
        "min_mask_iou": min(agreement) if loop else None,
        "peak_memory_mib": _peak_memory(request),
        "environment": environment(request.num_threads),
    }


def environment(num_threads: int | None) -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("refsam-trt", "onnxruntime", "torch", "numpy")
    return {
        "machine": platform.machine(),
        "processor": cpu.processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": num_threads,
        "python": platform.python_version(),
        **{name: version_of(name) for name in packages},
    }


def reference_loop(bundle: Bundle, request: SpeedRequest) -> ReferenceLoop:
    """Return the reference loop with the weights that the bundle was made from."""
    import torch

    from refsam_bench.trackers.reference_loop import ReferenceLoop
    from refsam_export.source import load_source

    if request.num_threads:
        torch.set_num_threads(request.num_threads)
    return ReferenceLoop(load_source(bundle, request.source))


def _engine_frame(
    video: Session, frame: np.ndarray[Any, Any], stopwatch: Stopwatch
) -> list[np.ndarray[Any, Any]]:
    with stopwatch.stage("frame"):
        with stopwatch.stage("step"):
            results = video.step(frame)
        with stopwatch.stage("postprocess"):
            return [result.mask for result in results]


def _stages(stopwatch: Stopwatch) -> dict[str, dict[str, float]]:
    """Summarise the stages of the step; `preprocess` is what the others leave of it."""
    inside = {name: stopwatch.seconds(name) for name in _INSIDE if name in stopwatch.stages}
    rest = np.asarray(stopwatch.seconds("step")) - np.sum(list(inside.values()), axis=0)
    stages = {"preprocess": rest, **inside, "postprocess": stopwatch.seconds("postprocess")}
    return {name: asdict(Summary.of(seconds)) for name, seconds in stages.items()}


def _side(seconds: list[float]) -> dict[str, float]:
    summary = asdict(Summary.of(seconds))
    return {**summary, "fps": 1e3 / summary["p50_ms"]}


def _ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    ratios = np.asarray(slow) / np.asarray(fast)
    p10, p50, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    return {"p10": p10, "p50": p50, "p90": p90}


def _peak_memory(request: SpeedRequest) -> dict[str, float | None]:
    """Peak resident memory of the engine, and of the reference, each in a process of its own."""
    return {
        "engine": _peak_mib("engine", request),
        "reference": _peak_mib("reference", request) if request.with_reference else None,
    }


def _peak_mib(side: str, request: SpeedRequest) -> float:
    command = [sys.executable, "-m", "refsam_bench.speed.memory", side, request.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InternalError(
            f"measuring the memory of the {side} failed with exit code {done.returncode}:\n"
            f"{done.stderr}"
        )
    return float(json.loads(done.stdout)["peak_mib"])
