"""Official checkpoints become models, or are refused with what they are and what to do."""

import argparse
import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from referdino_files import lora_names, with_lora, with_tied_names, write_official, write_vocabulary
from referdino_golden import case, official_weights, record
from referdino_models import SHORT, SPECIAL_IDS, frames, model, relative
from safetensors.torch import save_file
from torch import Tensor

from refsam_export.referdino.checkpoint import (
    TOKENIZER_ONLY,
    LoadedModel,
    import_state,
    load_model,
)
from refsam_export.referdino.model.config import PRESETS, preset
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.official_file import read_official
from refsam_export.referdino.reference import Reference, normalised
from refsam_export.referdino.tokenizer import read_tokenizer, wordpiece
from refsam_trt.errors import CheckpointError, UsageError

HERE = Path("ryt_tiny.pth")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", ",", "a", "dog", "run", "##ning"]
WORDS += [f"word{i}" for i in range(32 - len(WORDS))]
RANK = 4


@functools.cache
def official() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a whole state in the official layout, and the weights that it stands for."""
    state, expected = with_lora(model("tiny"), RANK)
    return with_tied_names(state, preset("tiny").decoder_layers), expected


def state() -> dict[str, Tensor]:
    return dict(official()[0])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("official")
    path = write_official(folder / "ryt_tiny.pth", state())
    words = write_vocabulary(folder / "bert", WORDS)
    return load_model(path, words, backbone="tiny", dtype=torch.float64)


def test_every_tensor_is_loaded_and_folded_once(loaded: LoadedModel):
    expected = official()[1]
    tensors = loaded.model.state_dict()
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(tensors[key], value, rtol=0, atol=1e-14), key
    assert loaded.model.config == preset("tiny")
    report = loaded.report
    assert (report.num_loaded, report.num_folded) == (len(expected), 48)
    assert report.num_folded == len(lora_names(2, 3))
    assert report.temporal.startswith("on")
    assert report.unexpected == ()
    assert report.dropped[:2] == (
        "backbone.0.layers.0.blocks.0.attn.relative_position_index",
        "backbone.0.layers.0.blocks.1.attn.relative_position_index",
    )
    assert set(report.dropped[-3:]) == {
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "transformer.total_params",
    }
    num_temporal = sum(key.startswith("temporal_decoder.0.") for key in expected)
    # Box layers: five names more of six tensors; the head: one more of four and of their pairs.
    assert report.num_tied == 2 * num_temporal + 5 * 6 + 8


def test_what_a_user_is_told(loaded: LoadedModel):
    assert loaded.warnings == (TOKENIZER_ONLY,)
    assert [source.role for source in loaded.sources] == ["checkpoint", "tokenizer"]
    assert loaded.text.special_ids == (2, 3, 5, 6)
    assert loaded.text.pad_id == 0
    assert loaded.text.tokenizer.encode("A dog, running.").tokens == [
        *("[CLS]", "a", "dog", ",", "run", "##ning", ".", "[SEP]")
    ]


def test_a_loaded_model_runs(loaded: LoadedModel):
    images = normalised(frames(1), torch.float64)
    clip = Reference(loaded.model, loaded.text.special_ids).run(images, np.array(SHORT))
    other = copy.deepcopy(model("tiny"))
    other.load_state_dict(official()[1])
    expected = Reference(other, SPECIAL_IDS).run(images, np.array(SHORT))
    assert relative(clip.mask_logits.numpy(), expected.mask_logits.numpy()) < 1e-10


def test_the_golden_weights_as_a_file(tmp_path: Path):
    weights = official_weights()
    tied = {key: weights[first] for key, first in record()["tied"].items()}
    dropped = {key: torch.zeros(1, dtype=torch.long) for key in record()["dropped"]}
    path = write_official(tmp_path / "golden.pth", weights | tied | dropped)
    words = write_vocabulary(tmp_path / "bert", record()["vocab"])
    loaded = load_model(path, words, dtype=torch.float64)
    assert loaded.report.num_tied == len(tied)
    assert loaded.report.unexpected == ()
    golden = case("a0")
    images = normalised(golden.frames[:2], torch.float64)
    clip = Reference(loaded.model, loaded.text.special_ids).run(images, golden["input_ids"])
    assert (
        relative(torch.cat([frame.hs for frame in clip.grounding]).numpy(), golden["hs"][:2])
        < 1e-10
    )
    assert np.array_equal(clip.permutations[1], golden["track_permutations"][0])


def test_single_precision_is_the_default():
    made, _ = import_state(state(), HERE)
    tensors = made.state_dict()
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    for key, value in official()[1].items():
        assert torch.equal(tensors[key], value.float()), key


def test_sizes_come_from_shapes():
    for name in ("narrow", "odd"):
        of = model(name)
        whole = with_tied_names(with_lora(of, 2)[0], of.config.decoder_layers)
        made, _ = import_state(whole, HERE)
        assert made.config == of.config


@pytest.mark.parametrize(
    ("name", "millions"),
    [("swinb", {"all": 242.8, "backbone.": 86.880, "bert.": 108.892}), ("swint", {"all": 182.7})],
)
def test_presets_have_the_published_sizes(name: str, millions: dict[str, float]):
    with torch.device("meta"):
        tensors = ReferDino(PRESETS[name]).state_dict()
    for prefix, expected in millions.items():
        count = sum(
            v.numel() for k, v in tensors.items() if prefix == "all" or k.startswith(prefix)
        )
        assert count / 1e6 == pytest.approx(expected, abs=0.06)


def test_presets_and_configurations_are_checked():
    with pytest.raises(UsageError, match="no ReferDINO preset named 'vitb'; choose one of swint"):
        preset("vitb")
    with pytest.raises(UsageError, match="mask_layers 0 is no size"):
        dataclasses.replace(preset("tiny"), mask_layers=0)
    with pytest.raises(UsageError, match="width 200 must be a multiple of 128"):
        dataclasses.replace(preset("tiny"), width=200)
    with pytest.raises(UsageError, match="Swin has 4 stages, found depths"):
        dataclasses.replace(preset("tiny"), swin_depths=(2, 2))
    assert preset("swinb").num_kept == (450, 225, 113, 57, 29, 15)


# Temporal blocks.


def untouched(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state whose temporal blocks are as PyTorch initialises them."""
    for key, value in whole.items():
        if key.startswith("temporal_decoder."):
            if "norm" in key:
                whole[key] = torch.ones_like(value) if "weight" in key else torch.zeros_like(value)
            elif key.endswith(("in_proj_bias", "out_proj.bias")):
                whole[key] = torch.zeros_like(value)
    return whole


