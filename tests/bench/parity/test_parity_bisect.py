"""`refsam-bench parity --bisect` on bundles with one wrong number, on a good one, and refused."""

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_bundle
import numpy as np
import onnx
import pytest
import reference_models
from changed_bundles import changed_bundle
from commands_in_process import Commands
from exported import exported
from half_bundle import make_half_precision
from safetensors.numpy import load_file

import refsam_bench.parity.bisect as parity_bisect
from refsam_bench.cli import main
from refsam_bench.parity.bisect import Bisection, bisect_parity
from refsam_bench.parity.graph_values import TorchProgram
from refsam_bench.parity.reference_runs import GraphRun, reference_runs
from refsam_export.parity.compare import TENSORS
from refsam_export.parity.figures import relative_error
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.parity.reference import write_reference
from refsam_trt.backends.host import HostBuffer
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import UsageError

DECODER_LAYER = "model.mask_decoder.transformer.layers.1"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.fixture(scope="module", autouse=True)
def programs_are_exported_once() -> Iterator[None]:
    """An export takes seconds, and every bundle here is made from the same weights."""
    made: dict[str, TorchProgram] = {}

    def program(module, spec, limits):
        name = spec.outputs[0].name
        if name not in made:
            made[name] = TorchProgram(module, spec, limits)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_bisect, "TorchProgram", program)
        yield


def find(folder: Path, **options: object) -> Bisection:
    asked = {"source": None, "variant": None, "num_frames": 3, "tolerance": None, **options}
    return bisect_parity(folder, report=lambda line: None, **asked)


def graph_of(bundle: Path, graph: str) -> onnx.GraphProto:
    (variant,) = open_bundle(bundle, verify="deferred").manifest.variants.values()
    return onnx.load(bundle / variant.graphs[graph].file, load_external_data=False).graph


def matmul_weight(graph: onnx.GraphProto, *, reads: str = "", before_bias: str = "") -> str:
    """Weight of the MatMul whose sum adds a bias, or of the second that reads a tensor."""
    weights = {tensor.name for tensor in graph.initializer}
    found = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    if before_bias:
        (add,) = (n for n in graph.node if n.op_type == "Add" and before_bias in n.input)
        (node,) = (n for n in found if n.output[0] in add.input)
    else:
        node = [n for n in found if n.input[0] == reads][1]
    return str(node.input[1])


def louder(value: np.ndarray) -> np.ndarray:
    """One number of the first row is far too large."""
    value = value.copy()
    value[0, 0] += 5 * np.abs(value).max()
    return value


@pytest.mark.parametrize(
    ("graph", "where", "module", "op_type"),
    [
        (
            "image_encoder",
            {"before_bias": "encoder.blocks.2.mlp.lin2.bias"},
            "encoder.blocks.2.mlp.lin2",
            "Add",
        ),
        # A key projection: its error is in the scores, where masked keys are near -1e4.
        ("text_encoder", {"reads": "mul_35"}, "encoder.blocks.0.layer.0.SelfAttention.k", "MatMul"),
        (
            "decoder_step",
            {"before_bias": f"{DECODER_LAYER}.mlp.lin1.bias"},
            f"{DECODER_LAYER}.mlp.lin1",
            "Add",
        ),
    ],
)
def test_a_changed_weight_is_found(graph, where, module, op_type, bundle, tmp_path):
    weight = matmul_weight(graph_of(bundle, graph), **where)
    other = changed_bundle(bundle, tmp_path / "b", graph, lambda name, _: name == weight, louder)
    found = find(other)
    assert not found.passed
    assert (found.divergence.frame, found.divergence.graph) == (0, graph)
    assert max(found.divergence.outputs.values()) > found.tolerance == 1e-4
    origin = found.divergence.origin
    assert (origin.module, origin.op_type) == (module, op_type)
    first, last = origin.nodes[0], origin.nodes[-1]
    assert (first.op_type, first.weights) == ("MatMul", (weight,))
    assert last.tensor == origin.tensor
    assert origin.shape == origin.expected_shape
    assert origin.relative_error > 1e-3
    nodes = {name: node for node in graph_of(other, graph).node for name in node.output}
    assert origin.last_agreeing in nodes[first.tensor].input
    assert found.finding.splitlines() == [
        f"frame 0, {graph}: {origin.tensor} ({op_type} of {module}) is the first tensor that "
        f"differs: relative error {origin.relative_error:.1e}, shape {list(origin.shape)}",
        f"last tensor that agrees: {origin.last_agreeing}",
        f"between them: MatMul -> {first.tensor}, weights {weight}",
        *([f"between them: Add -> {last.tensor}, weights {last.weights[0]}"] * (op_type == "Add")),
    ]


