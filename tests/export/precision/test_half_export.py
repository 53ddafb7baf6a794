"""Bundles in half precision: what is written, what is proven, and how it runs."""

import copy
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest
import torch
from exported import exported
from onnx import TensorProto
from reference_models import image_of, loaded, model, relative, variant

import refsam_trt
from refsam_export import exporter, model_stages, variants
from refsam_export.exporter import export_bundle
from refsam_export.model_stages import ModelStages
from refsam_export.parity import inputs
from refsam_export.parity import reference as parity_reference
from refsam_export.parity.figures import BOUNDS, Parity
from refsam_export.parity.half import HalfParity, half_figures
from refsam_export.parity.inputs import EXPRESSIONS, moving_frames
from refsam_export.parity.reference import write_reference
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.range_audit import MAX_ABSOLUTE, RangeFigures
from refsam_export.precision.typed_program import rounded_module
from refsam_export.refsam.programs import trace_graphs
from refsam_export.request import ExportRequest
from refsam_export.variants import Written
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract import refsam
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.errors import ParityError

NAME = "fp16-augmented-optimised"
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(exported(tmp_path_factory, "tiny", precisions=("fp16",)))


def test_graphs_state_their_precision_and_keep_the_contract(bundle: Bundle) -> None:
    variant = bundle.manifest.variants[NAME]
    assert variant.precision == "fp16"
    assert {name: entry.precision for name, entry in variant.graphs.items()} == {
        IMAGE_ENCODER: "fp16",
        TEXT_ENCODER: "fp32",
        DECODER_STEP: "fp16",
    }
    contract = refsam.contract(128, 8, "optimised")  # float32 between graphs, token included
    assert {name: entry.spec for name, entry in variant.graphs.items()} == contract


def test_nearly_all_arithmetic_is_half(bundle: Bundle) -> None:
    graphs = bundle.manifest.variants[NAME].graphs
    for name in (IMAGE_ENCODER, DECODER_STEP):
        flops, nodes = graphs[name].flops, graphs[name].node_dtypes
        assert set(flops) == {"float16", "float32"}
        assert flops["float16"] > 0.97 * sum(flops.values()), name
        assert nodes["float16"] > 0.6 * sum(nodes.values()), name
    assert set(graphs[TEXT_ENCODER].flops) == {"float32"}


