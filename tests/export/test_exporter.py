"""What `refsam-export` writes: graphs that keep the contract, proven, reproducible, anonymous."""

import contextlib
import getpass
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from changed_bundles import changed_bundle
from exported import exported
from reference_models import loaded, model, relative
from torch import Tensor

from refsam_export.parity.compare import MAX_RELATIVE_ERROR, MIN_MASK_IOU, compare
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.parity.reference import write_reference
from refsam_export.refsam.checkpoint import canonical_tensors, load_model
from refsam_export.refsam.graphs import build_graphs
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import GraphEntry
from refsam_trt.image.preprocess import PreprocessConfig

SPLITS = ("optimised", "baseline")
FORBIDDEN = {"Attention", "If", "Loop", "NonZero", "Scan", "Resize"}
EXTERNAL_BYTES = 1024


@pytest.fixture(scope="module", params=SPLITS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(exported(tmp_path_factory, "tiny", request.param))


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny", "optimised")


def split_of(bundle: Bundle) -> str:
    (variant,) = bundle.manifest.variants.values()
    return variant.split


def graphs_of(bundle: Bundle) -> Iterator[tuple[str, GraphEntry, onnx.ModelProto]]:
    (variant,) = bundle.manifest.variants.values()
    for name, entry in variant.graphs.items():
        yield name, entry, onnx.load(bundle.path(entry.file), load_external_data=False)


def test_parity_is_proven_and_stands_in_the_manifest(bundle: Bundle) -> None:
    (name,) = bundle.manifest.variants
    assert name == f"fp32-augmented-{split_of(bundle)}"
    figures = bundle.manifest.parity[name]
    assert figures["passed"] is True
    assert figures["variant"] == name
    assert figures["num_frames"] == 5
    assert len(set(figures["num_tokens"])) == len(EXPRESSIONS)
    assert figures["backend"] == "ort-cpu"
    contract = refsam.contract(128, 8, split_of(bundle))
    assert {g: set(errors) for g, errors in figures["graphs"].items()} == {
        graph: {tensor.name for tensor in spec.outputs} for graph, spec in contract.items()
    }
    errors = [error for graph in figures["graphs"].values() for error in graph.values()]
    assert figures["max_graph_error"] == max(errors)
    assert 0 < max(errors) <= MAX_RELATIVE_ERROR
    rows = figures["chain"]
    assert [(row["frame"], row["expression"]) for row in rows] == [
        (frame, expression)
        for frame in range(5)
        for expression in range(len(EXPRESSIONS))
        if expression < 2 or frame >= 2
    ]
    assert figures["min_mask_iou"] == min(row["mask_iou"] for row in rows) >= MIN_MASK_IOU
    assert figures["max_chain_error"] == max(row["logits_error"] for row in rows)
    # Masks of nothing or of everything would agree whatever the graphs compute.
    assert all(0.05 <= row["coverage"] <= 0.6 for row in rows)


def test_every_tensor_of_the_contract(bundle: Bundle) -> None:
    contract = refsam.contract(128, 8, split_of(bundle))
    elements = {"float32": 1, "int64": 7, "bool": 9}
    for name, entry, graph in graphs_of(bundle):
        assert entry.spec == contract[name]
        for values, specs in (
            (graph.graph.input, entry.spec.inputs),
            (graph.graph.output, entry.spec.outputs),
        ):
            found = [
                (
                    value.name,
                    value.type.tensor_type.elem_type,
                    tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert found == [(spec.name, elements[spec.dtype], spec.dims) for spec in specs]


def test_operators(bundle: Bundle) -> None:
    for _, entry, graph in graphs_of(bundle):
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]
        types = [node.op_type for node in graph.graph.node]
        assert not FORBIDDEN & set(types)
        assert not {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
        assert entry.node_types == {name: types.count(name) for name in set(types)}
        assert not graph.functions
        assert "Softmax" in types


def test_attention_is_spelled_as_matmul_and_softmax(bundle: Bundle) -> None:
    counts = {name: entry.node_types for name, entry, _ in graphs_of(bundle)}
    assert counts["image_encoder"]["Softmax"] == 8
    assert counts["text_encoder"]["Softmax"] == 2
    assert counts["image_encoder"]["Gelu"] >= 8  # opset 20: one node each


def test_large_weights_are_external(bundle: Bundle) -> None:
    for _, entry, graph in graphs_of(bundle):
        path = bundle.path(entry.file)
        for tensor in graph.graph.initializer:
            itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            num_bytes = itemsize * np.prod(tensor.dims, dtype=int)
            is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
            assert is_external == (num_bytes > EXTERNAL_BYTES), tensor.name
            if is_external:
                places = {e.key: e.value for e in tensor.external_data}
                assert places["location"] == f"{path.name}.data"
        assert path.stat().st_size < path.with_name(f"{path.name}.data").stat().st_size


def test_files_say_nothing_about_this_machine(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = Path(__file__).resolve().parents[2]
    places = {root, Path.home(), Path(sys.prefix), tmp_path_factory.getbasetemp()}
    needles = {str(place) for place in places} | {f"-of-{getpass.getuser()}", "site-packages"}
    files = [path for path in bundle.folder.rglob("*") if path.is_file()]
    assert len(files) == 3 * 2 + 4
    for path in files:
        content = path.read_bytes()
        assert [needle for needle in needles if needle.encode() in content] == [], path.name
    for _, _, graph in graphs_of(bundle):
        assert not graph.doc_string
        assert not graph.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)


def test_random_weights_are_declared(bundle: Bundle) -> None:
    weights = bundle.manifest.weights
    assert weights.random_init_seed == 0
    assert weights.num_random_tensors == len(canonical_tensors(model("tiny")))
    assert weights.sources == ()


def test_the_source_inside_is_the_exported_model(bundle: Bundle) -> None:
    assert bundle.manifest.source == "source.safetensors"
    tensors = canonical_tensors(
        load_model("tiny", checkpoint=bundle.path("source.safetensors")).model
    )
    for key, value in canonical_tensors(model("tiny")).items():
        assert torch.equal(tensors[key], value)


def test_manifest_describes_the_model(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.family, manifest.preset) == ("refsam", "tiny")
    assert manifest.configuration["model"] == model("tiny").config.to_json()
    assert manifest.preprocess == PreprocessConfig(128, None)
    limits = manifest.limits
    assert (limits.max_frames, limits.max_expressions, limits.max_words) == (8, 64, 64)
    tokenizer = bundle.path(manifest.tokenizer.file).read_text(encoding="utf-8")
    assert json.loads(tokenizer) == json.loads(loaded("tiny").tokenizer.to_str())
    assert manifest.tools["torch"] == torch.__version__
    assert {"onnx", "onnx-ir", "onnxscript", "transformers", "numpy"} <= manifest.tools.keys()


EXPORT_AGAIN = """
import sys
from pathlib import Path
from refsam_export.refsam.programs import LIMITS
from refsam_export.refsam.checkpoint import load_model
from refsam_export.refsam.graphs import build_graphs
from refsam_export.onnx.export import export_graph
from refsam_trt.contract.refsam import contract

model = load_model("tiny", random_init=0).model
for name in ("text_encoder", "decoder_step"):
    module = build_graphs(model, "optimised", "augmented")[name]
    spec = contract(128, 8, "optimised")[name]
    export_graph(module, spec, Path(sys.argv[1], f"{name}.onnx"), LIMITS)
"""


def test_exporting_again_gives_the_same_bytes(optimised: Path, tmp_path: Path) -> None:
    """In another process, whose sets and dictionaries of strings have another order."""
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", EXPORT_AGAIN, tmp_path], env=environment, check=True)
    again = sorted(tmp_path.iterdir())
    assert len(again) == 4
    for path in again:
        first = optimised / "graphs" / "fp32-augmented-optimised" / path.name
        assert path.read_bytes() == first.read_bytes(), path.name


def run(bundle: Bundle, graph: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    (variant,) = bundle.manifest.variants.values()
    entry = variant.graphs[graph]
    sizes = dict(
        pair
        for spec in entry.spec.inputs
        for pair in zip(spec.dims, inputs[spec.name].shape, strict=True)
    )
    with contextlib.closing(OrtCpuBackend(1)) as backend:
        outputs = {s.name: backend.empty(s.shape(sizes), s.dtype) for s in entry.spec.outputs}
        uploaded = {name: backend.upload(value.numpy()) for name, value in inputs.items()}
        backend.load(bundle.path(entry.file), entry.spec).context().run(uploaded, outputs)
        return {name: torch.from_numpy(backend.download(b)) for name, b in outputs.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert relative(found[name], value) <= MAX_RELATIVE_ERROR, name


@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_image_encoder_takes_any_number_of_frames(bundle: Bundle, num_frames: int) -> None:
    image = torch.randn(num_frames, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    spec = refsam.contract(128, 8, split_of(bundle))["image_encoder"]
    with torch.no_grad():
        values = build_graphs(model("tiny"), split_of(bundle), "reference")["image_encoder"](image)
    expected = {s.name: value for s, value in zip(spec.outputs, values, strict=True)}
    assert_close(run(bundle, "image_encoder", {"image": image}), expected)


@pytest.mark.parametrize(
    ("num_expressions", "num_words"), [(1, 1), (1, 64), (64, 64), (2, 17), (64, 1)]
)
def test_text_and_step_take_any_number_of_expressions_and_words(
    bundle: Bundle, num_expressions: int, num_words: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    size = (num_expressions, num_words)
    ids = torch.randint(3, 1024, size, generator=generator)
    lengths = torch.randint(1, num_words + 1, (num_expressions, 1), generator=generator)
    lengths[0] = num_words
    mask = (torch.arange(num_words) < lengths).long()
    modules = build_graphs(model("tiny"), split_of(bundle), "reference")
    contract = refsam.contract(128, 8, split_of(bundle))
    image = torch.randn(1, 3, 128, 128, generator=generator)
    with torch.no_grad():
        text_values = modules["text_encoder"](ids, mask)
        frame_values = modules["image_encoder"](image)
    text = {s.name: v for s, v in zip(contract["text_encoder"].outputs, text_values, strict=True)}
    assert_close(run(bundle, "text_encoder", {"input_ids": ids, "attention_mask": mask}), text)
    frame = {
        s.name: v for s, v in zip(contract["image_encoder"].outputs, frame_values, strict=True)
    }
    state = {
        "word_mask": mask > 0,
        "track_token": torch.randn(num_expressions, 256, generator=generator),
        "has_track": torch.rand(num_expressions, generator=generator) < 0.5,
    }
    with torch.no_grad():
        expected = model("tiny").step(
            *(frame[name] for name in ("image_embedding", "hda_features")),
            text["words"],
            state["word_mask"],
            text["sentence"],
            state["track_token"],
            state["has_track"],
        )
    assert_close(run(bundle, "decoder_step", frame | text | state), expected._asdict())


def is_weight(key: str, *, turned: tuple[bool, ...] = (False, True)) -> "Wanted":
    """Find a parameter by its value: the exporter renames and transposes some of them."""
    value = canonical_tensors(model("tiny"))[key].numpy()
    forms = [value.T if turn else value for turn in turned[: value.ndim]]

    def wanted(name: str, found: np.ndarray) -> bool:
        return any(found.shape == form.shape and np.array_equal(found, form) for form in forms)

    return wanted


def ends(suffix: str) -> "Wanted":
    return lambda name, found: name.removesuffix(".fp16").endswith(suffix)


def is_minus_10_000(name: str, found: np.ndarray) -> bool:
    return found.shape == () and found == -1e4


def zero(value: np.ndarray) -> np.ndarray:
    return np.zeros_like(value)


def swap_axes(value: np.ndarray) -> np.ndarray:
    return value.swapaxes(-1, -2)


def swap_levels(value: np.ndarray) -> np.ndarray:
    return value[[1, 0, *range(2, len(value))]]


Wanted = type(ends(""))
CHANGES = {
    "rel-pos rows, global block": ("image_encoder", ends("blocks.1.attn.rel_h"), zero),
    "rel-pos columns, window block": ("image_encoder", ends("blocks.6.attn.rel_w"), zero),
    "one-hot of rows and columns": ("image_encoder", ends("blocks.1.attn.one_hot"), zero),
    "position embedding": ("image_encoder", is_weight("image_encoder.pos_embed"), zero),
    "adapter after attention": (
        "image_encoder",
        is_weight("image_encoder.blocks.4.Space_Adapter.D_fc2.weight"),
        zero,
    ),
    "adapter beside the MLP": (
        "image_encoder",
        is_weight("image_encoder.blocks.7.MLP_Adapter.D_fc1.weight"),
        zero,
    ),
    "reduction of an HDA level": ("image_encoder", is_weight("fpn_conv.1.weight"), zero),
    "dense convolution, image half": ("image_encoder", ends("mix_weight"), zero),
    "dense convolution, bias": ("image_encoder", ends("mix_bias"), zero),
    "dense convolution, language half": ("text_encoder", ends("language"), swap_levels),
    "Cross-Modal MLP of the words": (
        "text_encoder",
        is_weight("resizer.2.weight", turned=(True,)),
        zero,
    ),
    "Cross-Modal MLP of the sentence": (
        "text_encoder",
        is_weight("resizer.2.weight", turned=(False,)),
        zero,
    ),
    "T5 position bias": ("text_encoder", ends("position_bias"), zero),
    "key bias of T5": ("text_encoder", is_minus_10_000, zero),
    "key bias of the step": ("decoder_step", is_minus_10_000, zero),
    "position encoding, x and y": ("decoder_step", ends("pe"), swap_axes),
    "ITM": ("decoder_step", is_weight("track_token_mlp.linear2.weight"), zero),
    "norm of ITM": ("decoder_step", is_weight("track_token_mlp.norm.bias"), zero),
    "hypernetwork": (
        "decoder_step",
        is_weight("mask_decoder.output_hypernetworks_mlps.0.layers.2.bias"),
        zero,
    ),
    "image to token attention, layer 1": (
        "decoder_step",
        is_weight("mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight"),
        zero,
    ),
    "token MLP, layer 0": (
        "decoder_step",
        is_weight("mask_decoder.transformer.layers.0.mlp.lin1.bias"),
        zero,
    ),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_reference(loaded("tiny"), "optimised", 3, folder)
    return folder


@pytest.fixture(autouse=True)
def _quiet_random_weights(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="refsam_trt")


def test_an_unchanged_copy_passes(optimised: Path, reference: Path) -> None:
    assert compare(optimised, reference).passed


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_initializer_fails(
    name: str, optimised: Path, reference: Path, tmp_path: Path
) -> None:
    graph, wanted, change = CHANGES[name]
    copy = changed_bundle(optimised, tmp_path / "changed", graph, wanted, change)
    found = compare(copy, reference)
    assert not found.passed
    assert max(found.graphs[graph].values()) > 2 * MAX_RELATIVE_ERROR
    others = [errors for other, errors in found.graphs.items() if other != graph]
    assert max(max(errors.values()) for errors in others) <= MAX_RELATIVE_ERROR


def test_one_bit_of_a_weight_is_not_enough_to_fail_but_is_another_bundle(
    optimised: Path, reference: Path, tmp_path: Path
) -> None:
    """The bound is a tolerance; what pins the bytes is the bundle id."""

    def nudge(value: np.ndarray) -> np.ndarray:
        changed = value.copy()
        changed.flat[0] = np.nextafter(changed.flat[0], np.float32(np.inf))
        return changed

    copy = changed_bundle(optimised, tmp_path / "n", "decoder_step", ends("pe"), nudge)
    assert compare(copy, reference).passed
    assert open_bundle(copy).bundle_id != open_bundle(optimised).bundle_id
