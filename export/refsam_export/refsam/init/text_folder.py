"""Random weights of a T5 of a published size, as a Hugging Face folder that is loaded like any.

Their values are those that `realistic_init` would give the same tensors. They pass through files,
shard by shard, so that no more than one shard of them is ever in memory, and what loads the weights
of a real T5 loads these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refsam_export.files.tensor_files import write_tensors
from refsam_export.refsam.init.fill import drawn
from refsam_export.refsam.model.config import ModelConfig
from refsam_export.text.encoders import ASSET, TEXT_PREFIX, build_text_encoder
from refsam_export.text.presets import t5_config

_SHARD_BYTES = 512 * 2**20
_TIED = "encoder.embed_tokens.weight"


def write_random_t5(preset: str, config: ModelConfig, seed: int, folder: Path) -> None:
    """Write configuration, tokenizer and weights; the tokenizer is that of `nano`.

    Args:
        preset: one of `text.presets.T5_PRESETS`.
        config: of the RefSAM model that the encoder is for.
        seed: as of `realistic_init`.
        folder: is created.

    Raises:
        OutputError: the weights cannot be written.
    """
    folder.mkdir()
    text_config = t5_config(preset)
    (folder / "config.json").write_text(json.dumps(text_config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(ASSET.read_text(encoding="utf-8"), encoding="utf-8")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(_shards(_tensors(text_config, config, seed))):
        name = f"model-{number:05}.safetensors"
        write_tensors(folder / name, shard, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        del shard  # before the next one is drawn
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _tensors(
    text_config: dict[str, Any], config: ModelConfig, seed: int
) -> Iterator[tuple[str, Tensor]]:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in build_text_encoder(text_config).state_dict().items()}
    for key, shape in shapes.items():
        if key != _TIED:
            head_dim = text_config["d_kv"]
            yield key, drawn(TEXT_PREFIX + key, tuple(shape), config, seed, head_dim)


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for key, value in tensors:
        shard[key] = value
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