@pytest.fixture(scope="module")
def late(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wrong only for a word of the expression that joins at frame 2."""
    tokenizer = reference_models.loaded("tiny").tokenizer
    *earlier, joining = (set(tokenizer.encode(text).ids) for text in EXPRESSIONS)
    token = min(joining.difference(*earlier))

    def change(value: np.ndarray) -> np.ndarray:
        value = value.copy()
        value[token] *= 2
        return value

    return changed_bundle(
        bundle,
        tmp_path_factory.mktemp("late") / "bundle",
        "text_encoder",
        lambda name, _: name == "encoder.embedding.weight",
        change,
    )


def test_the_frame_is_found(late: Path) -> None:
    found = find(late)
    assert (found.divergence.frame, found.divergence.graph) == (2, "text_encoder")
    origin = found.divergence.origin
    assert (origin.tensor, origin.op_type, origin.last_agreeing) == (
        "embedding",
        "Gather",
        "input_ids",
    )
    assert origin.nodes[0].weights == ("encoder.embedding.weight",)


def test_what_is_within_the_tolerance_is_no_difference(late: Path) -> None:
    worst = max(find(late).divergence.outputs.values())
    assert find(late, tolerance=min(1.01 * worst, 0.99)).passed
    assert not find(late, tolerance=0.99 * worst).passed


def test_another_exporter_is_told(late: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    torch_version = version("torch")
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.0" if name == "torch" else version(name)
    )
    assert find(late).finding.splitlines()[-1] == (
        f"the bundle was exported with torch {torch_version}, here is 99.0: tensors of the same "
        "name may not be the same; repeat this with the versions of the bundle"
    )


class TestOfTheCommand:
    def test_no_divergence(self, bundle: Path, call: Commands) -> None:
        done = call(main, "parity", bundle, "--bisect", "--frames", "3")
        assert done.code == 0
        assert done.out == "no divergence: every output of every graph agrees in 3 frames\n"
        runs = [line for line in done.err.splitlines() if "frame" in line]
        assert runs == [
            f"refsam-bench: frame {frame}: {graph}"
            for frame in range(3)
            for graph in ("image_encoder", "text_encoder", "decoder_step")
            if graph != "text_encoder" or frame != 1
        ]

    def test_a_divergence_as_json(self, late: Path, call: Commands) -> None:
        done = call(main, "parity", late, "--bisect", "--frames", "3", "--json")
        assert done.code == 1
        assert done.out.count("\n") == 1
        figures = json.loads(done.out)
        assert figures["passed"] is False
        assert figures["bundle_id"] == open_bundle(late).bundle_id
        assert (figures["backend"], figures["tolerance"]) == ("ort-cpu", 1e-4)
        assert figures["divergence"]["frame"] == 2
        assert figures["divergence"]["origin"]["tensor"] == "embedding"
        assert figures["divergence"]["origin"]["nodes"] == [
            {"op_type": "Gather", "tensor": "embedding", "weights": ["encoder.embedding.weight"]}
        ]

    def test_polygraphy_is_missing(
        self, bundle: Path, call: Commands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "polygraphy.backend.onnx", None)
        done = call(main, "parity", bundle, "--bisect")
        assert done.code == 2
        assert done.message.startswith(
            "refsam-bench: parity --bisect needs an optional dependency: "
            'pip install "refsam-trt[dev]" ('
        )

    def test_a_tolerance_without_bisect(self, bundle: Path, call: Commands) -> None:
        done = call(main, "parity", bundle, "--tolerance", "1e-3")
        assert done.code == 2
        assert done.message == (
            "refsam-bench: --tolerance belongs to --bisect; the bounds of parity are fixed; "
            "see refsam-bench parity --help"
        )


def test_half_graphs_have_a_tolerance_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = make_half_precision(fake_bundle.make_bundle(tmp_path / "half"))
    monkeypatch.setattr(parity_bisect, "load_source", lambda *_: None)
    monkeypatch.setattr(parity_bisect, "reference_runs", lambda *_: iter(()))
    assert find(half).tolerance == 5e-3
    assert find(half, tolerance=1e-3).tolerance == 1e-3


@pytest.mark.parametrize("tolerance", [0.0, -1e-4, 1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_none(tolerance: float, bundle: Path) -> None:
    with pytest.raises(UsageError, match="expected a number between 0 and 1, such as 1e-4"):
        find(bundle, tolerance=tolerance)


class _WrongBackend(OrtCpuBackend):
    """Gets the sentence wrong, the only output with two dims of a text encoder."""

    name = "wrong"

    def download(self, buffer: HostBuffer) -> np.ndarray:
        return super().download(buffer) + (len(buffer.shape) == 2)


class TestTheGraphIsInnocent:
    def test_the_backend_is_wrong(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parity_bisect, "open_backend", lambda name: _WrongBackend())
        found = find(bundle)
        assert (found.divergence.frame, found.divergence.graph) == (0, "text_encoder")
        assert [name for name, error in found.divergence.outputs.items() if error > 1e-4] == [
            "sentence"
        ]
        assert found.divergence.origin is None
        assert found.finding == (
            "frame 0, text_encoder: the graph agrees with PyTorch when its tensors are read one by "
            "one in ONNX Runtime; as a whole, wrong computes it otherwise (fused operators or its "
            "precision)"
        )

    def test_the_rewrite_is_wrong(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def of_another_model(*arguments: object) -> Iterator[GraphRun]:
            for run in reference_runs(*arguments):
                if run.graph == "text_encoder":
                    expected = {**run.expected, "sentence": 1.5 * run.expected["sentence"]}
                    yield replace(run, expected=expected)

        monkeypatch.setattr(parity_bisect, "reference_runs", of_another_model)
        found = find(bundle)
        assert found.divergence.origin is None
        assert found.finding == (
            "frame 0, text_encoder: the graph is what its PyTorch form (augmented attention, "
            "optimised split) computes, but that form differs from SAM's own by 3.3e-01: the "
            "rewrite is wrong, not the graph"
        )


def test_the_reference_is_the_unpadded_chain_of_parity(bundle: Path, tmp_path: Path) -> None:
    loaded = reference_models.loaded("tiny")
    write_reference(loaded, "optimised", 4, tmp_path)
    chain = load_file(tmp_path / TENSORS)
    manifest = open_bundle(bundle).manifest
    runs = list(reference_runs(loaded, manifest, "fp32-augmented-optimised", 4))
    steps = [run for run in runs if run.graph == "decoder_step"]
    assert [run.frame for run in steps] == [0, 1, 2, 3]
    # Padding and batching only change the order in which sums are rounded.
    for run in steps:
        assert len(run.inputs["has_track"]) == (2 if run.frame < 2 else 3)
        for row, logits in enumerate(run.expected["low_res_logits"]):
            name = f"chain.{row}.{run.frame}.low_res_logits"
            assert relative_error(logits, chain[name]) < 1e-5
    assert [list(run.inputs["has_track"]) for run in steps] == [
        [False, False],
        [True, True],
        [True, True, False],
        [True, True, True],
    ]
