"""How much memory, disk and time an export takes, from the sizes of its model.

Arithmetic with a few constants, which were fitted to the records `bench/results/export-*.json`; a
test compares the two. Times are for cores that have nothing else to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from refsam_export.refsam.model.config import ModelConfig
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.text.encoders import build_text_encoder
from refsam_export.text.families import text_family

GIB = 2**30

_TORCH_BYTES = 0.75 * GIB
"""PyTorch, the exporters and transformers, before there is a model."""

_IDLE_BYTES = 0.6 * GIB
"""What of it is left when ONNX Runtime runs in a process of its own."""

_ORT_BYTES = 0.2 * GIB
"""ONNX Runtime before there is a graph."""

_WEIGHTS_IN_ORT = 1.1
"""It packs the weights of products and lets go of what lies in the file."""

_SCORES_IN_ORT = {"augmented": 2.3, "bias": 3.2, "reference": 3.2}
"""Tensors of the size of all scores of a global block that a form of attention holds at a time."""

_SCORES_IN_TORCH = 5
"""The same of the reference, whose scores are those of one head."""

_FLOPS_PER_CORE_S = 45e9
_DRAWN_PER_S = 25e6
_BYTES_PER_S = 250e6
"""Hashing, copying and checking of files, all together."""

_TRACED_BLOCKS_PER_S = 0.3


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how much it needs.

    Attributes:
        image_params: parameters of everything but the text encoder.
        text_params: parameters of the text encoder.
        num_blocks: transformer blocks, those of both encoders.
        num_heads: of the image encoder.
        num_tokens: of a frame.
        frame_flops: of the image encoder for one frame.
    """

    image_params: int
    text_params: int
    num_blocks: int
    num_heads: int
    num_tokens: int
    frame_flops: float

    @classmethod
    def of(cls, config: ModelConfig, text_config: Mapping[str, Any]) -> Sizes:
        """Return the sizes of a configuration; nothing of the model is made."""
        family = text_family(text_config, "text encoder")
        with torch.device("meta"):
            encoder = build_text_encoder(text_config)
            model = RefSam(config, None, int(text_config[family.width]))
        tokens, width = config.grid_size**2, config.width
        num_global = len(config.global_blocks)
        keys = num_global * tokens + (config.depth - num_global) * config.window_size**2
        flops = 24 * config.depth * tokens * width**2 + 4 * tokens * keys * width
        text_blocks = text_config.get("num_layers", text_config.get("num_hidden_layers", 12))
        return cls(
            image_params=sum(p.numel() for p in model.parameters()),
            text_params=sum(p.numel() for p in encoder.parameters()),
            num_blocks=config.depth + int(text_blocks),
            num_heads=config.num_heads,
            num_tokens=tokens,
            frame_flops=float(flops),
        )


@dataclass(frozen=True)
class Needs:
    """What an export takes.

    Attributes:
        memory_bytes: resident in all its processes together, at the most.
        disk_bytes: beside the output, at the most; the bundle is part of it.
        certain_disk_bytes: of it what no version of this program could do without.
        seconds: from begin to end.
        parity_seconds: of them the reference and the comparison, the rest is the export of graphs.
    """

    memory_bytes: float
    disk_bytes: float
    certain_disk_bytes: float
    seconds: float
    parity_seconds: float


def estimate(
    sizes: Sizes,
    *,
    attention: str = "augmented",
    precisions: tuple[str, ...] = ("fp32",),
    num_frames: int = 5,
    is_random: bool = False,
    has_random_text: bool = False,
    include_source: bool = False,
    num_cores: int = 2,
) -> Needs:
    """Return what an export takes.

    Args:
        sizes: of the model.
        attention: form of the graphs.
        precisions: of the graphs.
        num_frames: of the parity chain.
        is_random: whether weights are drawn.
        has_random_text: whether those of a published text encoder are.
        include_source: whether the bundle holds the PyTorch weights.
        num_cores: that work.
    """
    image, text = 4.0 * sizes.image_params, 4.0 * sizes.text_params
    scores = 4.0 * sizes.num_tokens**2
    held = _SCORES_IN_ORT.get(attention, 3.2) * sizes.num_heads * scores
    num_half = len(set(precisions) - {"fp32"})
    memory = max(
        _TORCH_BYTES + image * (1 + num_half) + text,
        _TORCH_BYTES + image + _SCORES_IN_TORCH * scores * (sizes.num_heads if num_half else 1),
        _IDLE_BYTES + _ORT_BYTES + _WEIGHTS_IN_ORT * image + held,
        _IDLE_BYTES + _ORT_BYTES + _WEIGHTS_IN_ORT * text,
    )
    graphs = sum(image * (0.5 if p in ("fp16", "bf16") else 1.0) for p in precisions)
    graphs += text * (1.5 if {"bf16", "fp32"} <= set(precisions) else 1.0)
    disk = graphs + (image + text) * include_source + text * has_random_text
    drawn = (sizes.image_params + sizes.text_params) * is_random / _DRAWN_PER_S
    traced = sizes.num_blocks / _TRACED_BLOCKS_PER_S * len(precisions)
    files = 6 * disk / _BYTES_PER_S
    passes = num_frames + len(precisions) * (num_frames + 2) + num_half * (num_frames + 4)
    parity = passes * sizes.frame_flops / (_FLOPS_PER_CORE_S * num_cores)
    return Needs(memory, 1.05 * disk, graphs * 0.95, drawn + traced + files + parity, parity)
