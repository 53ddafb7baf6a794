"""Hugging Face T5 folders: every layout, both tokenizer files, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    LAYOUTS,
    T5_CONFIG,
    save_t5,
    sharded_safetensors,
    t5_tensors,
    whole_bin,
)
from reference_models import relative

from refsam_export.text.encoders import (
    ASSET,
    VOCAB_SIZE,
    build_text_encoder,
    read_text_folder,
    small_text_source,
    stored_text_source,
)
from refsam_trt.errors import CheckpointError

ENCODER_KEYS = {
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.final_layer_norm.weight",
    *(
        f"encoder.block.{block}.layer.{layer}"
        for block in range(2)
        for layer in (
            *(f"0.SelfAttention.{name}.weight" for name in "qkvo"),
            "0.layer_norm.weight",
            "1.DenseReluDense.wi.weight",
            "1.DenseReluDense.wo.weight",
            "1.layer_norm.weight",
        )
    ),
}
KNOWN = "'t5', 'roberta', 'clip', 'clip_text_model'"
SENTENCES = ("the red disc", "  blue   ball on the left", "Ωmega zebra-42")


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    import sentencepiece

    words = ["red disc", "blue ball", "left of the striped square", "the large star at the top"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_encoder_half(layout: str, tmp_path: Path) -> None:
    source = read_text_folder(save_t5(tmp_path / "t5", LAYOUTS[layout]))
    assert source.config == T5_CONFIG
    assert source.tensors is not None
    assert set(source.tensors) == ENCODER_KEYS
    assert all(torch.equal(source.tensors[key], t5_tensors()[key]) for key in ENCODER_KEYS)
    assert source.tokenizer.to_str() == small_text_source("tiny").tokenizer.to_str()


def test_loaded_as_transformers_itself_loads_it(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    folder = save_t5(tmp_path / "t5")
    source = read_text_folder(folder)
    ours = build_text_encoder(source.config)
    ours.load_state_dict(source.tensors, strict=False)
    twin: Any = T5EncoderModel.from_pretrained(folder, local_files_only=True).eval()
    ids = torch.tensor([source.tokenizer.encode("the red disc").ids])
    with torch.no_grad():
        found, expected = ours(ids).last_hidden_state, twin(ids).last_hidden_state
    assert relative(found, expected) <= 1e-6
    assert not ours.training


def test_written_by_transformers_itself(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    twin: Any = T5ForConditionalGeneration(T5Config(**T5_CONFIG))
    folder = save_t5(tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    twin.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    tensors = read_text_folder(folder).tensors
    assert tensors is not None
    assert set(tensors) == ENCODER_KEYS
    assert torch.equal(tensors["shared.weight"], twin.state_dict()["shared.weight"])


def test_the_tied_embedding_under_its_other_name(tmp_path: Path) -> None:
    tensors = {key: value for key, value in t5_tensors().items() if key != "shared.weight"}
    found = read_text_folder(save_t5(tmp_path / "t5", tensors=tensors)).tensors
    assert found is not None
    assert set(found) == ENCODER_KEYS


def test_sources_are_the_files_that_were_used(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", sharded_safetensors)
    (folder / "generation_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    shards = [f"model-0000{index}-of-00003.safetensors" for index in (1, 2, 3)]
    names = [source.name for source in read_text_folder(folder).sources]
    assert names == ["config.json", "tokenizer.json", *shards]
    assert {source.role for source in read_text_folder(folder).sources} == {"text_encoder"}


def test_sentencepiece_alone(sentencepiece_model: bytes, tmp_path: Path) -> None:
    import sentencepiece

    folder = save_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(sentencepiece_model)
    source = read_text_folder(folder)
    twin = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    for text in SENTENCES:
        assert source.tokenizer.encode(text).ids == [*twin.encode(text), 1]
    assert source.sources[1].name == "spiece.model"


def test_tokenizer_json_comes_before_sentencepiece(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    (folder / "spiece.model").write_bytes(b"not looked at")
    assert read_text_folder(folder).sources[1].name == "tokenizer.json"


def test_a_tokenizer_never_truncates_or_pads(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    content = json.loads(ASSET.read_text(encoding="utf-8"))
    pad = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    changed = {**content, "padding": pad, "truncation": cut}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    tokenizer = read_text_folder(folder).tokenizer
    for text in ("red", "the large red disc on the left of the blue square"):
        assert tokenizer.encode(text).ids == small_text_source("tiny").tokenizer.encode(text).ids


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_text_folder(folder)
    return str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "t5.bin").touch()
    for name in ("missing", "t5.bin"):
        assert f"{name}: no such folder; --text-encoder takes a Hugging" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "bert"}, f"model_type 'bert'; expected one of {KNOWN}"),
        ({"model_type": None}, f"model_type None; expected one of {KNOWN}"),
        (
            {"feed_forward_proj": "gated-gelu"},
            "feed_forward_proj 'gated-gelu'; expected 'relu': RefSAM uses the original T5 "
            "(t5-small to t5-11b), not T5 v1.1 or Flan-T5",
        ),
        ({"d_model": "64"}, "d_model is '64'; expected a positive whole number"),
        ({"num_layers": 0}, "num_layers is 0; expected a positive whole number"),
        ({"num_heads": True}, "num_heads is True; expected a positive whole number"),
        ({"d_kv": None}, "d_kv is None; expected a positive whole number"),
    ],
)
def test_another_architecture(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", **change)
    assert refusal(folder) == f"{folder / 'config.json'}: {text}"


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    (folder / "config.json").write_text("[]")
    assert "config.json: found JSON of a list, expected an object" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json: not a readable JSON file" in refusal(folder)


def test_no_weights(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", lambda *_: None)
    expected = "no weights; expected model.safetensors or pytorch_model.bin, whole or sharded"
    assert f"{folder}: {expected}" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "files outside of its folder: ['../out"),
        ({"weight_map": {"a": "/etc/passwd"}}, "files outside of its folder: ['/etc/passwd']"),
        ({"weight_map": {"a": ".."}}, "shards missing from the folder: ['..']"),
        ({"weight_map": {"a": "b.safetensors"}}, "shards missing from the folder: ['b.safet"),
        ({"weight_map": {"a": 1}}, "no weight_map from tensors to files"),
        ({"weight_map": ["a"]}, "no weight_map from tensors to files"),
        ({"weight_map": {}}, "no weight_map from tensors to files"),
        ({}, "no weight_map from tensors to files"),
    ],
)
def test_an_index_that_cannot_be_followed(
    content: dict[str, Any], text: str, tmp_path: Path
) -> None:
    # The file outside exists, so that only the refusal keeps it from being read.
    save_t5(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    folder = save_t5(tmp_path / "t5", lambda *_: None)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    message = refusal(folder)
    assert message.startswith(f"{index}: ")
    assert text in message


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", sharded_safetensors)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refusal(folder)
    assert "shards missing from the folder: ['model-00002-of-00003.safetensors']" in message


def test_a_truncated_shard(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", whole_bin)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path}: truncated, or not a dictionary of tensors" in refusal(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    assert f"{folder}: no tokenizer; expected tokenizer.json or spiece.model" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 20, 500])
def test_a_damaged_sentencepiece_model(
    kept: int, sentencepiece_model: bytes, tmp_path: Path
) -> None:
    folder = save_t5(tmp_path / "t5")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(sentencepiece_model[:kept])
    assert f"{folder / 'spiece.model'}: " in refusal(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_tokenizer(content: str, tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer.json: not a readable tokenizer: " in refusal(folder)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5", vocab_size=VOCAB_SIZE - 1)
    expected = f"has a token of id {VOCAB_SIZE - 1}, the text encoder knows {VOCAB_SIZE - 1}; it"
    assert expected in refusal(folder)


def test_a_tokenizer_without_end_token(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    content = json.loads(ASSET.read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    assert "of the word 'a'; expected tokens and, last, the end token 1, as T5's" in refusal(folder)


def test_what_our_own_file_describes_is_checked_alike() -> None:
    tokenizer = ASSET.read_text(encoding="utf-8")
    assert stored_text_source(T5_CONFIG, tokenizer, "file").config == T5_CONFIG
    for config, text, expected in (
        ([], tokenizer, "damaged description of the text encoder"),
        (T5_CONFIG, None, "damaged description of the text encoder"),
        (T5_CONFIG, "{", "not a readable tokenizer: "),
        ({**T5_CONFIG, "feed_forward_proj": "gated-gelu"}, tokenizer, "not T5 v1.1 or Flan-T5"),
        ({**T5_CONFIG, "vocab_size": 9}, tokenizer, "the text encoder knows 9; it belongs"),
    ):
        with pytest.raises(CheckpointError, match=f"^file: .*{expected}"):
            stored_text_source(config, text, "file")
