"""Recognise parts whose tensors have no telling names by shapes (refsam-model 5.2, 7.1, 8.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from refsam_export.refsam.model.config import EMBED_DIM
from refsam_export.refsam.model.itm import ITM_NAMES
from refsam_trt.errors import CheckpointError

Layout: TypeAlias = tuple[str, dict[str, Tensor], dict[str, Any]]
"""Kind, tensors by canonical key, facts: as in `parts.Part`."""

NUM_LEVELS = 3
_SHOWN = 8
_EXPERIMENTAL: Mapping[tuple[int, ...], str] = {
    (32, 256, 3, 3): "memory_key",
    (128, 256, 3, 3): "memory_value",
    (256, 1, 7, 7): "mask_conv",
}
_SPARSE_FC = (EMBED_DIM, 2 * EMBED_DIM)


def experimental(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the experimental part that a file is, None if it is none."""
    weight = tensors.get("weight")
    if weight is None:
        return None
    if tuple(weight.shape) == _SPARSE_FC and not path.name.startswith(("dense_conv", "fpn")):
        return "sparse_fc"
    return _EXPERIMENTAL.get(tuple(weight.shape))


def mlp_of_three(tensors: Mapping[str, Tensor]) -> Layout | None:
    """Recognise the paper's tracking module: Linear [H, 256], Linear [256, H], LayerNorm [256].

    Its inner names are unknown (7.1), so order and shapes decide: `linear1/linear2/norm`,
    `layers.0/layers.1/norm`, `0/2/3` or any other.
    """
    names = sorted({key.rpartition(".")[0] for key in tensors})
    if set(tensors) != {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}:
        return None
    linear = [name for name in names if tensors[f"{name}.weight"].ndim == 2]
    norms = [name for name in names if tensors[f"{name}.weight"].ndim == 1]
    if len(linear) != 2 or len(norms) != 1:
        return None
    first, second = (tuple(tensors[f"{name}.weight"].shape) for name in linear)
    if first[1] != EMBED_DIM or second != first[::-1]:
        return None
    renamed = {
        f"{ITM_NAMES['ffn']}.{canonical}.{kind}": tensors[f"{name}.{kind}"]
        for canonical, name in zip(("linear1", "linear2", "norm"), [*linear, *norms], strict=True)
        for kind in ("weight", "bias")
    }
    return "track_token_mlp", renamed, {"itm": "ffn", "itm_dim": first[0]}


def convolutions(path: Path, tensors: Mapping[str, Tensor]) -> Layout | None:
    """Recognise the 1x1 convolutions of HDA: one, or one per intermediate map (5.2).

    `fpn_conv` and `dense_conv2` may be un-indexed (shared by the three levels) and may be Linear.
    """
    if set(tensors) == {"weight", "bias"}:
        levels = [(tensors["weight"], tensors["bias"])]
    elif set(tensors) == {f"{i}.{kind}" for i in range(NUM_LEVELS) for kind in ("weight", "bias")}:
        levels = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(NUM_LEVELS)]
    else:
        return None
    widths = {_input_width(weight) for weight, _ in levels}
    if len(widths) != 1 or None in widths:
        return None
    kind = "fpn_conv" if widths != {2 * EMBED_DIM} else _dense_kind(path, len(levels))
    shaped = [(weight.reshape(EMBED_DIM, -1, 1, 1), bias) for weight, bias in levels]
    if kind == "dense_conv":
        return kind, {f"{kind}.weight": shaped[0][0], f"{kind}.bias": shaped[0][1]}, {}
    shaped = shaped if len(shaped) == NUM_LEVELS else shaped * NUM_LEVELS
    renamed: dict[str, Tensor] = {}
    for index, (weight, bias) in enumerate(shaped):
        renamed |= {f"{kind}.{index}.weight": weight, f"{kind}.{index}.bias": bias}
    return kind, renamed, {}


def _input_width(weight: Tensor) -> int | None:
    """Return C of a weight [256, C] or [256, C, 1, 1], None for other shapes."""
    shape = tuple(weight.shape)
    is_linear_or_1x1 = len(shape) in (2, 4) and shape[0] == EMBED_DIM and shape[2:] in ((), (1, 1))
    return shape[1] if is_linear_or_1x1 else None


def _dense_kind(path: Path, num_levels: int) -> str:
    if num_levels == NUM_LEVELS:
        return "dense_conv2"
    match = re.match(r"dense_conv2?(?=_|\.|$)", path.name)
    if match is None:
        raise CheckpointError(
            f"{path}: a 512 -> 256 convolution, which may be dense_conv (final map) or dense_conv2 "
            "(shared by the intermediate maps); name the file dense_conv_*.pth or "
            "dense_conv2_*.pth, as the training scripts do"
        )
    return match.group()


def shown(tensors: Mapping[str, Tensor], prefix: str = "") -> str:
    """Return keys and shapes for an error's text, those that begin with `prefix`."""
    keys = sorted(key for key in tensors if key.startswith(prefix))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(f"{key} {list(tensors[key].shape)}" for key in keys[:_SHOWN]) + more
