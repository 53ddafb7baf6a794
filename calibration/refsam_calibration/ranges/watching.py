"""Watchers of what goes into layers while the model runs; their memory is constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from refsam_trt.errors import CalibrationError

NUM_ROWS = 512


class Watcher(Protocol):
    """Takes note of one layer's inputs; a `Histogram` is one."""

    def see(self, values: Tensor) -> None:
        """Note an input, float32 [..., in_features], all finite and not all of them zero ever."""

    @property
    def amax(self) -> float:
        """The largest magnitude so far."""


class ChannelWatcher:
    """Keeps the largest magnitude of every channel and a fair sample of rows.

    Attributes:
        channel_amax: float32 [in_features], 0 before the first input.
        rows: float32 [at most NUM_ROWS, in_features]; every row seen had the same chance.
    """

    def __init__(self, in_features: int, seed: int) -> None:
        self.channel_amax = torch.zeros(in_features)
        self.rows = torch.zeros(0, in_features)
        self._keys = torch.zeros(0)
        self._generator = torch.Generator().manual_seed(seed)

    def see(self, values: Tensor) -> None:
        """Note an input (see `Watcher`)."""
        rows = values.detach().reshape(-1, values.shape[-1])
        torch.maximum(self.channel_amax, rows.abs().amax(0), out=self.channel_amax)
        # The rows with the largest random keys of all: the sample of Algorithm R, in blocks.
        keys = torch.rand(len(rows), generator=self._generator)
        drawn = keys.topk(min(NUM_ROWS, len(keys))).indices
        keys = torch.cat([self._keys, keys[drawn]])
        kept = keys.topk(min(NUM_ROWS, len(keys))).indices
        self.rows = torch.cat([self.rows, rows[drawn]])[kept]
        self._keys = keys[kept]

    @property
    def amax(self) -> float:
        """The largest magnitude so far."""
        return float(self.channel_amax.max())


@contextmanager
def watching(model: nn.Module, watchers: Mapping[str, Watcher]) -> Iterator[None]:
    """Let watchers see the inputs of the layers they are named after, while the block runs.

    Args:
        model: holds the layers.
        watchers: by module path.

    Raises:
        CalibrationError: an input with NaN or infinity; or, at the end of the block, a layer that
            was never called, or only with zeros. The text names the layer.
    """
    fired: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(_see, name, watcher, fired))
        for name, watcher in watchers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, watcher in watchers.items():
        if name not in fired:
            raise CalibrationError(
                f"{name}: never called while the clips ran, so nothing is known of its input; "
                "leave it out with --layers"
            )
        if watcher.amax == 0.0:
            raise CalibrationError(
                f"{name}: its input was zero in every frame, so it has no range; leave it out with "
                "--layers, or look into the weights before it"
            )


def _see(
    name: str, watcher: Watcher, fired: set[str], module: nn.Module, arguments: tuple[Tensor]
) -> None:
    (values,) = arguments
    if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise CalibrationError(
            f"{name}: {bad} of {values.numel()} values of its input are NaN or infinite; no range "
            "can hold them: check the weights with refsam-bench parity"
        )
    fired.add(name)
    watcher.see(values)