def test_untrained_temporal_blocks_are_recognised():
    made, report = import_state(untouched(state()), HERE)
    assert not made.config.temporal
    assert report.temporal.startswith("off: the temporal blocks are as they were initialised")


@pytest.mark.parametrize(
    "key",
    [
        "norm.1.weight",
        "norm.0.bias",
        "layer.0.norm.weight",
        "layer.1.decoder.norm2.bias",
        "layer.0.self_attn.in_proj_bias",
        "layer.1.decoder.multihead_attn.out_proj.bias",
    ],
)
def test_one_trained_number_is_enough(key: str):
    whole = untouched(state())
    for layer in range(3):
        name = f"temporal_decoder.{layer}.{key}"
        whole[name] = whole[name].clone()
        whole[name][3] += 1e-6
    assert import_state(whole, HERE)[0].config.temporal


# Refusals of what is in a state dictionary.


def changed(key: str, value: Tensor | None) -> dict[str, Tensor]:
    whole = state()
    if value is None:
        del whole[key]
    else:
        assert key in whole
        whole[key] = value
    return whole


def without_pair(name: str) -> dict[str, Tensor]:
    whole = state()
    del whole[f"{name}.lora_A"], whole[f"{name}.lora_B"]
    return whole


LINEAR = "transformer.encoder.layers.0.linear1"
REFUSED_STATES = {
    "tied names that differ": (
        lambda: changed("bbox_embed.1.layers.0.bias", torch.ones(256, dtype=torch.float64)),
        "bbox_embed.1.layers.0.bias are one tensor in the model, but differ in the file",
    ),
    "tied LoRA that differs": (
        lambda: changed("ref_point_head.layers.0.lora_A", torch.ones(4, 512, dtype=torch.float64)),
        "ref_point_head.layers.0.lora_A are one tensor in the model, but differ",
    ),
    "half a pair": (
        lambda: changed(f"{LINEAR}.lora_B", None),
        f"{LINEAR} has not all of weight, lora_A and lora_B",
    ),
    "a pair that does not fit": (
        lambda: changed(f"{LINEAR}.lora_A", torch.ones(4, 99)),
        "lora_B [128, 4] times lora_A [4, 99] is no weight of shape [128, 256]",
    ),
    "a pair that is gone": (
        lambda: without_pair(LINEAR),
        "has 47 pairs of LoRA, ReferDINO has 48; nobody can tell whether the others are part",
    ),
    "no LoRA at all": (
        lambda: {key: value for key, value in state().items() if ".lora_" not in key},
        "has 0 pairs of LoRA, ReferDINO has 48; nobody can tell",
    ),
    "a gap": (
        lambda: changed("transformer.enc_output.bias", None),
        "1 tensors are missing: transformer.enc_output.bias; fetch the file again",
    ),
    "many gaps": (
        lambda: {key: value for key, value in state().items() if "input_proj" not in key},
        "16 tensors are missing: input_proj.0.0.bias",
    ),
    "a gap where a size is told": (
        lambda: changed("transformer.tgt_embed.weight", None),
        "has no tensor transformer.tgt_embed.weight, by which its size is known",
    ),
    "another shape": (
        lambda: changed("feat_map.bias", torch.ones(255)),
        "feat_map.bias has shape [255], [256] expected after the other tensors",
    ),
    "another backbone": (
        lambda: changed("backbone.0.patch_embed.proj.weight", torch.ones(192, 3, 4, 4)),
        "its backbone begins with 192 channels; known are 96 (swint), 128 (swinb), 16 (tiny)",
    ),
    "quantised": (
        lambda: changed("feat_map.bias", torch.ones(256, dtype=torch.int8)),
        "feat_map.bias is int8; expected floating-point numbers of 16, 32 or 64 bits",
    ),
    "not finite": (
        lambda: changed("feat_map.bias", torch.full((256,), torch.nan)),
        "feat_map.bias holds values that are not finite; fetch it again",
    ),
    "GroundingDINO in the same dictionary": (
        lambda: {k: v for k, v in state().items() if not k.startswith(("pixel_", "mask_"))},
        "weights of GroundingDINO, which ReferDINO began from: they have no masks",
    ),
}


