"""Engine against the reference loop, interleaved in one run (`refsam-bench speed`).

The reference loop is what the released scripts do: for every expression of every frame it encodes
the text and the image again, then decodes. Both sides are timed from the frame in host memory to
the masks in host memory at the frame's size.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refsam_bench.timing import Stopwatch, Summary, TimedBackend
from refsam_export.checkpoint import LoadedModel
from refsam_export.parity.inputs import moving_frames
from refsam_export.source import load_source
from refsam_trt.backends.select import open_backend
from refsam_trt.bundle import Bundle, open_bundle
from refsam_trt.engine import Engine, choose_variant
from refsam_trt.postprocess import Postprocessor
from refsam_trt.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.session import Session

WORDS = ("red disc", "blue ball on the left", "striped square", "the large star at the top")
FRAME_SEED = 21


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
    stopwatch, slow = Stopwatch(), Stopwatch()
    backend = TimedBackend(open_backend(request.backend, request.num_threads), stopwatch)
    frames = moving_frames(request.num_warmup + request.num_frames, FRAME_SEED, request.frame_hw)
    if request.num_threads:
        torch.set_num_threads(request.num_threads)
    loop = _reference_loop(bundle, request) if request.with_reference else None
    with Engine(bundle, variant, backend, "lazy") as engine, engine.open_video() as video:
        texts = expressions(request.num_expressions)
        for text in texts:
            video.add_expression(text)
        stopwatch.discard()
        for index, frame in enumerate(frames):
            _engine_frame(video, frame, stopwatch)
            if loop:
                with slow.stage("frame"):
                    loop.step(frame, texts)
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
        "engine": _side(stopwatch.laps["frame"]),
        "reference": _side(slow.laps["frame"]) if loop else None,
        "speedup": _ratio(slow.laps["frame"], stopwatch.laps["frame"]) if loop else None,
        "peak_memory_mib": _peak_memory(request),
        "environment": environment(request.num_threads),
    }


class ReferenceLoop:
    """PyTorch, text and image encoded again for every expression of every frame."""

    def __init__(self, loaded: LoadedModel, frame_hw: tuple[int, int]) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._tokens: dict[str, torch.Tensor] = {}
        config = self._model.config
        preprocess = PreprocessConfig(config.image_size, config.downscale_short_side)
        self._preprocessor = Preprocessor(frame_hw, preprocess)
        low_res_hw = (4 * config.grid_size,) * 2
        self._postprocessor = Postprocessor(self._preprocessor.geometry, low_res_hw)

    def step(self, frame: np.ndarray[Any, Any], texts: list[str]) -> list[np.ndarray[Any, Any]]:
        """Return one bool mask [H, W] per expression."""
        masks = []
        for text in texts:
            with torch.no_grad():
                logits = self._expression(self._preprocessor(frame), text)
            masks.append(self._postprocessor.logits(logits) > 0)
        return masks

    def _expression(self, image: np.ndarray[Any, Any], text: str) -> np.ndarray[Any, Any]:
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        words, sentence = self._model.encode_text(ids, torch.ones_like(ids))
        embedding, features = self._model.encode_image(torch.from_numpy(image))
        token = self._tokens.get(text)
        out = self._model.step(
            embedding,
            features,
            words,
            torch.ones_like(ids, dtype=torch.bool),
            sentence,
            torch.zeros(1, words.shape[-1]) if token is None else token,
            torch.tensor([token is not None]),
        )
        self._tokens[text] = out.next_track_token
        return out.low_res_logits[0, 0].numpy()


def environment(num_threads: int | None) -> dict[str, Any]:
    """Return what the figures were measured on."""
    packages = ("refsam-trt", "onnxruntime", "torch", "numpy")
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "num_cpus": os.cpu_count(),
        "num_threads": num_threads,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _reference_loop(bundle: Bundle, request: SpeedRequest) -> ReferenceLoop:
    return ReferenceLoop(load_source(bundle, request.source), request.frame_hw)


def _engine_frame(video: Session, frame: np.ndarray[Any, Any], stopwatch: Stopwatch) -> None:
    with stopwatch.stage("frame"):
        with stopwatch.stage("step"):
            results = video.step(frame)
        with stopwatch.stage("postprocess"):
            for result in results:
                _ = result.mask


def _stages(stopwatch: Stopwatch) -> dict[str, dict[str, float]]:
    laps = dict(stopwatch.laps)
    inside = ("upload", "image_encoder", "decoder_step", "download")
    counted = [laps.get(name, [0.0] * len(laps["step"])) for name in inside]
    laps["preprocess"] = [s - sum(parts) for s, *parts in zip(laps["step"], *counted, strict=True)]
    order = ("preprocess", *inside, "postprocess")
    return {name: asdict(Summary.of(laps[name])) for name in order if name in laps}


def _side(seconds: list[float]) -> dict[str, float]:
    summary = asdict(Summary.of(seconds))
    return {**summary, "fps": 1e3 / summary["p50_ms"]}


def _ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    ratios = np.asarray(slow) / np.asarray(fast)
    p10, p50, p90 = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    return {"p10": p10, "p50": p50, "p90": p90}


def _peak_memory(request: SpeedRequest) -> dict[str, float | None]:
    """Peak resident memory of the engine, and of the reference, each in a process of its own."""
    command = [sys.executable, "-m", "refsam_bench.memory", str(request.bundle)]
    arguments = [request.variant or "", str(request.num_expressions)]
    sides: dict[str, float | None] = {"engine": None, "reference": None}
    wanted = ("engine", "reference") if request.with_reference else ("engine",)
    for side in wanted:
        extra = [str(request.source)] if request.source else []
        done = subprocess.run(
            [*command, side, *arguments, *extra], capture_output=True, text=True, check=True
        )
        sides[side] = json.loads(done.stdout)["peak_mib"]
    return sides


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((li.partition(":")[2].strip() for li in lines if li.startswith("model name")), "")
