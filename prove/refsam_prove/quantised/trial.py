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
from refsam_calibration.ranges.watching import RangeWatcher, watching
from refsam_engines.build import BuildOptions, GraphSource, build_plan
from refsam_engines.profiles import Sizes, profiles_for
from refsam_export.onnx.export import export_graph
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.checkpoint import load_model
from refsam_export.refsam.graphs import ImageEncoderGraph
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, specs_of
from refsam_export.request import ExportRequest
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.image.preprocess import Preprocessor

FORMS = ("augmented", "bias")
"""Attention that is timed; the fastest of each precision counts."""
HEAT_ROUNDS = 3
"""In which the forms of one precision are compared before the fastest of each meet."""
_SEED = 0


def encoder_speed(preset: str, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Time the image encoder on ONNX Runtime's CPU provider: fp32 and int8, in turn.

    Heats choose the fastest attention of each precision; those two meet in one interleaved run.

    Args:
        preset: of the model.
        num_rounds: that count, after one that does not.
        num_threads: inside a graph run.
    """
    model, image = _model_and_image(preset)
    ranges = _ranges(model, image)
    spec = specs_of(model, "optimised")[IMAGE_ENCODER]
    backend = OrtCpuBackend(num_threads)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {
            f"{precision}-{attention}": Path(scratch) / f"{precision}-{attention}.onnx"
            for precision in ("fp32", "int8")
            for attention in FORMS
        }
        for name, path in paths.items():
            precision, attention = name.split("-")
            _write(model, ranges, preset, attention, precision, path)
        del model

        def timed(names: list[str], rounds: int) -> dict[str, list[float]]:
            forms = {name: _call(backend, paths[name], spec, image) for name in names}
            return time_in_turn(forms, rounds)

        # Never more than two sessions at once: each keeps gigabytes of scores at 1024x1024.
        heats = {
            precision: timed([f"{precision}-{attention}" for attention in FORMS], HEAT_ROUNDS)
            for precision in ("fp32", "int8")
        }
        fastest = [min(heat, key=lambda name: np.median(heat[name])) for heat in heats.values()]
        seconds = timed(fastest, num_rounds)
    gate = gate_of(seconds, fastest[1])
    return {
        "preset": preset,
        "random_weights": True,
        "scope": "image encoder, one frame, image to embeddings in host memory",
        "num_layers": len(ranges),
        "heats": {
            name: asdict(row) for heat in heats.values() for name, row in summaries(heat).items()
        },
        "forms": {name: asdict(row) for name, row in summaries(seconds).items()},
        "gate": asdict(gate),
        "environment": environment(num_threads),
    }


def adapter_speed(preset: str, num_rounds: int, num_threads: int) -> dict[str, Any]:
    """Time the int8 image encoder with adapters in int8 and in fp32, in turn, on ONNX Runtime.

    Args:
        preset: of the model.
        num_rounds: that count, after one that does not.
        num_threads: inside a graph run.
    """
    model, image = _model_and_image(preset)
    ranges = _ranges(model, image)
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
            _write(model, some, preset, FORMS[1], "int8", path)
            forms[name] = _call(backend, path, spec, image)
        del model
        seconds = time_in_turn(forms, num_rounds)
    gate = gate_of(seconds, "int8 adapters")
    return {
        "preset": preset,
        "random_weights": True,
        "num_layers": {name: len(some) for name, some in quantised.items()},
        "forms": {name: asdict(row) for name, row in summaries(seconds).items()},
        "speedup": asdict(gate.speedup),
        "environment": environment(num_threads),
    }


def rtx_plan(preset: str, precision: str) -> dict[str, Any]:
    """Build the quantised image encoder with TensorRT-RTX; return what the plan is made of.

    Args:
        preset: of the model.
        precision: of the graph, such as `int8-fp16`.
    """
    model, image = _model_and_image(preset)
    ranges = _ranges(model, image)
    flavour = open_flavour("tensorrt-rtx")
    scheme, _, base = precision.partition("-")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image_encoder.onnx"
        form = ExportRequest(preset, path.parent).form
        entry = write_quantised_encoder(
            model,
            ranges,
            scheme,  # type: ignore[arg-type]
            base,
            form,
            path,
            path.name,
        )
        profiles = profiles_for(entry.spec, Sizes())
        source = GraphSource(path, entry.spec, entry.precision, profiles)
        report = build_plan(flavour, source, BuildOptions(), path.with_suffix(".plan"))
    return {
        "preset": preset,
        "precision": precision,
        "tensorrt_rtx": flavour.version,
        "num_layers": len(ranges),
        "flops": entry.flops,
        "graph": msgspec.to_builtins(report),
    }


def _model_and_image(preset: str) -> tuple[RefSam, Tensor]:
    model = load_model(preset, random_init=_SEED).model
    (frame,) = moving_frames(1, _SEED)
    return model, torch.from_numpy(Preprocessor(frame.shape[:2], model.config.preprocess)(frame))


def _ranges(model: RefSam, image: Tensor) -> dict[str, float]:
    watchers = {name: RangeWatcher() for name in quantisable_layers(model.config)}
    with torch.no_grad(), watching(model, watchers):
        model.image_encoder(image)
    return {name: watcher.amax for name, watcher in watchers.items()}


def _write(
    model: RefSam,
    ranges: dict[str, float],
    preset: str,
    attention: str,
    precision: str,
    path: Path,
) -> None:
    form = ExportRequest(preset, path.parent, attention=attention).form
    if precision == "int8":
        write_quantised_encoder(model, ranges, "int8", "fp32", form, path, path.name)
        return
    module = ImageEncoderGraph(model, form.split, attention, form.rewrites).eval()
    export_graph(module, specs_of(model, form.split)[IMAGE_ENCODER], path, LIMITS)


def _call(backend: OrtCpuBackend, path: Path, spec: GraphSpec, image: Tensor) -> Any:
    context = backend.load(path, spec).context()
    inputs = {"image": backend.upload(image.numpy())}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in spec.outputs}
    return lambda: context.run(inputs, outputs)
