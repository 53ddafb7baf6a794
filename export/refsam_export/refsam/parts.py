"""Part files of the official training scripts: recognised by their keys, renamed to ours.

Sources: refsam-model 3.3, 4.3, 5.2, 7.1, 7.2, 8.1, 8.2. A file's name counts only where two parts
have the same keys and shapes. Leaves out whether parts fit together: that is `configuration`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from refsam_export.files.tensor_files import read_tensors
from refsam_export.refsam.model.config import EMBED_DIM
from refsam_export.refsam.model.itm import ITM_NAMES
from refsam_trt.errors import CheckpointError

Tensors: TypeAlias = Mapping[str, Tensor]
_Layout: TypeAlias = tuple[str, dict[str, Tensor], dict[str, Any]]
"""Kind, tensors by canonical key, facts: as in `Part`."""

_BLOCK_NORM = re.compile(r"\d+\.norm1\.weight")
_LORA = re.compile(r"(?P<name>.*attn\.proj)\.w_a\.weight")
_NUMBERED = re.compile(r"(?P<index>\d+)\.(weight|bias)")
_NUM_LEVELS = 3
_NUM_SHOWN = 8
_EXPERIMENTAL: Mapping[tuple[int, ...], str] = {
    (32, 256, 3, 3): "memory_key",
    (128, 256, 3, 3): "memory_value",
    (256, 1, 7, 7): "mask_conv",
}
_SPARSE_FC = (EMBED_DIM, 2 * EMBED_DIM)
_NOISE = (
    "{path}: its adapters are noise: the released training scripts never train them and save them "
    "as they were drawn. They are loaded, because the rest was trained beside them"
)


@dataclass(frozen=True)
class Part:
    """One part by canonical keys.

    kind: what it is, by the name of the released scripts. facts: fields of the configuration that
    it fixes. warnings: what a user should know.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_parts(paths: Iterable[Path]) -> list[Part]:
    """Read part files, no two of which may hold the same tensor.

    Raises:
        CheckpointError: as `read_part`, or two files hold the same tensor.
    """
    parts: list[Part] = []
    owners: dict[str, Path] = {}
    for path in paths:
        part = read_part(path)
        for key in part.tensors:
            if key in owners:
                raise CheckpointError(
                    f"{path}: holds {key}, as {owners[key]} does; give one of the two files"
                )
        owners |= dict.fromkeys(part.tensors, path)
        parts.append(part)
    return parts


def read_part(path: Path) -> Part:
    """Read one file and tell which part of RefSAM it is.

    Raises:
        CheckpointError: unreadable, an experimental part of the released scripts, ambiguous, or of
            an unknown layout.
    """
    tensors = read_tensors(path)
    for kind, has_it, read in _KINDS:
        if has_it(tensors):
            return read(kind, path, tensors)
    if option := _experimental(path, tensors):
        raise CheckpointError(
            f"{path}: an experimental part of the released scripts ({option}), which RefSAM does "
            "not have; a model that was trained with it cannot be exported"
        )
    layout = _mlp_of_three(tensors) or _resizer(tensors) or _convolutions(path, tensors)
    if layout is None:
        raise CheckpointError(
            f"{path}: no part of RefSAM has this layout: {_shown(tensors)}; expected a file of "
            "the official training scripts (resizer_*, dense_conv_*, mask_decoder_*, track_net_* "
            "and so on); SAM's weights go to --sam-checkpoint, ours to --checkpoint"
        )
    kind, renamed, facts = layout
    return Part(path, kind, renamed, facts)


def _mask_decoder(kind: str, path: Path, tensors: Tensors) -> Part:
    return Part(path, kind, _prefixed("mask_decoder.", tensors))


def _track_net(kind: str, path: Path, tensors: Tensors) -> Part:
    hidden = tensors["linear1.weight"].shape[0] if "linear1.weight" in tensors else None
    facts = {"itm": "qim"} | ({"itm_dim": hidden} if hidden else {})
    return Part(path, kind, _prefixed(f"{ITM_NAMES['qim']}.", tensors), facts)


def _image_encoder(kind: str, path: Path, tensors: Tensors) -> Part:
    """Read the whole image encoder, or its blocks alone."""
    merged, rank = _without_lora(path, tensors)
    facts, is_whole = _adapters(merged), kind == "image_encoder"
    prefix = "image_encoder." if is_whole else "image_encoder.blocks."
    warnings = (_NOISE.format(path=path),) if facts and not is_whole else ()
    title = f"{kind} (LoRA of rank {rank} merged)" if rank else kind
    return Part(path, title, _prefixed(prefix, merged), facts, warnings)


_KINDS: tuple[tuple[str, Callable[[Tensors], bool], Callable[[str, Path, Tensors], Part]], ...] = (
    ("mask_decoder", lambda tensors: "iou_token.weight" in tensors, _mask_decoder),
    ("track_net", lambda tensors: "self_attn.in_proj_weight" in tensors, _track_net),
    ("image_encoder", lambda tensors: "pos_embed" in tensors, _image_encoder),
    (
        "image_encoder_blocks",
        lambda tensors: any(_BLOCK_NORM.fullmatch(key) for key in tensors),
        _image_encoder,
    ),
)
"""Parts that one key tells; the others have no names of their own, only shapes."""