@pytest.mark.parametrize("name", REFUSED_STATES)
def test_a_state_is_refused(name: str):
    make, message = REFUSED_STATES[name]
    with pytest.raises(CheckpointError) as raised:
        import_state(make(), HERE)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{HERE}: ")


def test_a_backbone_that_was_insisted_on():
    with pytest.raises(CheckpointError, match="a checkpoint of tiny, not of swinb; leave"):
        import_state(state(), HERE, backbone="swinb")


def test_what_has_no_place_is_reported():
    whole = state() | {"transformer.extra.weight": torch.ones(3)}
    assert import_state(whole, HERE)[1].unexpected == ("transformer.extra.weight",)


def test_names_of_parallel_training():
    parallel = {f"module.{key}": value for key, value in state().items()}
    assert import_state(parallel, HERE)[1].num_folded == 48


def test_a_tensor_with_and_without_the_name_of_parallel_training_is_refused():
    key = next(iter(state()))
    twice = state() | {f"module.{key}": state()[key] + 1}
    with pytest.raises(CheckpointError, match=r"both with and without 'module\.'"):
        import_state(twice, HERE)


# Refusals of files.


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


ONE = torch.ones(1)
REFUSED_FILES = {
    "GroundingDINO": (
        {"model": {"module.transformer.decoder.norm.weight": ONE, "module.bert.x": ONE}},
        "weights of GroundingDINO, which ReferDINO began from",
    ),
    "SAM": (
        {"image_encoder.pos_embed": ONE, "prompt_encoder.x": ONE, "mask_decoder.x": ONE},
        "weights of SAM; they belong to --sam-checkpoint with --family refsam",
    ),
    "BERT": ({"bert.embeddings.LayerNorm.weight": ONE}, "weights of BERT; ReferDINO has BERT's"),
    "no dictionary around it": (
        {"transformer.decoder.norm.weight": ONE, "pixel_decoder.lay1.weight": ONE},
        "ReferDINO's weights without the dictionary around them; save them again",
    ),
    "a part of RefSAM": (
        {"0.norm1.weight": ONE},
        "not a checkpoint of ReferDINO: expected tensors by name in 'model_state_dict', found "
        "0.norm1.weight",
    ),
    "no dictionary": ([ONE], "found a list, expected a dictionary with 'model_state_dict'"),
    "no tensors": ({"model_state_dict": {"epoch": 3}}, "expected tensors by name in"),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_file_of_another_model_is_refused(name: str, tmp_path: Path):
    content, message = REFUSED_FILES[name]
    path = saved(tmp_path / "file.pth", content)
    with pytest.raises(CheckpointError) as raised:
        read_official(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_official(tmp_path / "absent.pth")
    whole = saved(tmp_path / "whole.pth", {"model_state_dict": {"x": torch.ones(999)}})
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="truncated, or not written by"):
        read_official(cut)


def test_safetensors_are_refused(tmp_path: Path):
    save_file({"x": ONE}, tmp_path / "own.safetensors", {"refsam": "{}"})
    with pytest.raises(CheckpointError, match="a weights file of RefSAM, not of ReferDINO"):
        read_official(tmp_path / "own.safetensors")
    save_file({"x": ONE}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="a safetensors file; ReferDINO's checkpoints are"):
        read_official(tmp_path / "other.safetensors")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_names_more_is_refused(is_zip: bool, tmp_path: Path):
    path = tmp_path / "code.pth"
    content = {"model_state_dict": {"x": ONE}, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    names = "argparse.Namespace" if is_zip else "functions or classes of its own"
    with pytest.raises(CheckpointError) as raised:
        read_official(path)
    assert f"refused, because the file names {names} and loading that would run" in str(
        raised.value
    )


def test_what_a_trainer_leaves_beside_the_weights_is_no_hindrance(tmp_path: Path):
    """Counters and numpy scalars, and names that numpy 1 wrote."""
    path = write_official(tmp_path / "a2d.pth", {"x": ONE})
    assert torch.equal(read_official(path)["x"], ONE)
    old = tmp_path / "old.pth"
    torch.save(
        {"model_state_dict": {"x": ONE}, "best": np.float64(1)},
        old,
        _use_new_zipfile_serialization=False,
    )
    content = old.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in content
    old.write_bytes(content)
    assert torch.equal(read_official(old)["x"], ONE)


# The tokenizer.


def test_a_folder_with_a_tokenizer_file(tmp_path: Path):
    wordpiece(WORDS).tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    source = read_tokenizer(tmp_path, len(WORDS))
    text = "A dog running?  A DOG."
    expected = wordpiece(WORDS).tokenizer.encode(text).ids
    assert source.tokenizer.encode(text).ids == expected
    assert [(s.role, s.name) for s in source.sources] == [("tokenizer", "tokenizer.json")]


def test_words_that_cannot_be_composed():
    tokens = wordpiece(WORDS).tokenizer.encode("a,dog runs?").tokens
    assert tokens == ["[CLS]", "a", ",", "dog", "[UNK]", "?", "[SEP]"]


def test_folders_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder; --text-encoder takes a folder of"):
        read_tokenizer(tmp_path / "absent", 32)
    with pytest.raises(
        CheckpointError, match=r"no tokenizer; expected tokenizer.json or vocab.txt"
    ):
        read_tokenizer(tmp_path, 32)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        read_tokenizer(tmp_path, 32)


def test_tokenizers_of_another_model(tmp_path: Path):
    write_vocabulary(tmp_path, WORDS)
    with pytest.raises(CheckpointError, match="has 32 tokens, the checkpoint knows 30522"):
        read_tokenizer(tmp_path, 30522)
    write_vocabulary(tmp_path, [word for word in WORDS if word not in ("?", "[PAD]")])
    with pytest.raises(CheckpointError, match=r"has no token \[PAD\], \?; take the folder of bert"):
        read_tokenizer(tmp_path, 30)
    cased = wordpiece([*WORDS, "A"]).tokenizer
    cased.normalizer = None
    cased.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        CheckpointError, match="expected a lower-case WordPiece tokenizer that adds"
    ):
        read_tokenizer(tmp_path, 33)
