"""The precision policy: what is half in program and ONNX graph; rounding; the range audit."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, defs
from reference_models import image_of, model, relative, tokens
from torch import Tensor, fx, nn
from torch.nn import functional

from refsam_export.onnx.export import export_graph
from refsam_export.parity.figures import BOUNDS
from refsam_export.precision.policy import (
    POLICIES,
    graph_precision,
    half_nodes,
    operator_name,
    parse_precisions,
)
from refsam_export.precision.range_audit import MAX_ABSOLUTE, RangeAudit
from refsam_export.precision.typed_program import rounded, rounded_module, trace, typed_module
from refsam_export.refsam.attention import FORMS
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.image_encoder import L2Norm
from refsam_export.refsam.model.sam import LayerNorm2d
from refsam_export.refsam.programs import rounded_graphs, specs_of, trace_graphs
from refsam_trt.contract.precision import precision_problem
from refsam_trt.contract.refsam import DECODER_STEP, GRAPHS, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import UsageError
from refsam_trt.onnx_file.reader import summarise_onnx

FP16, BF16 = POLICIES["fp16"], POLICIES["bf16"]
FP16_MAX = 65504
LIMITS = {"M": 8, "B": 64, "N": 64}
SPEC = GraphSpec(
    (TensorSpec("image", "float32", ("M", 3, 8, 8), "frame"),),
    (TensorSpec("out", "float32", ("M", 16), "frame"), TensorSpec("n", "float32", ("M",), "frame")),
)


class Small(nn.Module):
    """Every kind of operator that a policy tells apart, in a graph that is traced in a second."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.norm2d = nn.Conv2d(3, 16, 4, stride=4), LayerNorm2d(16)
        self.norm, self.qkv, self.l2norm = nn.LayerNorm(16), nn.Linear(16, 48), L2Norm()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.register_buffer("scale", torch.full((), 0.25))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm2d(self.conv(image)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + torch.softmax((q * self.scale) @ k.transpose(1, 2), dim=-1) @ v
        unit = self.l2norm(functional.gelu(x), -1)
        return unit.sum(dim=1), unit[:, 0, 0] * 2


@pytest.fixture(scope="module")
def small() -> fx.GraphModule:
    return trace(Small(), SPEC, LIMITS)


def image(num_frames: int = 1) -> Tensor:
    return torch.randn(num_frames, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def kinds(program: fx.GraphModule, policy: object) -> dict[str, set[bool]]:
    half = half_nodes(program.graph, policy)  # type: ignore[arg-type]
    found: dict[str, set[bool]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            found.setdefault(operator_name(node), set()).add(node.name in half)
    return found


def test_islands_are_norms_softmax_and_sums(small: fx.GraphModule) -> None:
    found = kinds(small, FP16)
    for name in ("layer_norm", "softmax", "linalg_vector_norm", "clamp_min", "div", "sqrt", "pow"):
        assert found[name] == {False}, name
    for name in ("conv2d", "linear", "matmul", "gelu"):
        assert found[name] == {True}, name
    assert found["add"] == {True, False}  # the residual; and inside LayerNorm2d
    assert kinds(small, BF16) == {**found, "conv2d": {False}}


def test_traced_program_is_the_module(small: fx.GraphModule) -> None:
    for num_frames in (1, 3):
        for found, expected in zip(
            small(image(num_frames)), Small()(image(num_frames)), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("policy", [FP16, BF16], ids=lambda policy: policy.name)
def test_rounding_is_what_half_arithmetic_gives(small: fx.GraphModule, policy: object) -> None:
    """Both round each result once; they differ in how a product is summed up, at most."""
    wide = small(image())
    found = rounded_module(small, policy)(image())  # type: ignore[arg-type]
    real = typed_module(small, policy)(image())  # type: ignore[arg-type]
    step = torch.finfo(policy.dtype).eps  # type: ignore[attr-defined]
    for a, b, c in zip(found, real, wide, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert relative(a, b) < 2 * step
        assert 0 < relative(a, c) < 8 * step


def test_the_program_itself_stays_as_it_was(small: fx.GraphModule) -> None:
    before = {name: value.clone() for name, value in small.state_dict().items()}
    expected = small(image())
    for policy in (FP16, BF16):
        typed_module(small, policy)
        rounded_module(small, policy)
    assert {n: v.dtype for n, v in small.state_dict().items()} == {n: torch.float32 for n in before}
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(small(image()), expected, strict=True))


def test_rounded_values_are_those_that_the_type_has() -> None:
    x = torch.tensor([1 + 2**-12, 65520.0, 1e-9, -3.0])
    assert rounded(x, torch.float16).tolist() == [1, float("inf"), 0, -3]


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def small_onnx(
    request: pytest.FixtureRequest, small: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("typed") / "small.onnx"
    export_graph(typed_module(small, POLICIES[request.param]), SPEC, path, LIMITS)
    return request.param, path


def test_exported_types_are_the_policy(small_onnx: tuple[str, Path]) -> None:
    """The ONNX checker has passed them with full_check: `export_graph` sees to it."""
    precision, path = small_onnx
    nodes = summarise_onnx(path).typed_nodes
    half = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert precision_problem(precision, nodes) is None
    assert {dtype for op, dtype in nodes if op == "MatMul"} == {half}
    for op in ("Softmax", "LayerNormalization", "ReduceL2", "ReduceMean", "ReduceSum"):
        assert {dtype for name, dtype in nodes if name == op} == {"float32"}, op
    assert {d for op, d in nodes if op == "Conv"} == {half if precision == "fp16" else "float32"}
    assert precision_problem("fp32", nodes) is not None


def test_weights_are_stored_in_the_type_they_are_used_in(small_onnx: tuple[str, Path]) -> None:
    precision, path = small_onnx
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert types["norm.weight"] == TensorProto.FLOAT
    assert half in types.values()
    conv = types["conv.weight"]
    assert conv == (half if precision == "fp16" else TensorProto.FLOAT)


def test_the_exported_graph_computes_what_pytorch_does(
    small_onnx: tuple[str, Path], small: fx.GraphModule
) -> None:
    """bf16 runs with every bf16 tensor computed in fp32 and rounded by a pair of casts."""
    precision, path = small_onnx
    ir = onnx_ir.from_proto(onnx.load(path))  # with its external data
    if precision == "bf16":
        emulate_bf16(ir)
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(ir).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"image": image(2).numpy()})
    policy = POLICIES[precision]
    expected = rounded_module(small, policy)(image(2))
    for a, b in zip(found, expected, strict=True):
        assert relative(torch.from_numpy(a), b) < 4 * torch.finfo(policy.dtype).eps


def emulate_bf16(model: onnx_ir.Model) -> None:
    """Let a bf16 graph run where only casts know bf16."""
    graph, bf16 = model.graph, onnx_ir.DataType.BFLOAT16
    for value in list(graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype == bf16:
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value = onnx_ir.Tensor(wide, name=value.name)
            value.dtype = onnx_ir.DataType.FLOAT
    for node in list(graph):
        if node.outputs[0].dtype != bf16:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT)
        for output in node.outputs:
            output.dtype = onnx_ir.DataType.FLOAT
            users = list(output.uses())
            narrow = onnx_ir.node("Cast", [output], attributes={"to": bf16})
            wide = onnx_ir.node("Cast", narrow.outputs, attributes={"to": onnx_ir.DataType.FLOAT})
            graph.insert_after(node, [narrow, wide])
            for user, index in users:
                user.replace_input_with(index, wide.outputs[0])


def test_policies_leave_in_fp32_what_onnx_has_no_bf16_for() -> None:
    for op in ("Conv", "ConvTranspose", "Einsum", "MatMul", "Gemm", "Gelu", "Relu", "Pad", "Where"):
        schema = defs.get_schema(op, 20)
        types = next(c for c in schema.type_constraints if c.type_param_str == "T")
        has_bf16 = "tensor(bfloat16)" in types.allowed_type_strs
        assert has_bf16 == (op not in ("Conv", "ConvTranspose", "Einsum")), op


def test_which_graphs_a_precision_is_for() -> None:
    found = {p: [graph_precision(p, graph) for graph in GRAPHS] for p in ("fp32", "fp16", "bf16")}
    assert found == {
        "fp32": ["fp32"] * 3,
        "fp16": ["fp16", "fp32", "fp16"],
        "bf16": ["bf16"] * 3,
    }


def test_lists_of_precisions() -> None:
    assert parse_precisions("bf16, fp32,bf16") == ("fp32", "bf16")
    for text, found in (("fp32,int8", "'int8'"), ("", "''")):
        with pytest.raises(UsageError) as refused:
            parse_precisions(text)
        assert str(refused.value) == (
            f"precision {found}: choose among fp32, fp16, bf16, separated by commas"
        )


@pytest.fixture(scope="module")
def programs() -> dict[str, fx.GraphModule]:
    return trace_graphs(model("tiny"), "optimised", "augmented")


def graph_inputs(programs: dict[str, fx.GraphModule], graph: str) -> tuple[Tensor, ...]:
    """Inputs of a graph for one frame and one expression, as fp32 computes them."""
    of = model("tiny")
    specs = specs_of(of, "optimised")
    ids, mask = tokens("tiny", "the red disc")
    known = {"image": image_of(of), "input_ids": ids, "attention_mask": mask}
    if graph == DECODER_STEP:
        for name in (IMAGE_ENCODER, TEXT_ENCODER):
            values = programs[name](*(known[t.name] for t in specs[name].inputs))
            known |= {t.name: value for t, value in zip(specs[name].outputs, values, strict=True)}
        known |= {
            "word_mask": mask > 0,
            "track_token": torch.zeros(1, 256),
            "has_track": torch.tensor([False]),
        }
    return tuple(known[t.name] for t in specs[graph].inputs)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_within_its_bounds_when_rounded(
    programs: dict[str, fx.GraphModule], graph: str, precision: str
) -> None:
    rounded = rounded_graphs(programs, specs_of(model("tiny"), "optimised"), POLICIES[precision])
    given = graph_inputs(programs, graph)
    expected = programs[graph](*given)
    named = {t.name: v for t, v in zip(rounded.specs[graph].inputs, given, strict=True)}
    errors = [
        relative(found, value)
        for found, value in zip(rounded.run(graph, named).values(), expected, strict=True)
    ]
    if graph == TEXT_ENCODER and precision == "fp16":
        assert errors == [0.0] * len(errors)
    else:
        assert 0 < max(errors) <= BOUNDS[precision].max_relative_error


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_matrix_product_is_half(programs: dict[str, fx.GraphModule], graph: str) -> None:
    found = kinds(programs[graph], FP16)
    for name in ("linear", "matmul", "conv2d", "conv_transpose2d"):
        assert found.get(name, {True}) == {True}, name
    softmax = Counter(operator_name(node) for node in programs[graph].graph.nodes)["softmax"]
    assert found["softmax"] == {False}
    assert softmax == {IMAGE_ENCODER: 8, TEXT_ENCODER: 2, DECODER_STEP: 8}[graph]


class TestRangeAudit:
    def run(self, programs: dict[str, fx.GraphModule], graph: str, **options: object) -> RangeAudit:
        audit = RangeAudit({graph: programs[graph]}, FP16, **options)  # type: ignore[arg-type]
        audit.run(graph, graph_inputs(programs, graph))
        return audit

    def test_values_that_are_half_are_seen_and_no_others(self, small: fx.GraphModule) -> None:
        audit = RangeAudit({"small": small}, FP16, graphs=("small",))
        audit.run("small", (image() * 3,))
        found = {extent.tensor: extent for extent in audit.extents()}
        assert found["image"].max_abs == pytest.approx(float(image().abs().max()) * 3)
        assert found["conv2d"].module == "conv"
        conv = functional.conv2d(image() * 3, Small().conv.weight, Small().conv.bias, stride=4)
        assert found["conv2d"].max_abs == pytest.approx(float(conv.abs().max()))
        assert {"layer_norm", "softmax"} <= found.keys()  # what leaves an island is cast
        assert "linalg_vector_norm" not in found
        assert not [name for name in found if name.startswith(("transpose", "permute", "view"))]

    def test_maxima_are_kept_from_run_to_run(self, small: fx.GraphModule) -> None:
        audit = RangeAudit({"small": small}, FP16, graphs=("small",))
        for factor in (2, 7, 1):
            audit.run("small", (image() * factor,))
        found = {extent.tensor: extent.max_abs for extent in audit.extents()}
        assert found["image"] == pytest.approx(float(image().abs().max()) * 7)

    @pytest.mark.parametrize("graph", [IMAGE_ENCODER, DECODER_STEP])
    def test_the_model_passes(self, programs: dict[str, fx.GraphModule], graph: str) -> None:
        found = self.run(programs, graph).figures()
        assert found.passed
        assert 1 < found.max_abs <= MAX_ABSOLUTE
        assert found.num_tensors > 50

    def test_a_graph_that_stays_in_fp32_has_no_half_tensor(
        self, programs: dict[str, fx.GraphModule]
    ) -> None:
        found = self.run(programs, TEXT_ENCODER)
        assert found.extents() == []
        assert found.figures().passed

    def test_a_neck_convolution_that_overflows_fails(
        self, programs: dict[str, fx.GraphModule]
    ) -> None:
        """LayerNorm2d takes the scale off again: no output tells, whatever runs the graph."""
        given = graph_inputs(programs, IMAGE_ENCODER)
        expected = programs[IMAGE_ENCODER](*given)
        spoiled = copy.deepcopy(programs[IMAGE_ENCODER])
        weight = spoiled.get_parameter("encoder.neck.0.weight")
        normal = {e.module: e.max_abs for e in self.run(programs, IMAGE_ENCODER).extents()}
        weight.data = weight * (2 * FP16_MAX / normal["encoder.neck.0"])
        assert all(relative(a, b) < 1e-3 for a, b in zip(spoiled(*given), expected, strict=True))
        found = self.run({**programs, IMAGE_ENCODER: spoiled}, IMAGE_ENCODER).figures()
        assert not found.passed
        worst = found.largest[0]
        assert (worst.module, worst.operator) == ("encoder.neck.0", "conv2d")
        assert worst.max_abs > FP16_MAX

    def test_t5_forced_to_fp16_fails_when_wo_overflows(
        self, programs: dict[str, fx.GraphModule]
    ) -> None:
        forced = {"graphs": (TEXT_ENCODER,)}
        normal = self.run(programs, TEXT_ENCODER, **forced)
        assert normal.figures().passed
        spoiled = copy.deepcopy(programs[TEXT_ENCODER])
        path = "encoder.blocks.0.layer.1.DenseReluDense.wo"
        reached = {e.module: e.max_abs for e in normal.extents() if e.operator == "linear"}
        weight = spoiled.get_parameter(f"{path}.weight")
        weight.data = weight * (2 * FP16_MAX / reached[path])
        found = self.run({**programs, TEXT_ENCODER: spoiled}, TEXT_ENCODER, **forced)
        assert not found.figures().passed
        bad = {extent.module for extent in found.extents() if extent.max_abs > FP16_MAX}
        assert path in bad

    def test_rounding_shows_the_overflow_too(self, programs: dict[str, fx.GraphModule]) -> None:
        spoiled = copy.deepcopy(programs[IMAGE_ENCODER])
        weight = spoiled.get_parameter("encoder.neck.0.weight")
        weight.data = weight * 1e6
        found = rounded_module(spoiled, FP16)(*graph_inputs(programs, IMAGE_ENCODER))
        assert not torch.isfinite(found[0]).all()


def test_traced_and_typed_programs_share_what_does_not_change() -> None:
    """`torch.export` copies weights, under one name where a module holds them under two."""
    module = Small()
    module.first = module.qkv
    program = trace(module, SPEC, LIMITS)
    own = {parameter.data_ptr() for parameter in module.parameters()}
    assert {parameter.data_ptr() for parameter in program.parameters()} <= own
    typed = typed_module(program, FP16)
    kept = [p for p in typed.parameters() if p.dtype == torch.float32]
    assert len(kept) == 4  # of the two norms
    assert {parameter.data_ptr() for parameter in kept} <= own


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_attention_computes_in_half(form: str) -> None:
    """SAM's own casts inside, of which the exporter asserts the types that they had in fp32."""
    of = model("tiny")
    module = build_graphs(of, "optimised", form)[IMAGE_ENCODER]
    typed = typed_module(trace(module, specs_of(of, "optimised")[IMAGE_ENCODER], LIMITS), FP16)
    assert not [n for n in typed.graph.nodes if operator_name(n) == "_assert_tensor_metadata"]
    image = image_of(of)
    with torch.no_grad():
        expected, found = module(image), typed(image)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) <= BOUNDS["fp16"].max_relative_error