def _without_lora(path: Path, tensors: Tensors) -> tuple[dict[str, Tensor], int]:
    """Return the tensors with every `attn.proj` merged, W = w + w_b w_a, and the rank (4.3)."""
    merged, rank = dict(tensors), 0
    names = [match["name"] for key in tensors if (match := _LORA.fullmatch(key))]
    for name in names:
        try:
            weight, bias, down, up = (
                merged.pop(f"{name}.{part}")
                for part in ("w.weight", "w.bias", "w_a.weight", "w_b.weight")
            )
            product = up.double() @ down.double()
            merged[f"{name}.weight"] = (weight.double() + product).to(weight.dtype)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: {name}: LoRA needs w.weight [D, D], w.bias [D], w_a.weight [r, D] and "
                f"w_b.weight [D, r]; found {_shown(tensors, name)}"
            ) from error
        merged[f"{name}.bias"], rank = bias, down.shape[0]
    return merged, rank


def _adapters(tensors: Tensors) -> dict[str, Any]:
    """Return the adapters' width as a share of the encoder's, {} without adapters."""
    shapes = [value.shape for key, value in tensors.items() if key.endswith("D_fc1.weight")]
    return {"adapter_ratio": shapes[0][0] / shapes[0][1]} if shapes else {}


def _prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def _resizer(tensors: Tensors) -> _Layout | None:
    """Take the Linear layers in index order, whatever lies between them (3.3)."""
    matches = [_NUMBERED.fullmatch(key) for key in tensors]
    indexes = sorted({int(match["index"]) for match in matches if match})
    weights = [tensors.get(f"{index}.weight") for index in indexes]
    if not all(matches) or 1 in indexes or any(w is None or w.ndim != 2 for w in weights):
        return None
    shapes = [tuple(weight.shape) for weight in weights if weight is not None]
    if not shapes or shapes[-1][0] != EMBED_DIM or any(a[0] != b[1] for a, b in pairwise(shapes)):
        return None
    renamed = {
        f"resizer.{2 * place}.{kind}": tensors[f"{index}.{kind}"]
        for place, index in enumerate(indexes)
        for kind in ("weight", "bias")
        if f"{index}.{kind}" in tensors
    }
    hidden = tuple(shape[0] for shape in shapes[:-1])
    is_papers = hidden == (shapes[0][1] // 2,)
    return "resizer", renamed, {"resizer_hidden": None if is_papers else hidden}


def _experimental(path: Path, tensors: Tensors) -> str | None:
    """Return the name of the experimental part that a file is, None if it is none."""
    weight = tensors.get("weight")
    if weight is None:
        return None
    if tuple(weight.shape) == _SPARSE_FC and not path.name.startswith(("dense_conv", "fpn")):
        return "sparse_fc"
    return _EXPERIMENTAL.get(tuple(weight.shape))


def _mlp_of_three(tensors: Tensors) -> _Layout | None:
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


def _convolutions(path: Path, tensors: Tensors) -> _Layout | None:
    """Recognise the 1x1 convolutions of HDA: one, or one per intermediate map (5.2).

    `fpn_conv` and `dense_conv2` may be un-indexed (shared by the three levels) and may be Linear.
    """
    if set(tensors) == {"weight", "bias"}:
        levels = [(tensors["weight"], tensors["bias"])]
    elif set(tensors) == {f"{i}.{kind}" for i in range(_NUM_LEVELS) for kind in ("weight", "bias")}:
        levels = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(_NUM_LEVELS)]
    else:
        return None
    widths = {_input_width(weight) for weight, _ in levels}
    if len(widths) != 1 or None in widths:
        return None
    kind = "fpn_conv" if widths != {2 * EMBED_DIM} else _dense_kind(path, len(levels))
    shaped = [(weight.reshape(EMBED_DIM, -1, 1, 1), bias) for weight, bias in levels]
    if kind == "dense_conv":
        return kind, {f"{kind}.weight": shaped[0][0], f"{kind}.bias": shaped[0][1]}, {}
    shaped = shaped if len(shaped) == _NUM_LEVELS else shaped * _NUM_LEVELS
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
    if num_levels == _NUM_LEVELS:
        return "dense_conv2"
    match = re.match(r"dense_conv2?(?=_|\.|$)", path.name)
    if match is None:
        raise CheckpointError(
            f"{path}: a 512 -> 256 convolution, which may be dense_conv (final map) or dense_conv2 "
            "(shared by the intermediate maps); name the file dense_conv_*.pth or "
            "dense_conv2_*.pth, as the training scripts do"
        )
    return match.group()


def _shown(tensors: Tensors, prefix: str = "") -> str:
    """Return keys and shapes for an error's text, those that begin with `prefix`."""
    keys = sorted(key for key in tensors if key.startswith(prefix))
    more = f" and {len(keys) - _NUM_SHOWN} more" if len(keys) > _NUM_SHOWN else ""
    return ", ".join(f"{key} {list(tensors[key].shape)}" for key in keys[:_NUM_SHOWN]) + more
