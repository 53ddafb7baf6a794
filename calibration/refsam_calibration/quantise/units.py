"""Units of quantisation: the layers of one kind in one block go together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from refsam_calibration.quantise.layers import (
    KINDS,
    QuantisableLayer,
    flops_share,
    quantisable_layers,
)
from refsam_export.refsam.model.config import ModelConfig
from refsam_trt.errors import UsageError

DEFAULT_KINDS = ("qkv", "proj", "lin1", "lin2")


@dataclass(frozen=True)
class Unit:
    """Layers of one block and one kind.

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
        matching = {path for path, layer in layers.items() if name in _names(layer)}
        # A preset may have no layer of a kind, but names of single ones are those of layers.
        if not matching and name not in KINDS:
            raise UsageError(
                f"--layers {name}: no such layers; give kinds ({', '.join(KINDS)}), one block's "
                f"such as {_unit_name(next(iter(layers.values())))}, or a layer such as "
                f"{next(iter(layers))}"
            )
        paths |= matching
    if not paths:
        raise UsageError(
            f"--layers: {config.preset} has no such layer; name some of {', '.join(KINDS)}"
        )
    groups: dict[str, list[str]] = {}
    for path, layer in layers.items():
        if path in paths:
            groups.setdefault(_unit_name(layer), []).append(path)
    return [
        Unit(name, tuple(members), flops_share(config, members)) for name, members in groups.items()
    ]


def _names(layer: QuantisableLayer) -> tuple[str, str, str]:
    return (layer.kind, _unit_name(layer), layer.name)


def _unit_name(layer: QuantisableLayer) -> str:
    return f"blocks.{layer.block}.{layer.kind}"
