"""`refsam-export` end to end on what is not the paper's model with T5: two exports cover it all."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_bundles import changed_bundle
from checkpoint_files import sam_tensors, save_sam
from numpy_reference import random_weights
from part_files import RELEASED, part_tensors, save_part, with_lora
from reference_models import variant
from text_folders import save_clip, save_roberta

import refsam_trt
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_export.cli import command
from refsam_export.parity.compare import MAX_RELATIVE_ERROR, MIN_MASK_IOU, compare
from refsam_export.parity.inputs import moving_frames
from refsam_export.parity.reference import write_reference
from refsam_export.refsam.checkpoint import canonical_tensors
from refsam_export.source import load_source
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.errors import CheckpointError

TINY = ("--backbone", "tiny", "--random-init", "0", "--parity-frames", "3")


@dataclass(frozen=True)
class Exported:
    bundle: Bundle
    err: str


def export(target: Path, *options: object) -> Exported:
    arguments = [str(argument) for argument in (*TINY, "--output", target, *options)]
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        command.main(arguments, standalone_mode=False)
    return Exported(open_bundle(target), err.getvalue())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the released scripts leave behind, and what they begin with."""
    folder = tmp_path_factory.mktemp("files")
    of = variant(hda_levels=1, itm="qim", adapter_act="gelu")
    for kind in RELEASED:
        tensors = part_tensors(of, kind)
        save_part(folder, kind, with_lora(tensors) if kind.startswith("image") else tensors)
    # Of CLIP's width, with drop-out: the second layer has index 3.
    weights = random_weights.fill(random_weights.resizer_shapes(48, None), seed=0)
    resizer = {
        key.replace("resizer.2", "3").replace("resizer.", ""): w for key, w in weights.items()
    }
    save_part(folder, "resizer", {k: torch.from_numpy(w).float() for k, w in resizer.items()})
    save_sam(folder / "sam.pth", sam_tensors())
    (folder / "clip").mkdir()
    save_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def released_export(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    parts = [word for path in sorted(files.glob("*_last.pth")) for word in ("--part", path)]
    options = ("--sam-checkpoint", files / "sam.pth", "--text-encoder", files / "clip", *parts)
    target = tmp_path_factory.mktemp("released") / "bundle"
    return export(target, *options, "--configuration", "released", "--no-include-source")


@pytest.fixture(scope="module")
def released(released_export: Exported) -> Bundle:
    return released_export.bundle


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("roberta")
    switches = ("--ablation", "dense-origin", "--ablation", "no-word-tokens")
    options = ("--text-encoder", save_roberta(folder), *switches, "--mask-select", "best_iou")
    options += ("--casing", "keep", "--downscale-short-side", "90")
    return export(tmp_path_factory.mktemp("ablated") / "bundle", *options).bundle


def graph(bundle: Bundle, name: str) -> Any:
    (one,) = bundle.manifest.variants.values()
    return one.graphs[name].spec


@pytest.mark.parametrize("name", ["released", "ablated"])
def test_parity_is_recorded(name: str, request: pytest.FixtureRequest) -> None:
    (figures,) = request.getfixturevalue(name).manifest.parity.values()
    assert figures["max_graph_error"] <= MAX_RELATIVE_ERROR
    assert figures["max_chain_error"] <= MAX_RELATIVE_ERROR
    assert figures["min_mask_iou"] >= MIN_MASK_IOU
    assert all(0 < row["coverage"] < 1 for row in figures["chain"])


def test_the_released_manifest(released: Bundle) -> None:
    manifest = released.manifest
    config = manifest.configuration["model"]
    assert (config["hda_levels"], config["itm"], config["adapter_act"]) == (1, "qim", "gelu")
    assert manifest.preprocess.first_resize == "truncated"
    assert manifest.tokenizer.pad_id == 550
    assert manifest.weights.random_init_seed is None
    assert [s.role for s in manifest.weights.sources].count("part") == len(RELEASED)
    step = {tensor.name: tensor.dims for tensor in graph(released, "decoder_step").inputs}
    assert "hda_features" not in step
    assert step["text_values"] == ("B", 1, "N+1", 640)


def test_the_ablated_manifest(ablated: Bundle) -> None:
    config = ablated.manifest.configuration["model"]
    assert (config["hda_levels"], config["dense_origin"], config["word_tokens"]) == (0, True, False)
    assert config["mask_select"] == "best_iou"
    assert ablated.manifest.tokenizer.lowercase is False
    assert ablated.manifest.preprocess.downscale_short_side == 90
    assert ablated.manifest.tokenizer.pad_id == 1
    names = {tensor.name for tensor in graph(ablated, "decoder_step").inputs}
    assert not names & {"hda_features", "text_values"}
    assert [tensor.name for tensor in graph(ablated, "text_encoder").outputs] == [
        "words",
        "sentence",
    ]


@pytest.mark.parametrize("name", ["released", "ablated"])
def test_sessions_run(name: str, request: pytest.FixtureRequest) -> None:
    """Expressions of several lengths in one step equal each alone."""
    frames = moving_frames(2, seed=1, hw=(90, 160))
    texts = ["the red disc", "the largest striped ball on the left", "blue"]
    with refsam_trt.load(request.getfixturevalue(name).folder) as engine:
        together = {(r.text, r.frame_index): r.logits for r in engine.track(frames, texts)}
        for text in texts:
            for result in engine.track(frames, [text]):
                expected = together[text, result.frame_index]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(result.logits, expected, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "keeps_case"), [("released", False), ("ablated", True)])
