"""How parity is measured: figures by hand, the moving scene, the written reference, isolation."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from changed_bundles import change_graph
from exported import exported
from numpy.testing import assert_array_equal
from reference_models import loaded, model, relative
from safetensors.torch import load_file, save_file
from torch import Tensor

from refsam_export.parity.compare import (
    MAX_RELATIVE_ERROR,
    MIN_MASK_IOU,
    compare,
    mask_iou,
)
from refsam_export.parity.figures import BOUNDS, NOT_FINITE, Parity, relative_error
from refsam_export.parity.inputs import EXPRESSIONS, LATE_FRAME, moving_frames
from refsam_export.parity.reference import write_reference
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.command.in_process import in_process
from refsam_trt.contract.refsam import contract
from refsam_trt.errors import UsageError
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor

NUM_FRAMES = 4
# The chain decodes one expression at a time, the graph test all of them at once.
BATCHING = 1e-5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_reference(loaded("tiny"), "optimised", NUM_FRAMES, folder)
    return folder


@pytest.fixture(scope="module")
def tensors(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "reference.safetensors")


class TestRelativeError:
    @pytest.mark.parametrize(
        ("found", "expected", "error"),
        [
            ([1.0, 2.0], [1.0, 2.0], 0.0),
            ([1.0, -3.0], [1.0, -4.0], 0.25),
            ([0.5, 0.0], [0.0, 0.0], 0.5),
            ([0.0, 0.0], [0.0, 0.0], 0.0),
            ([8.0, 0.0], [0.0, 4.0], 2.0),
        ],
    )
    def test_by_hand(self, found: list[float], expected: list[float], error: float) -> None:
        assert relative_error(np.float32(found), np.float32(expected)) == error

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_never_passes_and_is_json(self, value: float) -> None:
        one, bad = np.float32([1.0, 1.0]), np.float32([1.0, value])
        for pair in ((bad, one), (one, bad), (bad, bad)):
            error = relative_error(*pair)
            assert error == NOT_FINITE > MAX_RELATIVE_ERROR
            assert json.loads(json.dumps(error, allow_nan=False)) == error

    def test_a_small_difference_of_large_values_is_not_lost(self) -> None:
        large = np.float32([16777216.0])
        assert relative_error(large + 2, large) == 2 / 16777216


class TestMaskIou:
    @pytest.mark.parametrize(
        ("found", "expected", "iou"),
        [
            ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
            ([1, 1, 1, 0], [0, 1, 1, 1], 0.5),
            ([1, 0, 0, 0], [0, 1, 0, 0], 0.0),
            ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
            ([0, 0, 0, 0], [0, 0, 0, 1], 0.0),
        ],
    )
    def test_by_hand(self, found: list[int], expected: list[int], iou: float) -> None:
        assert mask_iou(np.array(found, bool), np.array(expected, bool)) == iou


def parity(**changes: float) -> Parity:
    figures = {"max_graph_error": 0.0, "max_chain_error": 0.0, "min_mask_iou": 1.0}
    values = {**figures, **changes, "mean_mask_iou": 1.0}
    return Parity("v", "fp32", "b", 5, [3], {}, [], **values, bounds=BOUNDS["fp32"])


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"max_graph_error": MAX_RELATIVE_ERROR, "min_mask_iou": MIN_MASK_IOU}, True),
        ({"max_graph_error": MAX_RELATIVE_ERROR * 1.001}, False),
        ({"min_mask_iou": MIN_MASK_IOU - 1e-6}, False),
    ],
)
def test_both_bounds_must_hold(changes: dict[str, float], passed: bool) -> None:
    found = parity(**changes)
    assert found.passed is passed
    assert found.verdict.startswith("parity passed: " if passed else "parity FAILED: ")
    assert f"mask IoU at least {found.min_mask_iou:.6f}" in found.verdict


class TestMovingFrames:
    def test_form(self) -> None:
        frames = moving_frames(3, 7, (90, 160))
        assert frames.shape == (3, 90, 160, 3)
        assert frames.dtype == np.uint8
        assert frames.std() > 30

    def test_repeatable_and_its_beginning_does_not_depend_on_its_length(self) -> None:
        first = moving_frames(4, 7, (90, 160))
        assert_array_equal(first, moving_frames(4, 7, (90, 160)))
        assert_array_equal(first[:2], moving_frames(2, 7, (90, 160)))

    def test_seeds_differ(self) -> None:
        assert (moving_frames(1, 7, (90, 160)) != moving_frames(1, 8, (90, 160))).mean() > 0.5

    def test_objects_move(self) -> None:
        """The grain stands still, the gradient drifts a little; discs change colours a lot."""
        frames = moving_frames(4, 7).astype(int)
        for before, after in itertools.pairwise(frames):
            assert (np.abs(after - before).max(axis=-1) > 60).mean() > 0.005


class TestReference:
    def test_record(self, reference: Path) -> None:
        record = json.loads((reference / "reference.json").read_text())
        lengths = [len(loaded("tiny").tokenizer.encode(text).ids) for text in EXPRESSIONS]
        assert record == {
            "expressions": list(EXPRESSIONS),
            "first_frames": [0, 0, LATE_FRAME],
            "num_frames": NUM_FRAMES,
            "num_tokens": lengths,
        }
        assert len(set(lengths)) == len(EXPRESSIONS)

    @pytest.mark.parametrize("split", ["optimised", "baseline"])
    def test_every_tensor_of_every_graph(self, split: str, tmp_path: Path) -> None:
        write_reference(loaded("tiny"), split, 3, tmp_path)
        found = load_file(tmp_path / "reference.safetensors")
        sizes = {"M": 2, "B": 3, "N": 19}
        expected = {
            f"{graph}.{side}.{spec.name}": spec.shape(sizes)
            for graph, specs in contract(128, 8, split).items()
            for side, group in (("in", specs.inputs), ("out", specs.outputs))
            for spec in group
        }
        graphs = {k: tuple(v.shape) for k, v in found.items() if ".in." in k or ".out." in k}
        assert graphs == expected

    def test_the_chain_begins_where_the_expression_joins(self, tensors: dict[str, Tensor]) -> None:
        found = {tuple(map(int, key.split(".")[1:3])) for key in tensors if key[:6] == "chain."}
        late = len(EXPRESSIONS) - 1
        assert found == {
            (expression, frame)
            for expression in range(len(EXPRESSIONS))
            for frame in range(NUM_FRAMES)
            if expression != late or frame >= LATE_FRAME
        }

    def test_the_chain_hands_the_track_token_on(self, tensors: dict[str, Tensor]) -> None:
        """The late expression, once more by hand: no token first, then that of the frame before."""
        of = model("tiny")
        ids = torch.tensor([loaded("tiny").tokenizer.encode(EXPRESSIONS[-1]).ids])
        frames = tensors["frames"].numpy()
        preprocess = Preprocessor(frames.shape[1:3], PreprocessConfig(128, None))
        token, has_track = torch.zeros(1, 256), torch.tensor([False])
        for index in (LATE_FRAME, LATE_FRAME + 1):
            with torch.no_grad():
                words, sentence = of.encode_text(ids, torch.ones_like(ids))
                image = of.encode_image(torch.from_numpy(preprocess(frames[index])))
                out = of.step(*image, words, ids > 0, sentence, token, has_track)
            token, has_track = out.next_track_token, torch.tensor([True])
            prefix = f"chain.{len(EXPRESSIONS) - 1}.{index}"
            assert relative(tensors[f"{prefix}.low_res_logits"], out.low_res_logits[0]) == 0
            assert relative(tensors[f"{prefix}.track_token"], token[0]) == 0

    def test_graph_outputs_agree_with_the_chain(self, tensors: dict[str, Tensor]) -> None:
        """The step's inputs are frame 1, two tokens of frame 0, and a newcomer, padded."""
        assert tensors["decoder_step.in.has_track"].tolist() == [True, True, False]
        logits = tensors["decoder_step.out.low_res_logits"]
        for expression in (0, 1):
            alone = tensors[f"chain.{expression}.1.low_res_logits"]
            assert relative(logits[expression], alone) <= BATCHING

    def test_the_track_token_and_the_newcomer_matter(self, tensors: dict[str, Tensor]) -> None:
        first, second = (tensors[f"chain.0.{index}.low_res_logits"] for index in (0, 1))
        assert relative(second, first) > 100 * MAX_RELATIVE_ERROR


