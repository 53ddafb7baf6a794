"""Quantised graphs built by the real TensorRT-RTX: products quantised, attention fused still.

Of `tiny` with fewer blocks, but for the whole bundle.
"""

from pathlib import Path

import pytest
from quantised import largest_inputs, quantised_bundle
from reference_models import loaded_shallow
from rtx_probe import needs_rtx

from refsam_calibration.quantise.layers import quantisable_layers
from refsam_calibration.quantise.quantised_graphs import write_quantised_encoder
from refsam_engines.build import BuildOptions, GraphSource, build_plan
from refsam_engines.plans import PlanRequest, build_plans
from refsam_engines.profiles import Sizes, profiles_for
from refsam_export.request import ExportRequest
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.errors import PlanBuildError

pytestmark = needs_rtx

STORED = {"int8": "INT8", "fp8": "FP8"}
BASE = {"fp32": "FLOAT", "fp16": "HALF"}


def written(stated: str, folder: Path) -> GraphSource:
    """Write an image encoder with every linear layer quantised."""
    scheme, _, base = stated.partition("-")
    of = loaded_shallow().model
    form = ExportRequest("tiny", folder).form
    path = folder / f"{stated}.onnx"
    entry = write_quantised_encoder(of, largest_inputs(of), scheme, base, form, path, path.name)
    return GraphSource(path, entry.spec, entry.precision, profiles_for(entry.spec, Sizes()))


@pytest.mark.parametrize("stated", ["int8-fp16", "int8-fp32", "fp8-fp16"])
def test_every_quantised_layer_is_parsed_and_built(tmp_path: Path, stated: str):
    source = written(stated, tmp_path)
    report = build_plan(open_flavour("tensorrt-rtx"), source, BuildOptions(), tmp_path / "x.plan")
    assert report is not None
    scheme, _, base = stated.partition("-")
    config = loaded_shallow().model.config
    num_layers = len(quantisable_layers(config))
    assert report.layers["QUANTIZE"] == {STORED[scheme]: num_layers}
    # One for the input and one for the weight of each.
    assert report.layers["DEQUANTIZE"] == {BASE[base]: 2 * num_layers}
    assert set(report.layers["MATRIX_MULTIPLY"]) == {BASE[base]}
    assert report.precision_warnings == ()
    # TensorRT-RTX fuses no attention in fp32, quantised or not.
    assert report.num_attention == config.depth
    assert report.num_fused_attention == (config.depth if base == "fp16" else 0)
    if stated == "int8-fp16":
        lying = GraphSource(source.path, source.spec, "int8-fp32", source.profiles)
        with pytest.raises(PlanBuildError, match="computes in HALF, but states int8-fp32; export"):
            build_plan(open_flavour("tensorrt-rtx"), lying, BuildOptions(), tmp_path / "y.plan")


def test_plans_of_an_int8_bundle_cite_what_they_are_compared_with(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    made = quantised_bundle(tmp_path_factory).bundle
    request = PlanRequest(
        made.folder, tmp_path / "plans", "tensorrt-rtx", "int8", max_expressions=2, max_words=8
    )
    plans = build_plans(request, lambda line: None).manifest
    assert (plans.precision, plans.variant) == ("int8", "int8-fp16-augmented-optimised")
    assert plans.golden_source == "int8-fp32-augmented-optimised"
    layers = plans.graphs[IMAGE_ENCODER].report.layers
    assert layers["QUANTIZE"] == {"INT8": len(made.manifest.quantisation.layers)}
    assert "--precision int8" in plans.build_command
