"""Parity of full-size models: one frame at a time, one graph at a time, nothing kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import exported
from reference_models import loaded, model, relative
from torch import Tensor, nn

import refsam_export.parity.graph_runs as graph_runs
import refsam_export.refsam.attention as attention
from refsam_export.parity.compare import compare, read_reference
from refsam_export.parity.inputs import named_frames
from refsam_export.parity.reference import write_reference
from refsam_export.refsam.attention import HEADWISE, with_attention
from refsam_export.refsam.checkpoint import load_model
from refsam_export.refsam.programs import release, split_graphs
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.image.preprocess import Preprocessor

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_reference(loaded("tiny"), "optimised", NUM_FRAMES, folder)
    return folder


class TestReference:
    def test_the_encoder_sees_every_frame_once_and_alone(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        sizes = []
        real = type(model("tiny")).encode_image

        def count(of: Any, image: Tensor, *rest: Any) -> Any:
            sizes.append(len(image))
            return real(of, image, *rest)

        monkeypatch.setattr(type(model("tiny")), "encode_image", count)
        write_reference(loaded("tiny"), "optimised", 7, tmp_path)
        assert sizes == [1] * 7

    def test_no_frame_outlives_its_own_step(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What is alive when a frame begins does not grow with the frames before it."""
        alive = []
        real = type(model("tiny")).encode_image

        def count(of: Any, image: Tensor, *rest: Any) -> Any:
            import gc

            alive.append(sum(t.nbytes for t in gc.get_objects() if type(t) is Tensor))
            return real(of, image, *rest)

        monkeypatch.setattr(type(model("tiny")), "encode_image", count)
        write_reference(loaded("tiny"), "optimised", 8, tmp_path)
        # Two frames begin the tracks and the third brings an expression; then nothing is added.
        assert max(alive[4:]) <= alive[3]

    def test_the_text_encoder_is_gone_before_the_first_frame(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        own = load_model("tiny", random_init=0)
        is_there = []
        real = type(own.model).encode_image

        def look(of: Any, *arguments: Any) -> Any:
            is_there.append(of.text_encoder is not None)
            return real(of, *arguments)

        monkeypatch.setattr(type(own.model), "encode_image", look)
        write_reference(own, "optimised", 3, tmp_path, frees_text=True)
        assert is_there == [False] * 3
        assert own.model.text_encoder is None

    def test_its_memory_is_given_back_whoever_still_knows_it(self, tmp_path: Path) -> None:
        own = load_model("tiny", random_init=0)
        known = list(own.model.text_encoder.parameters())
        image = list(own.model.image_encoder.parameters())
        write_reference(own, "optimised", 3, tmp_path, frees_text=True)
        assert sum(tensor.untyped_storage().nbytes() for tensor in known) == 0
        assert all(tensor.untyped_storage().nbytes() for tensor in image)
        release(own.model)
        assert not any(tensor.untyped_storage().nbytes() for tensor in image)

    def test_frames_are_told_of(self, tmp_path: Path) -> None:
        told: list[int] = []
        write_reference(loaded("tiny"), "baseline", 3, tmp_path, watch=told.append)
        assert told == [0, 1, 2]

    @pytest.mark.parametrize("split", ["optimised", "baseline"])
    def test_one_by_one_is_what_a_batch_was(self, split: Any, tmp_path: Path) -> None:
        """The old way: both images in one call, SAM's attention over all heads at once."""
        write_reference(loaded("tiny"), split, 3, tmp_path)
        tensors, _ = read_reference(tmp_path)
        of = loaded("tiny").model
        frames = list(named_frames(2))
        preprocess = Preprocessor(frames[0].shape[:2], of.config.preprocess)
        images = torch.from_numpy(np.concatenate([preprocess(frame) for frame in frames]))
        batch = split_graphs(of, split).run(IMAGE_ENCODER, {"image": images})
        assert np.array_equal(tensors["image_encoder.in.image"], images.numpy())
        for name, value in batch.items():
            # Products of two frames and of one may add in another order.
            assert relative(torch.tensor(tensors[f"image_encoder.out.{name}"]), value) < 2e-6


class TestHeadwise:
    @pytest.mark.parametrize("at_once", [1, 3, 10**6])
    def test_some_heads_at_a_time_are_all_heads(
        self, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = model("tiny").image_encoder
        monkeypatch.setattr(attention, "_MAX_SCORES", at_once * 8**4)
        image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = with_attention(encoder, HEADWISE)(image), encoder(image)
        assert relative(ours[0], theirs[0]) < 2e-6
        for part, expected in zip(ours[1], theirs[1], strict=True):
            assert relative(part, expected) < 2e-6

    def test_no_more_scores_than_one_head_of_a_frame(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        real = torch.softmax

        def count(x: Tensor, dim: int) -> Tensor:
            sizes.append(x.numel())
            return real(x, dim=dim)

        encoder = with_attention(model("tiny").image_encoder, HEADWISE)
        monkeypatch.setattr(attention, "_MAX_SCORES", 8**4)
        monkeypatch.setattr(torch, "softmax", count)
        with torch.no_grad():
            encoder(torch.zeros(1, 3, 128, 128))
        assert max(sizes) == 8**4

    def test_the_weights_are_the_model_s(self) -> None:
        encoder = model("tiny").image_encoder
        changed: nn.Module = with_attention(encoder, HEADWISE)
        ours = {tensor.data_ptr() for tensor in changed.parameters()}
        assert ours == {tensor.data_ptr() for tensor in encoder.parameters()}


class TestCompare:
    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the graphs that are loaded, in their order."""
        names: list[str] = []
        real = OrtCpuBackend.load

        def load(backend: OrtCpuBackend, path: Path, spec: Any) -> Any:
            names.append(path.stem)
            return real(backend, path, spec)

        monkeypatch.setattr(OrtCpuBackend, "load", load)
        return names

    def test_the_text_graph_is_loaded_once_and_alone(
        self, loads: list[str], bundle: Path, reference: Path
    ) -> None:
        assert compare(bundle, reference).passed
        assert sorted(loads[:3]) == ["decoder_step", "image_encoder", "text_encoder"]
        assert sorted(loads[3:]) == ["decoder_step", "image_encoder"]

    def test_graphs_go_before_the_next_one_comes(
        self, monkeypatch: pytest.MonkeyPatch, bundle: Path, reference: Path
    ) -> None:
        import weakref

        graphs: list[weakref.ref[Any]] = []
        alive = []
        real = graph_runs.GraphRuns.load

        def load(runs: Any, name: str) -> Any:
            alive.append(sum(graph() is not None for graph in graphs))
            graph = real(runs, name)
            graphs.append(weakref.ref(graph))
            return graph

        monkeypatch.setattr(graph_runs.GraphRuns, "load", load)
        compare(bundle, reference)
        assert alive == [0, 0, 0]

    def test_the_graph_sees_one_frame_at_a_time(self, bundle: Path, reference: Path) -> None:
        from refsam_trt.bundle.open import open_bundle

        (variant,) = open_bundle(bundle, verify="deferred").manifest.variants.values()
        tensors, _ = read_reference(reference)
        spec = variant.graphs[IMAGE_ENCODER].spec
        calls = list(graph_runs.graph_calls(IMAGE_ENCODER, spec, tensors))
        assert [len(call.inputs["image"]) for call in calls] == [1, 1]

    def test_everything_is_told_of(self, bundle: Path, reference: Path) -> None:
        told: list[str] = []
        compare(bundle, reference, watch=told.append)
        frames = [f"chain frame {index + 1}" for index in range(NUM_FRAMES)]
        assert sorted(told) == sorted(
            ["image_encoder", "image_encoder", "text_encoder", "decoder_step", *frames]
        )


@pytest.mark.parametrize("attention_form", ["augmented"])
def test_an_exported_graph_takes_several_frames_all_the_same(
    attention_form: str, bundle: Path, reference: Path
) -> None:
    """Parity gives it one at a time; two in one call are each what they are alone."""
    from refsam_trt.bundle.open import open_bundle

    opened = open_bundle(bundle, verify="deferred")
    (variant,) = opened.manifest.variants.values()
    entry = variant.graphs[IMAGE_ENCODER]
    tensors, _ = read_reference(reference)
    backend = OrtCpuBackend()
    context = backend.load(opened.path(entry.file), entry.spec).context()
    outputs = {
        t.name: backend.empty(tensors[f"image_encoder.out.{t.name}"].shape, t.dtype)
        for t in entry.spec.outputs
    }
    context.run({"image": backend.upload(tensors["image_encoder.in.image"])}, outputs)
    for name, buffer in outputs.items():
        expected = torch.tensor(tensors[f"image_encoder.out.{name}"])
        assert relative(torch.tensor(backend.download(buffer)), expected) < 1e-4
