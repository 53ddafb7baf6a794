"""Quantised bundles: what they hold, how they are opened and checked, what is refused."""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from fake_bundle import read_manifest, rewrite_manifest
from onnx import TensorProto, numpy_helper
from quantised import RECORD, Quantised, copied, quantised_bundle
from reference_models import model

import refsam_trt
from refsam_calibration.quantise.layers import quantisable_layers
from refsam_calibration.quantise.quantised_bundle import form_of, write_quantised_bundle
from refsam_trt.bundle.open import open_bundle
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.errors import BackendError, BundleError, OutputError, UsageError

FP32, FP16 = "int8-fp32-augmented-optimised", "int8-fp16-augmented-optimised"
FP8 = TensorProto.FLOAT8E4M3FN
INTEGER_KERNELS = {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return quantised_bundle(tmp_path_factory)


def encoder_file(bundle: refsam_trt.bundle.open.Bundle, variant: str) -> Path:
    return bundle.path(bundle.manifest.variants[variant].graphs[IMAGE_ENCODER].file)


def test_the_base_is_in_it_unchanged(made: Quantised):
    old, new = made.base.manifest, made.bundle.manifest
    assert made.bundle.bundle_id != made.base.bundle_id
    assert {name: new.variants[name] for name in old.variants} == old.variants
    assert {name: new.files[name] for name in old.files} == old.files
    without = msgspec.structs.replace(
        new, variants=old.variants, files=old.files, quantisation=None
    )
    assert without == old
    assert open_bundle(made.base.folder).bundle_id == made.base.bundle_id


def test_it_cites_the_base_and_keeps_the_record(made: Quantised):
    found = made.bundle.manifest.quantisation
    assert (found.scheme, found.base_bundle) == ("int8", made.base.bundle_id)
    assert found.layers == tuple(quantisable_layers(model("tiny").config))
    assert found.record == RECORD


@pytest.mark.parametrize(("name", "base"), [(FP32, "fp32"), (FP16, "fp16")])
def test_only_the_image_encoder_is_quantised(made: Quantised, name: str, base: str):
    variant = made.bundle.manifest.variants[name]
    plain = made.base.manifest.variants[f"{base}-augmented-optimised"]
    assert variant.precision == "int8"
    assert variant.graphs[IMAGE_ENCODER].precision == f"int8-{base}"
    for graph in (TEXT_ENCODER, DECODER_STEP):
        assert variant.graphs[graph] == plain.graphs[graph]
    flops = variant.graphs[IMAGE_ENCODER].flops
    layers = quantisable_layers(model("tiny").config).values()
    assert flops["int8"] == sum(layer.flops for layer in layers)
    floats = plain.graphs[IMAGE_ENCODER].flops
    assert sum(flops.values()) == sum(floats.values())


@pytest.mark.parametrize("name", [FP32, FP16])
def test_types_scales_and_zero_points_are_what_every_runtime_takes(made: Quantised, name: str):
    graph = onnx.load(encoder_file(made.bundle, name)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    of_base = TensorProto.FLOAT if name == FP32 else TensorProto.FLOAT16
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    weights = []
    for product in products:
        if made_by.get(product.input[1], product).op_type != "DequantizeLinear":
            continue
        for_input, for_weight = (made_by[name] for name in product.input)
        quantise = made_by[for_input.input[0]]
        assert quantise.op_type == "QuantizeLinear"
        assert quantise.input[1:] == for_input.input[1:]
        assert list(constants[for_input.input[1]].dims) == []
        codes, scales, zeros = (numpy_helper.to_array(constants[n]) for n in for_weight.input)
        assert codes.dtype == zeros.dtype == np.int8
        assert scales.shape == zeros.shape == codes.shape[1:]
        assert for_weight.attribute[0].i == 1  # a scale per output channel
        assert not zeros.any()
        assert np.abs(codes).max(axis=0).min() >= 126  # every channel uses its whole range
        for node in (for_input, for_weight):
            assert constants[node.input[1]].data_type == of_base
            assert not numpy_helper.to_array(constants[node.input[2]]).any()
        weights.append(codes.astype(np.float32) * scales)
    layers = quantisable_layers(model("tiny").config)
    assert len(weights) == len(layers)
    for found, layer in zip(weights, layers, strict=True):
        wanted = model("tiny").get_parameter(f"{layer}.weight").numpy().T
        step = np.abs(wanted).max(axis=0) / 127
        assert (np.abs(found - wanted) <= 0.502 * step).all(), layer


def test_every_quantised_layer_is_an_integer_kernel_in_onnxruntime(made: Quantised, tmp_path: Path):
    kernels = optimised_kernels(encoder_file(made.bundle, FP32), tmp_path)
    num_integer = sum(kernels[name] for name in INTEGER_KERNELS)
    assert num_integer == len(made.ranges)
    assert kernels["DequantizeLinear"] == 0


def test_a_vector_as_bias_would_leave_a_kernel_of_static_shape_in_fp32(
    made: Quantised, tmp_path: Path
):
    """What the three dims of the bias are for, on graphs whose shapes are known when loaded."""
    path = encoder_file(made.bundle, FP32)
    static = one_frame(path, tmp_path / "static.onnx", bias_dims=3)
    vector = one_frame(path, tmp_path / "vector.onnx", bias_dims=1)
    assert optimised_kernels(static, tmp_path)["MatMulIntegerToFloat"] == len(made.ranges)
    assert optimised_kernels(vector, tmp_path)["MatMulIntegerToFloat"] == 0


def one_frame(path: Path, target: Path, bias_dims: int) -> Path:
    """Write a graph with M = 1 and its biases with so many dims."""
    graph = onnx.load(path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.graph.value_info[:]
    for tensor in graph.graph.initializer:
        if tensor.name.endswith(".bias_row"):
            assert len(tensor.dims) == 3
            array = numpy_helper.to_array(tensor).reshape(*[1] * (bias_dims - 1), -1)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save_model(graph, target)
    return target


def optimised_kernels(path: Path, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimised.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def test_load_takes_the_base_that_suits_the_backend(made: Quantised):
    with refsam_trt.load(made.bundle.folder, precision="int8") as engine:
        assert (engine.backend, engine.variant) == ("ort-cpu", FP32)
    with refsam_trt.load(made.bundle.folder) as engine:
        assert engine.variant == "fp32-augmented-optimised"
    assert (
        refsam_trt.session.variants.choose_variant(made.bundle.manifest, None, "int8", "ort-cuda")
        == FP16
    )


def test_plans_are_built_from_the_fp16_base_and_compared_with_the_fp32_one(made: Quantised):
    from refsam_engines.golden import golden_source
    from refsam_engines.variants import variant_for

    assert variant_for(made.bundle, "int8") == FP16
    assert golden_source(made.bundle, FP16) == FP32


def test_a_bundle_without_int8_names_the_command_that_makes_one(made: Quantised):
    from refsam_engines.variants import variant_for

    with pytest.raises(UsageError) as error:
        refsam_trt.load(made.base.folder, precision="int8")
    assert str(error.value) == (
        "the bundle has no int8 variant; it has: fp16-augmented-optimised, "
        "fp32-augmented-optimised; name one of them, or quantise it with "
        "`refsam-calibrate BUNDLE --scheme int8 ...`"
    )
    with pytest.raises(UsageError) as error:
        variant_for(made.base, "int8")
    assert str(error.value) == (
        f"{made.base.folder}: no variant int8-augmented-optimised, only fp16-augmented-optimised, "
        "fp32-augmented-optimised; make it: refsam-calibrate BUNDLE --scheme int8 ... --output "
        "NEW_BUNDLE"
    )


def restated(made: Quantised, folder: Path, change) -> str:
    """Change the manifest of a copy; return why it is refused."""
    copy = copied(made.bundle, folder / "copy")
    manifest = read_manifest(copy)
    change(manifest)
    rewrite_manifest(copy, manifest)
    with pytest.raises(BundleError) as error:
        open_bundle(copy)
    return str(error.value).replace(str(copy), "BUNDLE")


def test_a_bundle_that_names_other_layers_than_it_quantises_is_refused(
    made: Quantised, tmp_path: Path
):
    def change(manifest):
        manifest["quantisation"]["layers"].pop()

    num = len(made.ranges)
    assert restated(made, tmp_path, change) == (
        f"BUNDLE/graphs/{FP16}/image_encoder.onnx: {num} matrix products in int8, the manifest "
        f"names {num - 1} quantised layers; write the bundle anew with refsam-calibrate"
    )


def test_quantised_variants_need_a_statement_of_what_is_quantised(made: Quantised, tmp_path: Path):
    said = restated(made, tmp_path / "1", lambda m: m.update(quantisation=None))
    assert said == (
        f"BUNDLE/manifest.json: variant {FP16!r}: precision 'int8', but quantisation says nothing; "
        "write the bundle anew with refsam-calibrate"
    )
    said = restated(made, tmp_path / "2", lambda m: m["quantisation"].update(scheme="fp8"))
    assert f"but quantisation says fp8 of {len(made.ranges)} layers; write" in said


def test_a_float_graph_that_is_called_int8_is_refused(made: Quantised, tmp_path: Path):
    def change(manifest):
        graphs = manifest["variants"][FP32]["graphs"]
        plain = manifest["variants"]["fp32-augmented-optimised"]["graphs"]
        graphs["image_encoder"] = plain["image_encoder"] | {"precision": "int8-fp32"}

    assert restated(made, tmp_path, change) == (
        "BUNDLE/graphs/fp32-augmented-optimised/image_encoder.onnx: states the precision "
        "int8-fp32, but no matrix product computes in int8; export the bundle anew with "
        "refsam-export"
    )


def test_an_int8_graph_that_is_called_fp32_is_refused(made: Quantised, tmp_path: Path):
    def change(manifest):
        graphs = manifest["variants"][FP32]["graphs"]
        plain = manifest["variants"]["fp32-augmented-optimised"]["graphs"]
        plain["image_encoder"] = graphs["image_encoder"] | {"precision": "fp32"}

    num = len(made.ranges)
    assert restated(made, tmp_path, change) == (
        f"BUNDLE/graphs/{FP32}/image_encoder.onnx: states the precision fp32, but {num} nodes of "
        "type MatMul compute in int8, not in float32; export the bundle anew with refsam-export"
    )


def test_a_miscounted_int8_node_is_found(made: Quantised, tmp_path: Path):
    def change(manifest):
        counts = manifest["variants"][FP32]["graphs"]["image_encoder"]["node_dtypes"]
        counts["int8"] -= 1

    assert "nodes in int8, the manifest says" in restated(made, tmp_path, change)


def test_graphs_of_two_bases_are_refused(made: Quantised, tmp_path: Path):
    def change(manifest):
        graphs = manifest["variants"][FP32]["graphs"]
        graphs["decoder_step"] = manifest["variants"][FP16]["graphs"]["decoder_step"]

    assert restated(made, tmp_path, change) == (
        f"BUNDLE/manifest.json: variant {FP32!r}, graph 'decoder_step': precision 'fp16', expected "
        "'fp32'; export the bundle anew with refsam-export"
    )


def write(made: Quantised, output: Path, ranges=None, base=None, scheme="int8"):
    return write_quantised_bundle(
        base or made.base,
        model("tiny"),
        made.ranges if ranges is None else ranges,
        scheme,
        RECORD,
        output,
    )


QKV = "image_encoder.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "no layer to quantise: ranges are empty; calibrate some layers first"),
        (
            {QKV: float("nan")},
            f"{QKV}: range nan, a finite magnitude above 0 expected; calibrate with clips in which "
            "this layer gives something, or leave the layer out",
        ),
        ({QKV: 0.0}, f"{QKV}: range 0.0, a finite magnitude above 0 expected"),
        ({"image_encoder.neck.0": 1.0}, "image_encoder.neck.0: no layer of tiny that can be"),
    ],
)
def test_ranges_that_cannot_be_used_are_refused(
    made: Quantised, tmp_path: Path, ranges: dict[str, float], message: str
):
    with pytest.raises(UsageError) as error:
        write(made, tmp_path / "out", ranges)
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_quantised_is_refused(made: Quantised, tmp_path: Path):
    with pytest.raises(UsageError) as error:
        write(made, tmp_path / "out", base=made.bundle)
    assert str(error.value) == (
        f"{made.bundle.folder}: quantised already (int8); give the bundle that it was made from, "
        f"{made.base.bundle_id}"
    )
    with pytest.raises(UsageError, match="scheme 'int4': choose one of int8, fp8"):
        write(made, tmp_path / "out", scheme="int4")
    with pytest.raises(OutputError, match="exists already"):
        write(made, made.bundle.folder)


def test_a_base_without_fp16_is_refused(made: Quantised, tmp_path: Path):
    manifest = made.base.manifest
    kept = {n: v for n, v in manifest.variants.items() if v.precision == "fp32"}
    base = msgspec.structs.replace(manifest, variants=kept)
    lacking = type(made.base)(made.base.folder, base, made.base.bundle_id, {})
    with pytest.raises(UsageError) as error:
        write(made, tmp_path / "out", base=lacking)
    assert str(error.value) == (
        f"{made.base.folder}: no fp16 variant to quantise, only fp32; export the bundle anew with "
        "refsam-export ... --precision fp32,fp16"
    )


def test_the_rewrite_that_merges_layers_is_left_out(made: Quantised):
    variant = made.base.manifest.variants["fp32-augmented-optimised"]
    merged = msgspec.structs.replace(variant, rewrites=("adapter-after-merge", "merged-mlp"))
    assert form_of(merged).rewrites == ("adapter-after-merge",)


def test_fewer_layers_and_no_others_are_quantised_here_in_fp8(made: Quantised, tmp_path: Path):
    """Which has an fp16 base alone, and is refused on a CPU."""
    names = [f"image_encoder.blocks.{i}.mlp.lin2" for i in (5, 2)]
    ranges = {name: made.ranges[name] for name in names}
    bundle = write(made, tmp_path / "out", ranges, scheme="fp8")
    assert bundle.manifest.quantisation.layers == tuple(names[::-1])
    (name,) = (n for n, v in bundle.manifest.variants.items() if v.precision == "fp8")
    assert name == "fp8-fp16-augmented-optimised"
    entry = bundle.manifest.variants[name].graphs[IMAGE_ENCODER]
    assert entry.node_types["QuantizeLinear"] == 2
    layers = quantisable_layers(model("tiny").config)
    assert entry.flops["float8_e4m3fn"] == sum(layers[name].flops for name in names)
    graph = onnx.load(encoder_file(bundle, name)).graph
    stored = [tensor for tensor in graph.initializer if tensor.data_type == FP8]
    assert len(stored) == 3 * 2  # weight, two zero points
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    of_weights = [n.input for n in graph.node if n.op_type == "DequantizeLinear" and n.attribute]
    found = [scales[scale].astype(np.float32) for _, scale, _ in of_weights]
    for layer, scale in zip(names[::-1], found, strict=True):
        weight = model("tiny").get_parameter(f"{layer}.weight").numpy()
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=1) / 448, rtol=2e-3)
    with pytest.raises(BackendError) as error:
        refsam_trt.load(bundle.folder, precision="fp8", backend="ort-cpu")
    assert str(error.value).startswith(
        "backend ort-cpu cannot run fp8 graphs: ONNX Runtime has no fp8 matrix product for CPUs; "
    )
