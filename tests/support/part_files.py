"""Part files as the official training scripts write them, made from a model (refsam-model 8.1)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from refsam_export.refsam.model.refsam import RefSam

PREFIXES = {
    "resizer": "resizer.",
    "dense_conv": "dense_conv.",
    "dense_conv2": "dense_conv2.",
    "fpn_conv": "fpn_conv.",
    "mask_decoder": "mask_decoder.",
    "track_net": "temporal_aggregation_network.",
    "track_token_mlp": "track_token_mlp.",
    "image_encoder": "image_encoder.",
    "image_encoder_blocks": "image_encoder.blocks.",
}
RELEASED = ("resizer", "dense_conv", "mask_decoder", "track_net", "image_encoder_blocks")
PAPER = ("resizer", "dense_conv", "dense_conv2", "fpn_conv", "mask_decoder", "track_token_mlp")
RANK = 4


def part_tensors(of: RefSam, kind: str) -> dict[str, Tensor]:
    prefix = PREFIXES[kind]
    state = of.state_dict()
    return {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}


def with_lora(tensors: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Put LoRA of rank 4 beside the projection of every block."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(tensors)
    for key in [key for key in tensors if key.endswith("attn.proj.weight")]:
        name, weight = key.removesuffix(".weight"), tensors[key]
        found[f"{name}.w.weight"] = found.pop(key)
        found[f"{name}.w.bias"] = found.pop(f"{name}.bias")
        for part, shape in (("w_a", (RANK, len(weight))), ("w_b", (len(weight), RANK))):
            drawn = torch.randn(shape, generator=generator, dtype=weight.dtype) / 8
            found[f"{name}.{part}.weight"] = drawn
    return found


def save_part(
    folder: Path, kind: str, tensors: Mapping[str, Tensor], suffix: str = "t5-3b_last"
) -> Path:
    path = folder / f"{kind}_{suffix}.pth"
    torch.save(dict(tensors), path)
    return path