class TestCompare:
    def test_another_split_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        write_reference(loaded("tiny"), "baseline", 3, tmp_path)
        with pytest.raises(UsageError) as error:
            compare(bundle, tmp_path)
        assert "the reference lacks decoder_step.in.image_base, " in str(error.value)
        assert "image_encoder.out.image_q0, " in str(error.value)
        assert "it was written for another split; write it for 'optimised'" in str(error.value)

    def test_an_unknown_variant_is_refused(self, bundle: Path, reference: Path) -> None:
        with pytest.raises(UsageError, match="the bundle has no variant 'int8'; it has: fp32-aug"):
            compare(bundle, reference, "int8")

    def test_a_process_of_its_own_gives_the_same_figures(
        self, bundle: Path, reference: Path
    ) -> None:
        assert in_process(compare, bundle, reference) == compare(bundle, reference)

    def test_the_comparing_process_knows_neither_torch_nor_onnx(
        self, bundle: Path, reference: Path
    ) -> None:
        code = (
            "import json, pathlib, sys\n"
            "from refsam_export.parity.compare import compare\n"
            "print(json.dumps(compare(*map(pathlib.Path, sys.argv[1:])).to_json()))\n"
            "heavy = ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'transformers')\n"
            "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
        )
        command = [sys.executable, "-c", code, str(bundle), str(reference)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures, heavy = map(json.loads, done.stdout.splitlines())
        assert figures["passed"]
        assert heavy == []

    def test_a_wrong_chain_alone_fails(self, bundle: Path, reference: Path, tmp_path: Path) -> None:
        changed = load_file(reference / "reference.safetensors")
        key = "chain.0.2.low_res_logits"
        changed[key] = -changed[key]
        save_file(changed, tmp_path / "reference.safetensors")
        shutil.copy(reference / "reference.json", tmp_path)
        found = compare(bundle, tmp_path)
        assert found.max_graph_error <= MAX_RELATIVE_ERROR
        assert not found.passed
        bad = [(r.frame, r.expression) for r in found.chain if r.mask_iou < MIN_MASK_IOU]
        assert bad == [(2, 0)]
        assert found.max_chain_error > 1


@pytest.fixture(scope="module")
def two(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two: `fp32-sound`, and `fp32-broken` with one changed number in its step."""
    base = tmp_path_factory.mktemp("two")
    opened = open_bundle(bundle, verify="deferred")
    (sound,) = opened.manifest.variants.values()
    # `write_bundle` moves what it is given: only copies, other tests use the bundle too.
    tokenizer = opened.manifest.tokenizer.file
    files = {tokenizer: Path(shutil.copy(opened.path(tokenizer), base))}
    variants = {}
    for name in ("fp32-sound", "fp32-broken"):
        folder = base / name
        folder.mkdir()
        graphs = {}
        for graph, entry in sound.graphs.items():
            for suffix in ("", ".data"):
                of = shutil.copy(f"{bundle / entry.file}{suffix}", folder)
                files[f"graphs/{name}/{Path(of).name}"] = Path(of)
            file = f"graphs/{name}/{Path(entry.file).name}"
            graphs[graph] = msgspec.structs.replace(entry, file=file)
        variants[name] = msgspec.structs.replace(sound, graphs=graphs)
    change_graph(
        base / "fp32-broken" / "decoder_step.onnx",
        lambda name, _: "mlp.norm.bias" in name,
        lambda value: 2 * value,
    )
    manifest = msgspec.structs.replace(opened.manifest, variants=variants, source=None)
    return write_bundle(base / "bundle", manifest=manifest, files=files).folder


class TestSeveralVariants:
    def test_one_must_be_named(self, two: Path, reference: Path) -> None:
        with pytest.raises(UsageError, match="several variants, name one of them: fp32-broken, fp"):
            compare(two, reference)

    @pytest.mark.parametrize(("variant", "passed"), [("fp32-sound", True), ("fp32-broken", False)])
    def test_the_named_one_is_compared(
        self, two: Path, reference: Path, variant: str, passed: bool
    ) -> None:
        found = in_process(compare, two, reference, variant)
        assert (found.variant, found.passed) == (variant, passed)
        graphs = {graph: max(errors.values()) for graph, errors in found.graphs.items()}
        assert graphs.pop("decoder_step") > MAX_RELATIVE_ERROR or passed
        assert max(graphs.values()) <= MAX_RELATIVE_ERROR
        # Chain and graphs are of the same variant.
        assert (found.max_chain_error <= MAX_RELATIVE_ERROR) is passed