def test_capital_letters_are_kept_where_they_were_asked_for(
    name: str, keeps_case: bool, files: Path, request: pytest.FixtureRequest
) -> None:
    bundle = request.getfixturevalue(name)
    frames = moving_frames(2, seed=1, hw=(90, 160))
    texts = ["the Red  disc", "the red disc"]
    with refsam_trt.load(bundle.folder) as engine:
        first, second = engine.track(frames[:1], texts)
        found = list(EngineTracker(engine).track(iter(frames), texts))
    assert first.text == ("the Red disc" if keeps_case else "the red disc")
    assert np.allclose(first.logits, second.logits, rtol=1e-3, atol=1e-3) is not keeps_case
    reference = ReferenceTracker(load_source(bundle, None if keeps_case else files))
    for ours, theirs in zip(found, reference.track(iter(frames), texts), strict=True):
        assert np.mean(np.stack(ours) != np.stack(theirs)) < 1e-3


def test_the_source_is_found_again(released: Bundle, files: Path, tmp_path: Path) -> None:
    restored = load_source(released, files)
    assert restored.weights == released.manifest.weights
    assert restored.model.config.to_json() == released.manifest.configuration["model"]
    write_reference(restored, "optimised", 3, tmp_path)
    assert compare(released.folder, tmp_path).passed
    with pytest.raises(CheckpointError, match="holds no PyTorch weights; give --source FOLDER wit"):
        load_source(released)
    lacking = tmp_path / "lacking"
    shutil.copytree(files, lacking, ignore=shutil.ignore_patterns("dense_conv*"))
    with pytest.raises(
        CheckpointError, match=r"part dense_conv_t5-3b_last\.pth .* not found by SHA"
    ):
        load_source(released, lacking)


def test_the_source_inside_is_the_model(ablated: Bundle) -> None:
    restored = load_source(ablated)
    assert restored.model.config.to_json() == ablated.manifest.configuration["model"]
    assert restored.text_config["model_type"] == "roberta"
    assert restored.missing == ()


def test_a_changed_tracking_module_fails(released: Bundle, files: Path, tmp_path: Path) -> None:
    found = load_source(released, files)
    (tmp_path / "reference").mkdir()
    write_reference(found, "optimised", 3, tmp_path / "reference")
    key = "temporal_aggregation_network.self_attn.out_proj.weight"
    value = canonical_tensors(found.model)[key].numpy()

    def is_wanted(name: str, array: np.ndarray) -> bool:
        return any(np.array_equal(array, form) for form in (value, value.T))

    copy = changed_bundle(released.folder, tmp_path / "b", "decoder_step", is_wanted, np.zeros_like)
    assert not compare(copy, tmp_path / "reference").passed


def test_warnings_come_before_the_work(released_export: Exported, files: Path) -> None:
    part = next(files.glob("image_encoder_blocks*"))
    first, second, third, *_ = released_export.err.splitlines()
    assert first == "refsam-export: loading weights for tiny"
    assert second.startswith(f"refsam-export: warning: {part}: its adapters are noise: the releas")
    assert third == "refsam-export: exporting image_encoder in fp32"
