"""Which linear layers may be quantised: those of the image encoder's ViT blocks, and nothing else.

Patch embedding, neck, Dense Attention, mask decoder, Implicit Tracking and text encoder stay as
they are: they are small, and their inputs have outliers that eight bits do not hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from refsam_export.refsam.model.config import ModelConfig
from refsam_trt.errors import UsageError

LayerKind = Literal["qkv", "proj", "lin1", "lin2", "adapter"]
KINDS: tuple[str, ...] = get_args(LayerKind)
DEFAULT_KINDS = ("qkv", "proj", "lin1", "lin2")


@dataclass(frozen=True)
class QuantisableLayer:
    """One linear layer of a ViT block.

    Attributes:
        name: module path within `RefSam`, such as `image_encoder.blocks.3.attn.qkv`.
        kind: what it is in its block; both layers of both adapters are `adapter`.
        block: index of its block.
        in_features: width of its input, the second dim of its weight.
        out_features: width of its output, the first dim of its weight.
        num_tokens: rows that it is applied to per frame, the padding of windows included.
    """

    name: str
    kind: LayerKind
    block: int
    in_features: int
    out_features: int
    num_tokens: int

    @property
    def flops(self) -> int:
        """Operations per frame without the bias; a multiply-add is two."""
        return 2 * self.num_tokens * self.in_features * self.out_features

    @property
    def unit(self) -> str:
        """Name of its `Unit`."""
        return f"blocks.{self.block}.{self.kind}"


def quantisable_layers(config: ModelConfig) -> dict[str, QuantisableLayer]:
    """Return every linear layer of the image encoder by name, in the order that they run in.

    Tokens are those of the graphs as `refsam-export` writes them by default: `Space_Adapter` runs
    after the windows are merged.
    """
    layers = (layer for block in range(config.depth) for layer in _of_block(config, block))
    return {layer.name: layer for layer in layers}


def select_layers(config: ModelConfig, names: Iterable[str]) -> dict[str, QuantisableLayer]:
    """Return the named layers, in the order that they run in.

    Raises:
        UsageError: a name is none of `quantisable_layers`.
    """
    known, selected = quantisable_layers(config), set(names)
    if unknown := sorted(selected - known.keys()):
        raise UsageError(
            f"{unknown[0]}: no layer of {config.preset} that can be quantised ({len(unknown)} of "
            f"{len(selected)} names are none); names are like {next(iter(known))}, and ranges "
            "belong to the model that they were measured on: calibrate this one"
        )
    return {name: layer for name, layer in known.items() if name in selected}


@dataclass(frozen=True)
class Unit:
    """Layers of one block and one kind, which are quantised together.

    Attributes:
        name: such as `blocks.3.qkv`.
        layers: module paths within `RefSam`, in the order that they run in.
        share: of the FLOPs of all linear layers of the encoder, 0 to 1.
    """

    name: str
    layers: tuple[str, ...]
    share: float


def choose_units(config: ModelConfig, offered: Iterable[str]) -> list[Unit]:
    """Return units in the order that they run in.

    Args:
        config: of the model.
        offered: kinds (`qkv`: of every block), units (`blocks.3.qkv`) or layers by module path.

    Raises:
        UsageError: a name is none of them, or no layer is left.
    """
    layers = quantisable_layers(config)
    paths: set[str] = set()
    for name in offered:
        matching = {p for p, layer in layers.items() if name in (layer.kind, layer.unit, p)}
        # A preset may have no layer of a kind, but names of single ones are those of layers.
        if not matching and name not in KINDS:
            path, layer = next(iter(layers.items()))
            raise UsageError(
                f"--layers {name}: no such layers; give kinds ({', '.join(KINDS)}), one block's "
                f"such as {layer.unit}, or a layer such as {path}"
            )
        paths |= matching
    if not paths:
        raise UsageError(
            f"--layers: {config.preset} has no such layer; name some of {', '.join(KINDS)}"
        )
    groups: dict[str, list[str]] = {}
    for path, layer in layers.items():
        if path in paths:
            groups.setdefault(layer.unit, []).append(path)
    total = sum(layer.flops for layer in layers.values())
    return [
        Unit(name, tuple(members), sum(layers[path].flops for path in members) / total)
        for name, members in groups.items()
    ]


def _of_block(config: ModelConfig, block: int) -> Iterable[QuantisableLayer]:
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    grid, window = config.grid_size, config.window_size
    is_global = block in config.global_blocks
    merged = grid**2
    padded = merged if is_global else (-(-grid // window) * window) ** 2
    has_adapters = block in config.adapter_blocks

    def layer(path: str, kind: LayerKind, sizes: tuple[int, int], num: int) -> QuantisableLayer:
        return QuantisableLayer(f"image_encoder.blocks.{block}.{path}", kind, block, *sizes, num)

    def adapter(path: str) -> tuple[QuantisableLayer, QuantisableLayer]:
        narrow = config.adapter_dim
        return (
            layer(f"{path}.D_fc1", "adapter", (width, narrow), merged),
            layer(f"{path}.D_fc2", "adapter", (narrow, width), merged),
        )

    yield layer("attn.qkv", "qkv", (width, 3 * width), padded)
    yield layer("attn.proj", "proj", (width, width), padded)
    if has_adapters:
        yield from adapter("Space_Adapter")
    yield layer("mlp.lin1", "lin1", (width, hidden), merged)
    yield layer("mlp.lin2", "lin2", (hidden, width), merged)
    if has_adapters:
        yield from adapter("MLP_Adapter")
