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
from refsam_export.refsam.part_layouts import convolutions, experimental, mlp_of_three, shown
from refsam_trt.errors import CheckpointError

Tensors: TypeAlias = Mapping[str, Tensor]
_BLOCK_NORM = re.compile(r"\d+\.norm1\.weight")
_LORA = re.compile(r"(?P<name>.*attn\.proj)\.w_a\.weight")
_NUMBERED = re.compile(r"(?P<index>\d+)\.(weight|bias)")
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
    if option := experimental(path, tensors):
        raise CheckpointError(
            f"{path}: an experimental part of the released scripts ({option}), which RefSAM does "
            "not have; a model that was trained with it cannot be exported"
        )
    layout = mlp_of_three(tensors) or _resizer(tensors) or convolutions(path, tensors)
    if layout is None:
        raise CheckpointError(
            f"{path}: no part of RefSAM has this layout: {shown(tensors)}; expected a file of "
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
                f"w_b.weight [D, r]; found {shown(tensors, name)}"
            ) from error
        merged[f"{name}.bias"], rank = bias, down.shape[0]
    return merged, rank


def _adapters(tensors: Tensors) -> dict[str, Any]:
    """Return the adapters' width as a share of the encoder's, {} without adapters."""
    shapes = [value.shape for key, value in tensors.items() if key.endswith("D_fc1.weight")]
    return {"adapter_ratio": shapes[0][0] / shapes[0][1]} if shapes else {}


def _prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def _resizer(tensors: Tensors) -> tuple[str, dict[str, Tensor], dict[str, Any]] | None:
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
