"""Real fp16 and bf16 graphs, built by the real TensorRT-RTX: types, fused attention, memory.

They are not proven here, as the exporter would: only their structure counts.
"""

from pathlib import Path

import pytest
from reference_models import loaded
from rtx_probe import needs_rtx

from refsam_engines.build import BuildOptions, GraphSource, build_plan
from refsam_engines.profiles import Sizes, profiles_for
from refsam_export.refsam.programs import specs_of
from refsam_export.request import ExportRequest
from refsam_export.variants import ModelGraphs, write_variants
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.contract.plan_manifest import GraphReport
from refsam_trt.contract.refsam import DECODER_STEP, GRAPHS, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.errors import PlanBuildError

pytestmark = needs_rtx

MAX_NANO_ACTIVATION_BYTES = 20_000_000
"""Image encoder of nano, fp16, one frame of 256x256: 18 MB with TensorRT-RTX 1.7.1."""


def written_sources(preset: str, precision: str, folder: Path) -> dict[str, GraphSource]:
    """Write the graphs of a preset; returns them by name."""
    model = loaded(preset).model
    form = ExportRequest(preset, folder, precisions=(precision,)).form
    source, specs = ModelGraphs(lambda: model, form), specs_of(model, form.split)
    written = write_variants(source, specs, form, (precision,), folder, lambda line: None)
    (variant,) = written.variants.values()
    return {
        name: GraphSource(
            written.files[entry.file],
            entry.spec,
            entry.precision,
            profiles_for(entry.spec, Sizes()),
        )
        for name, entry in variant.graphs.items()
    }


def built(sources: dict[str, GraphSource], target: Path) -> dict[str, GraphReport]:
    flavour = open_flavour("tensorrt-rtx")
    found = {n: build_plan(flavour, s, BuildOptions(), target) for n, s in sources.items()}
    return {name: report for name, report in found.items() if report is not None}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GraphSource]:
    """The fp16 graphs of nano."""
    return written_sources("nano", "fp16", tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def reports(
    sources: dict[str, GraphSource], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, GraphReport]:
    return built(sources, tmp_path_factory.mktemp("plans") / "x.plan")


def test_every_graph_builds_without_a_precision_warning(reports: dict[str, GraphReport]):
    assert {name: report.precision_warnings for name, report in reports.items()} == {
        name: () for name in GRAPHS
    }


def test_products_are_half_and_norms_are_full(reports: dict[str, GraphReport]):
    for name in (IMAGE_ENCODER, DECODER_STEP):
        layers = reports[name].layers
        assert set(layers["MATRIX_MULTIPLY"]) == {"HALF"}
        assert set(layers["SOFTMAX"]) == set(layers["NORMALIZATION"]) == {"FLOAT"}
    assert set(reports[IMAGE_ENCODER].layers["CONVOLUTION"]) == {"HALF"}
    # T5 overflows in fp16.
    assert set(reports[TEXT_ENCODER].layers["MATRIX_MULTIPLY"]) == {"FLOAT"}


def test_attention_is_fused_in_every_block(reports: dict[str, GraphReport]):
    found = reports[IMAGE_ENCODER]
    assert (found.num_attention, found.num_fused_attention) == (8, 8)
    assert found.activation_bytes is not None
    assert found.activation_bytes <= MAX_NANO_ACTIVATION_BYTES


def test_a_graph_that_is_not_what_it_states_is_refused(
    sources: dict[str, GraphSource], tmp_path: Path
):
    source = sources[IMAGE_ENCODER]
    lying = GraphSource(source.path, source.spec, "fp32", source.profiles)
    with pytest.raises(PlanBuildError, match="the graph computes in HALF, but states fp32; export"):
        build_plan(open_flavour("tensorrt-rtx"), lying, BuildOptions(), tmp_path / "x.plan")


def test_bf16_is_built_ahead_of_time_as_the_graphs_say(tmp_path: Path):
    """Of tiny; convolutions stay fp32, as ONNX has no bf16 for them, and T5 is bf16 too."""
    graphs = written_sources("tiny", "bf16", tmp_path)
    reports = built(graphs, tmp_path / "x.plan")
    assert reports.keys() == set(GRAPHS)
    for name, report in reports.items():
        assert report.precision_warnings == (), name
        assert set(report.layers["MATRIX_MULTIPLY"]) == {"BF16"}
        assert set(report.layers["SOFTMAX"]) == {"FLOAT"}
    assert set(reports[IMAGE_ENCODER].layers["CONVOLUTION"]) == {"FLOAT"}
    assert set(reports[DECODER_STEP].layers["DECONVOLUTION"]) == {"FLOAT"}
    source = graphs[DECODER_STEP]
    lying = GraphSource(source.path, source.spec, "fp16", source.profiles)
    with pytest.raises(PlanBuildError, match="the graph computes in BF16, but states fp16; export"):
        build_plan(open_flavour("tensorrt-rtx"), lying, BuildOptions(), tmp_path / "x.plan")
