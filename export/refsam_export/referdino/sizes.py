"""The configuration of a checkpoint, read off the shapes of its tensors (referdino-model 1.4)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from refsam_export.referdino.model.config import NUM_LEVELS, PRESETS, ModelConfig
from refsam_trt.errors import CheckpointError

_SWIN = "backbone.0"
_PATCHES = f"{_SWIN}.patch_embed.proj.weight"


class _Shapes:
    """Shapes and counts of a state dictionary; a key that is not there is refused."""

    def __init__(self, state: Mapping[str, Tensor], path: Path) -> None:
        self._state, self._path = state, path

    def of(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        if key not in self._state:
            raise CheckpointError(
                f"has no tensor {key}, by which its size is known; not a whole checkpoint of "
                "ReferDINO: fetch it again",
                self._path,
            )
        return tuple(self._state[key].shape)

    def count(self, prefix: str) -> int:
        """Return how many numbers follow a prefix."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({match[1] for key in self._state if (match := pattern.match(key))})


def config_of(state: Mapping[str, Tensor], path: Path, *, temporal: bool) -> ModelConfig:
    """Return the configuration of a state dictionary without tied names and LoRA.

    Heads of attention are in no shape: they are the preset's.

    Args:
        state: by the model's keys.
        path: where it is from, for errors.
        temporal: whether the temporal blocks were trained.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or the backbone is unknown.
    """
    shapes = _Shapes(state, path)
    base = _preset(shapes.of(_PATCHES)[0], path)
    tables = [
        shapes.of(f"{_SWIN}.layers.{stage}.blocks.0.attn.relative_position_bias_table")
        for stage in range(NUM_LEVELS)
    ]
    encoder, decoder = "transformer.encoder.layers", "transformer.decoder.layers"
    temporal_block = "temporal_decoder.0.layer"
    samples = 2 * base.num_heads
    return dataclasses.replace(
        base,
        swin_depths=tuple(shapes.count(f"{_SWIN}.layers.{i}.blocks") for i in range(NUM_LEVELS)),
        swin_heads=tuple(table[1] for table in tables),
        window=(math.isqrt(tables[0][0]) + 1) // 2,
        bert_width=shapes.of("bert.embeddings.word_embeddings.weight")[1],
        bert_layers=shapes.count("bert.encoder.layer"),
        bert_ffn=shapes.of("bert.encoder.layer.0.intermediate.dense.weight")[0],
        bert_positions=shapes.of("bert.embeddings.position_embeddings.weight")[0],
        vocabulary=shapes.of("bert.embeddings.word_embeddings.weight")[0],
        width=shapes.of("transformer.level_embed")[1],
        ffn_dim=shapes.of(f"{encoder}.0.linear1.weight")[0],
        encoder_layers=shapes.count(encoder),
        decoder_layers=shapes.count(decoder),
        num_points=shapes.of(f"{encoder}.0.self_attn.sampling_offsets.weight")[0]
        // (samples * NUM_LEVELS),
        num_queries=shapes.of("transformer.tgt_embed.weight")[0],
        mask_layers=shapes.count("mask_decoder"),
        mask_ffn=shapes.of("mask_decoder.0.linear1.weight")[0],
        mask_points=shapes.of("mask_decoder.0.cross_attn.sampling_offsets.weight")[0] // samples,
        temporal_layers=shapes.count(temporal_block),
        temporal_ffn=shapes.of(f"{temporal_block}.0.decoder.linear1.weight")[0],
        temporal=temporal,
    )


def _preset(width: int, path: Path) -> ModelConfig:
    for config in PRESETS.values():
        if config.swin_width == width:
            return config
    known = ", ".join(f"{config.swin_width} ({name})" for name, config in PRESETS.items())
    raise CheckpointError(
        f"its backbone begins with {width} channels; known are {known}: another backbone than "
        "ReferDINO was published with",
        path,
    )