def test_types_are_those_that_onnx_infers(bundle: Bundle) -> None:
    for entry in bundle.manifest.variants[NAME].graphs.values():
        file = onnx.load(bundle.path(entry.file), load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(file, strict_mode=True, data_prop=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
        found: dict[str, int] = {}
        for node in graph.node:
            kind = types[node.output[0]]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind).name
            found[dtype] = found.get(dtype, 0) + 1
            if node.op_type in PRODUCTS:
                is_half = entry.precision == "fp16"
                assert kind == (TensorProto.FLOAT16 if is_half else TensorProto.FLOAT)
        assert found == entry.node_dtypes


def test_parity_holds_in_onnxruntime_in_rounding_and_in_range(bundle: Bundle) -> None:
    figures = bundle.manifest.parity[NAME]
    assert figures["passed"]
    assert (figures["precision"], figures["backend"]) == ("fp16", "ort-cpu")
    rounded, audit = figures["rounded"], figures["range_audit"]
    assert rounded["backend"] == "pytorch-rounded"
    bounds = BOUNDS["fp16"]
    for part in (figures, rounded):
        assert part["bounds"] == vars(bounds)
        assert 1e-5 < part["max_graph_error"] <= bounds.max_relative_error
        assert bounds.min_mask_iou <= part["min_mask_iou"] <= 1
        assert len(part["chain"]) == 2 + 2 + 3  # the third expression joins late
    assert 0 < audit["max_abs"] <= audit["bound"] == MAX_ABSOLUTE
    assert audit["largest"][0]["max_abs"] == audit["max_abs"]


def test_a_session_runs_in_fp16(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="refsam_trt")
    with (
        refsam_trt.load(bundle.folder, precision="fp16", backend="fake") as engine,
        engine.open_video() as video,
    ):
        assert engine.variant == NAME
        video.add_expression(EXPRESSIONS[0])
        masks = [video.step(frame)[0].mask for frame in moving_frames(3, seed=5)]
    assert all(mask.any() and not mask.all() for mask in masks)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_reference(loaded("tiny"), "optimised", 3, folder)
    return folder


def test_bf16_is_judged_in_pytorch(reference: Path) -> None:
    programs = trace_graphs(model("tiny"), "optimised", "augmented")
    figures = half_figures(
        "bf16-x", loaded("tiny"), "optimised", programs, POLICIES["bf16"], reference
    )
    assert figures.range_audit is None  # the range is that of fp32
    assert set(figures.to_json()) == {"rounded"}
    rounded = figures.rounded
    assert rounded.passed
    assert BOUNDS["fp16"].max_relative_error < rounded.max_graph_error
    assert rounded.verdict.startswith("parity passed: ")
    assert rounded.verdict.endswith("(bf16-x on pytorch-rounded)")


def test_half_precision_hears_what_the_reference_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capital letters, where the configuration keeps them: lower-cased, masks are others."""
    said = ("the RED disc", "the largest STRIPED ball", "Blue Square")
    monkeypatch.setattr(inputs, "EXPRESSIONS", said)
    monkeypatch.setattr(parity_reference, "EXPRESSIONS", said)
    cased = replace(loaded("tiny"), model=variant("tiny", lowercase=False))
    write_reference(cased, "optimised", 3, tmp_path)
    programs = trace_graphs(cased.model, "optimised", "augmented")
    arguments = ("optimised", programs, POLICIES["fp16"], tmp_path)
    assert half_figures("x", cased, *arguments).rounded.max_chain_error < 0.05
    lowered = half_figures("x", loaded("tiny"), *arguments)
    assert lowered.rounded.max_chain_error > 0.05


def test_an_overflow_is_refused_although_onnxruntime_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """Everything but the audit is from the bundle that passed."""
    figures = bundle.manifest.parity[NAME]
    parity = msgspec.convert(figures, Parity)
    audit = msgspec.convert(figures["range_audit"], RangeFigures)
    largest = replace(audit.largest[0], max_abs=1e5, module="neck", tensor="conv2d")
    audit = replace(audit, passed=False, max_abs=1e5, largest=(largest,))
    judged = HalfParity(msgspec.convert(figures["rounded"], Parity), audit)
    copies = {n: tmp_path / n for n in bundle.manifest.files if n.startswith("graphs/")}
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.path(name).read_bytes())
    written = Written({NAME: bundle.manifest.variants[NAME]}, copies)
    own = replace(loaded("tiny"), model=copy.deepcopy(loaded("tiny").model))
    monkeypatch.setattr(model_stages, "load_model", lambda *_, **__: own)
    monkeypatch.setattr(variants, "trace_graphs", lambda *_: {})
    monkeypatch.setattr(model_stages, "write_variants", lambda *_: written)
    monkeypatch.setattr(ModelStages, "reference", lambda stages: stages.folder)
    monkeypatch.setattr(model_stages, "half_figures", lambda *_: judged)
    monkeypatch.setattr(exporter, "in_process", lambda *_, **__: parity)
    request = ExportRequest("tiny", tmp_path / "out", random_init=0, precisions=("fp16",))
    said: list[str] = []
    with pytest.raises(ParityError) as refused:
        export_bundle(request, said.append)
    assert str(refused.value) == (
        f"range FAILED: largest of {audit.num_tensors} fp16 tensors 1e+05 (conv2d, "
        f"{largest.operator} of neck), at most 16384 allowed; no bundle was written"
    )
    assert any(line.startswith("parity passed: ") for line in said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_three_precisions_share_what_they_have_in_common(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bundle = open_bundle(exported(tmp_path_factory, "tiny", precisions=("fp32", "fp16", "bf16")))
    variants = {v.precision: v for v in bundle.manifest.variants.values()}
    assert sorted(variants) == ["bf16", "fp16", "fp32"]
    text = {name: variant.graphs[TEXT_ENCODER] for name, variant in variants.items()}
    assert text["fp32"] == text["fp16"] != text["bf16"]
    files = {entry.file for variant in variants.values() for entry in variant.graphs.values()}
    assert len(files) == 8
    assert bundle.manifest.parity["bf16-augmented-optimised"]["backend"] == "pytorch-rounded"
    sizes = {
        name: bundle.path(f"{variant.graphs[IMAGE_ENCODER].file}.data").stat().st_size
        for name, variant in variants.items()
    }
    assert sizes["fp16"] < 0.52 * sizes["fp32"]
    assert set(variants["bf16"].graphs[IMAGE_ENCODER].flops) == {"bfloat16", "float32"}


@pytest.mark.slow
def test_vitb_in_fp16_stays_within_its_bound() -> None:
    of = model("vitb")
    encoder = trace_graphs(of, "optimised", "augmented")[IMAGE_ENCODER]
    given = (image_of(of),)
    with torch.no_grad():
        found, expected = rounded_module(encoder, POLICIES["fp16"])(*given), encoder(*given)
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= BOUNDS["fp16"].max_relative_error, errors
