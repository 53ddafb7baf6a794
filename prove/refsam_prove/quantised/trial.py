"""Quantised image encoders of random weights, for what does not depend on them: speed and plans.

All layers are quantised, adapters too, with the ranges of one frame. Each function is for a process
of its own: sessions of large models keep gigabytes.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from refsam_bench.speed.gate import gate_of, summaries, time_in_turn
from refsam_bench.speed.measure import environment
from refsam_calibration.quantise.layers import quantisable_layers
from refsam_calibration.quantise.quantised_graphs import write_quantised_encoder
from refsam_calibration.ranges.histogram import Histogram
from refsam_calibration.ranges.watching import watching
from refsam_engines.profiles import Sizes
from refsam_export.onnx.export import export_graph
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.checkpoint import load_model
from refsam_export.refsam.graphs import ImageEncoderGraph
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, specs_of
from refsam_export.request import ExportRequest
from refsam_prove.exports import SEED
from refsam_prove.plans import build
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.image.preprocess import Preprocessor

FORMS = ("augmented", "bias")
"""Attention that is timed; the fastest of each precision counts."""
HEAT_ROUNDS = 3
"""In which the forms of one precision are compared before the fastest of each meet."""


def encoder_speed(preset: str, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Time the image encoder on ONNX Runtime's CPU provider: fp32 and int8, in turn.

    Heats choose the fastest attention of each precision; those two meet in one interleaved run.

    Args:
        preset: of the model.
        num_rounds: that count, after one that does not.
        num_threads: inside a graph run.
    """
    model, image, ranges = calibrated(preset)
    spec = specs_of(model, "optimised")[IMAGE_ENCODER]
    backend = OrtCpuBackend(num_threads)
    with tempfile.TemporaryDirectory() as scratch:
        for attention in FORMS:
            write_encoder(model, None, attention, Path(scratch) / f"fp32-{attention}.onnx")
            write_encoder(model, ranges, attention, Path(scratch) / f"int8-{attention}.onnx")
        del model

        def timed(names: list[str], rounds: int) -> dict[str, list[float]]:
            paths = {name: Path(scratch) / f"{name}.onnx" for name in names}
            forms = {name: encoder_call(backend, path, spec, image) for name, path in paths.items()}
            return time_in_turn(forms, rounds)

        # Never more than two sessions at once: each keeps gigabytes of scores at 1024x1024.
        heats = [
            timed([f"{precision}-{attention}" for attention in FORMS], HEAT_ROUNDS)
            for precision in ("fp32", "int8")
        ]
        fastest = [min(heat, key=lambda name: np.median(heat[name])) for heat in heats]
        seconds = timed(fastest, num_rounds)
    return {
        "preset": preset,
        "random_weights": True,
        "scope": "image encoder, one frame, image to embeddings in host memory",
        "num_layers": len(ranges),
        "heats": rows(heats[0] | heats[1]),
        "forms": rows(seconds),
        "gate": asdict(gate_of(seconds, fastest[1])),
        "environment": environment(num_threads),
    }


def adapter_speed(preset: str, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Time the int8 image encoder with adapters in int8 and in fp32, as `encoder_speed` does."""
    model, image, ranges = calibrated(preset)
    layers = quantisable_layers(model.config)
    quantised = {
        "int8 adapters": ranges,
        "fp32 adapters": {n: r for n, r in ranges.items() if layers[n].kind != "adapter"},
    }
    spec = specs_of(model, "optimised")[IMAGE_ENCODER]
    backend = OrtCpuBackend(num_threads)
    with tempfile.TemporaryDirectory() as scratch:
        forms = {}
        for name, some in quantised.items():
            path = Path(scratch) / f"{name.replace(' ', '-')}.onnx"
            write_encoder(model, some, FORMS[1], path)
            forms[name] = encoder_call(backend, path, spec, image)
        del model
        seconds = time_in_turn(forms, num_rounds)
    return {
        "preset": preset,
        "random_weights": True,
        "num_layers": {name: len(some) for name, some in quantised.items()},
        "forms": rows(seconds),
        "speedup": asdict(gate_of(seconds, "int8 adapters").speedup),
        "environment": environment(num_threads),
    }


def rtx_plan(preset: str, precision: str) -> dict[str, Any]:
    """Build the quantised image encoder with TensorRT-RTX; return what the plan is made of.

    Args:
        preset: of the model.
        precision: of the graph, such as `int8-fp16`.
    """
    model, _, ranges = calibrated(preset)
    flavour = open_flavour("tensorrt-rtx")
    scheme: Any
    scheme, _, base = precision.partition("-")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image_encoder.onnx"
        form = ExportRequest(preset, path.parent).form
        entry = write_quantised_encoder(model, ranges, scheme, base, form, path, path.name)
        report = build(flavour, path, entry, Sizes())
    return {
        "preset": preset,
        "precision": precision,
        "tensorrt_rtx": flavour.version,
        "num_layers": len(ranges),
        "flops": entry.flops,
        "graph": msgspec.to_builtins(report),
    }


def calibrated(preset: str) -> tuple[RefSam, Tensor, dict[str, float]]:
    """Return a model, a network input, and the ranges of all layers on it."""
    model = load_model(preset, random_init=SEED).model
    (frame,) = moving_frames(1, SEED)
    image = torch.from_numpy(Preprocessor(frame.shape[:2], model.config.preprocess)(frame))
    watchers = {name: Histogram() for name in quantisable_layers(model.config)}
    with torch.no_grad(), watching(model, watchers):
        model.image_encoder(image)
    return model, image, {name: watcher.amax for name, watcher in watchers.items()}


def write_encoder(
    model: RefSam, ranges: dict[str, float] | None, attention: str, path: Path
) -> None:
    """Write the image encoder with these layers in int8; None is plain fp32."""
    form = ExportRequest(model.config.preset, path.parent, attention=attention).form
    if ranges is not None:
        write_quantised_encoder(model, ranges, "int8", "fp32", form, path, path.name)
        return
    module = ImageEncoderGraph(model, form.split, attention, form.rewrites).eval()
    export_graph(module, specs_of(model, form.split)[IMAGE_ENCODER], path, LIMITS)


def encoder_call(backend: OrtCpuBackend, path: Path, spec: GraphSpec, image: Tensor) -> Any:
    """Return what runs a graph once on an image, in memory that stays the same."""
    context = backend.load(path, spec).context()
    inputs = {"image": backend.upload(image.numpy())}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in spec.outputs}
    return lambda: context.run(inputs, outputs)


def rows(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return the distribution of each form's time, ready for JSON."""
    return {name: asdict(row) for name, row in summaries(seconds).items()}
