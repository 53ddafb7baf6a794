"""The image encoder of a model with chosen linear layers quantised, as ONNX files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from refsam_calibration.quantise.layers import select_layers
from refsam_calibration.quantise.qdq import QuantisedLinear, insert_qdq
from refsam_calibration.quantise.schemes import Scheme
from refsam_export.onnx.export import export_graph
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.typed_program import trace, typed_module
from refsam_export.refsam.graphs import ImageEncoderGraph
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, specs_of
from refsam_export.variants import GraphForm, graph_entry
from refsam_trt.contract.manifest import GraphEntry
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.errors import UsageError

_ENCODER = "image_encoder."
_IN_GRAPH = "encoder."
"""Where `ImageEncoderGraph` holds the encoder that `RefSam` holds as `image_encoder`."""


def check_ranges(model: RefSam, ranges: Mapping[str, float]) -> dict[str, float]:
    """Return ranges in the order that the layers run in, once all of them can be used.

    Raises:
        UsageError: none, one of a layer that cannot be quantised, or one that is no magnitude.
    """
    if not ranges:
        raise UsageError("no layer to quantise: ranges are empty; calibrate some layers first")
    for name, amax in ranges.items():
        if not (math.isfinite(amax) and amax > 0):
            raise UsageError(
                f"{name}: range {amax}, a finite magnitude above 0 expected; calibrate with clips "
                "in which this layer gives something, or leave the layer out"
            )
    return {name: ranges[name] for name in select_layers(model.config, ranges)}


def write_quantised_encoder(
    model: RefSam,
    ranges: Mapping[str, float],
    scheme: Scheme,
    base: str,
    form: GraphForm,
    path: Path,
    file: str,
) -> GraphEntry:
    """Write the image encoder with quantised layers and an fp32 or fp16 rest.

    Args:
        model: fp32, SmoothQuant's factors folded in.
        ranges: largest magnitude of a layer's input, by module path within `RefSam`; the layers to
            quantise (`check_ranges`).
        scheme: which 8 bits.
        base: `fp32` or `fp16`.
        form: split, attention and rewrites; `merged-mlp`, which has layers of its own, is none.
        path: `.onnx` file to write, weights beside it.
        file: its path in the bundle.

    Returns:
        The manifest's entry.

    Raises:
        InternalError: the exported graph is not made of the model's layers.
    """
    spec = specs_of(model, form.split)[IMAGE_ENCODER]
    module: nn.Module = ImageEncoderGraph(model, form.split, form.attention, form.rewrites).eval()
    if base in POLICIES:
        module = typed_module(trace(module, spec, LIMITS), POLICIES[base])
    layers = {}
    for name, amax in ranges.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        layers[_IN_GRAPH + name.removeprefix(_ENCODER)] = QuantisedLinear(amax, weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage = form.weight_storage if base == "fp32" else "fp32"
    counts = export_graph(
        module, spec, path, LIMITS, storage, lambda graph: insert_qdq(graph, layers, scheme)
    )
    return graph_entry(file, path, spec, f"{scheme}-{base}", counts)
