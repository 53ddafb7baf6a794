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

import torch
from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.nano_tokenizer import ASSET, VOCAB_SIZE
from refsam_export.tensor_files import describe, read_json, read_tensors
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
    config = read_json(folder / "config.json")
    if config.get("model_type") != "t5":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r}; expected 't5'"
        )
    files = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_tensors(file))
    tokenizer, tokenizer_file = _read_tokenizer(folder)
    used = [folder / "config.json", tokenizer_file, *files]
    return TextSource(
        config, tokenizer, _encoder_part(tensors), tuple(describe("text_encoder", f) for f in used)
    )


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Return a `transformers.T5EncoderModel` of that configuration, weights not yet set."""
    from transformers import T5Config, T5EncoderModel

    model: Any = T5EncoderModel(T5Config(**{**config, "dropout_rate": 0.0}))
    return model.eval().requires_grad_(False)


def _encoder_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {key: value for key, value in tensors.items() if not _NOT_ENCODER.match(key)}
    if "shared.weight" not in kept and _TIED in kept:
        kept["shared.weight"] = kept[_TIED]
    kept.pop(_TIED, None)
    return {key: value.to(torch.float32) for key, value in kept.items()}


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            if any(Path(shard).name != shard for shard in names):
                raise CheckpointError(f"{index}: names a shard outside of the folder")
            if missing := [shard for shard in names if not (folder / shard).is_file()]:
                raise CheckpointError(f"{index}: shards missing from the folder: {missing}")
            return [folder / shard for shard in names]
    raise CheckpointError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or sharded "
        "with an index"
    )


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, Path]:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path)), path
        except Exception as error:  # `tokenizers` raises a bare Exception
            raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error
    path = folder / "spiece.model"
    if path.is_file():
        from transformers import T5Tokenizer

        fast: Any = T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
        return fast.backend_tokenizer, path
    raise CheckpointError(f"{folder}: no tokenizer; expected tokenizer.json or spiece.model")
