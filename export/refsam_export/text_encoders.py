"""Text encoders: T5 from a Hugging Face folder, and the small ones of `nano` and `tiny`.

The folder is read tensor by tensor here, not by `from_pretrained`: no network, no remote code, and
a report of what was loaded, missing and unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.nano_tokenizer import ASSET, VOCAB_SIZE
from refsam_export.tensor_files import describe, read_json_object, read_tensors
from refsam_trt.errors import CheckpointError
from refsam_trt.manifest import Source

TEXT_PREFIX = "text_encoder."
# The decoder half of a sequence-to-sequence T5, and the copies of the tied embedding.
_NOT_ENCODER = re.compile(r"^(decoder\.|lm_head\.)")
_TIED = "encoder.embed_tokens.weight"
_SMALL = {
    "nano": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 3, "num_heads": 4},
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
}
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_END_ID = 1


@dataclass(frozen=True)
class TextSource:
    """A text encoder before its weights: its configuration, its tokenizer, its tensors if any.

    `tensors` have the names of `T5EncoderModel`'s state dictionary; None means: none were given.
    """

    config: dict[str, Any]
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor] | None
    sources: tuple[Source, ...]


def small_text_source(preset: str) -> TextSource:
    """Return the small T5 of `nano` or `tiny` (other presets: that of `nano`) without weights."""
    config = {
        "model_type": "t5",
        "vocab_size": VOCAB_SIZE,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        **_SMALL.get(preset, _SMALL["nano"]),
    }
    tokenizer = Tokenizer.from_str(ASSET.read_text(encoding="utf-8"))
    return TextSource(config, tokenizer, None, ())


def read_text_folder(folder: Path) -> TextSource:
    """Read a Hugging Face T5 folder: configuration, tokenizer, weights (one file or sharded).

    Raises:
        CheckpointError: a part is missing, unreadable or of another architecture.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; --text-encoder takes a Hugging Face folder"
        )
    config = read_json_object(folder / "config.json")
    _check_config(config, str(folder / "config.json"))
    files = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_tensors(file))
    tokenizer, tokenizer_file = _read_tokenizer(folder)
    _check_tokenizer(tokenizer, config, str(tokenizer_file))
    used = [folder / "config.json", tokenizer_file, *files]
    return TextSource(
        config, tokenizer, _encoder_part(tensors), tuple(describe("text_encoder", f) for f in used)
    )


def stored_text_source(config: Any, tokenizer: Any, where: str) -> TextSource:
    """Return the text encoder that our own weights file describes, without weights.

    Args:
        config: configuration as in a Hugging Face `config.json`.
        tokenizer: content of a `tokenizer.json`.
        where: the file, for the error's text.

    Raises:
        CheckpointError: another architecture, or no readable tokenizer.
    """
    if not isinstance(config, dict) or not isinstance(tokenizer, str):
        raise CheckpointError(f"{where}: damaged description of the text encoder")
    _check_config(config, where)
    try:
        found = Tokenizer.from_str(tokenizer)
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise CheckpointError(f"{where}: not a readable tokenizer: {error}") from error
    _check_tokenizer(found, config, where)
    return TextSource(config, found, None, ())


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Return a `transformers.T5EncoderModel` of that configuration, weights not yet set."""
    from transformers import T5Config, T5EncoderModel

    model: Any = T5EncoderModel(T5Config(**{**config, "dropout_rate": 0.0}))
    return model.eval().requires_grad_(False)


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not the original T5, whose feed-forward is not gated (refsam-model 3.2)."""
    if config.get("model_type") != "t5":
        raise CheckpointError(f"{where}: model_type {config.get('model_type')!r}; expected 't5'")
    form = config.get("feed_forward_proj", "relu")
    if form != "relu":
        raise CheckpointError(
            f"{where}: feed_forward_proj {form!r}; expected 'relu': RefSAM uses the original T5 "
            "(t5-small to t5-11b), not T5 v1.1 or Flan-T5"
        )
    for key in _SIZES:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {key} is {value!r}; expected a positive whole number")


def _check_tokenizer(tokenizer: Tokenizer, config: Mapping[str, Any], where: str) -> None:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config["vocab_size"]:
        raise CheckpointError(
            f"{where}: has a token of id {largest}, the text encoder knows {config['vocab_size']}; "
            "it belongs to another model"
        )
    ids = tokenizer.encode("a").ids
    if len(ids) < 2 or ids[-1] != _END_ID:
        raise CheckpointError(
            f"{where}: makes {ids} of the word 'a'; expected tokens and, last, the end token "
            f"{_END_ID}, as T5's tokenizer does"
        )


def _encoder_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {key: value for key, value in tensors.items() if not _NOT_ENCODER.match(key)}
    tied = kept.pop(_TIED, None)
    if tied is not None:
        kept.setdefault("shared.weight", tied)
    return kept


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise CheckpointError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or sharded "
        "with an index"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index}: no weight_map from tensors to files; fetch it again")
    if outside := sorted(name for name in names if Path(name).name != name):
        raise CheckpointError(f"{index}: names files outside of its folder: {outside}")
    if missing := sorted(name for name in names if not (index.parent / name).is_file()):
        raise CheckpointError(f"{index}: shards missing from the folder: {missing}")
    return [index.parent / name for name in sorted(names)]


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path)), path
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error
    path = folder / "spiece.model"
    if path.is_file():
        return _sentencepiece_tokenizer(path), path
    raise CheckpointError(f"{folder}: no tokenizer; expected tokenizer.json or spiece.model")


def _sentencepiece_tokenizer(path: Path) -> Tokenizer:
    import transformers

    library: Any = transformers  # its names are made at run time
    try:
        fast = library.T5TokenizerFast.from_pretrained(str(path.parent), local_files_only=True)
    except Exception as error:  # whatever the conversion stumbles over
        raise CheckpointError(f"{path}: not a readable SentencePiece model: {error}") from error
    tokenizer: Tokenizer = fast.backend_tokenizer
    return tokenizer
