"""Measure how alive a ReferDINO is: the figures that `realistic_init` promises.

Leaves out what the figures should be: the tests say.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refsam_export.referdino.model.attention import DecoderLayer, MultiHeadAttention
from refsam_export.referdino.model.cross_modal import FusionLayer
from refsam_export.referdino.model.grounding import class_score
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.reference import Clip, Reference

Hook = Callable[[str, nn.Module, Any, Any], None]
"""Called with the module's name, the module, its arguments and its result."""


@dataclass(frozen=True)
class Realism:
    """Figures of one model on one clip and expression."""

    entropy: dict[str, float]  # per attention, over that of uniform attention; without the tracker
    fusion_share: dict[str, float]  # per layer and side: size of what is added over what it is to
    offsets: dict[str, float]  # per deformable attention: standard deviation, in cells or quarters
    mean_score: np.ndarray  # [slots], probabilities
    kept_by_both: float  # share of a layer's kept queries that either pruning score would keep
    box_moved: float  # mean change of a reference by a refinement
    enhanced: float  # size of what the temporal blocks change, over the size of the embeddings
    coverage: np.ndarray  # [slots], share of the frame inside a mask
    permuted: float  # share of objects that are not in the slot of the same number


class _Probe:
    """Hooks that measure modules by name."""

    def __init__(self) -> None:
        self.entropy: dict[str, float] = {}
        self.fusion_share: dict[str, float] = {}
        self.offsets: dict[str, float] = {}
        self.kept_by_both: list[float] = []

    def hook_of(self, name: str, module: nn.Module) -> Hook | None:
        """Return what measures a module, None where nothing does."""
        if isinstance(module, MultiHeadAttention):
            return self.attention
        if isinstance(module, FusionLayer):
            return self.fused
        if name.endswith("sampling_offsets"):
            return self.sampled
        is_pruned = name.startswith("transformer.") and isinstance(module, DecoderLayer)
        return self.decoded if is_pruned else None

    def attention(self, name: str, _: nn.Module, __: Any, out: Any) -> None:
        weights = out[1]
        if weights.shape[-1] > 1:
            value = torch.special.entr(weights).sum(-1).mean() / math.log(weights.shape[-1])
            self.entropy[name] = float(value)

    def fused(self, name: str, layer: Any, arguments: Any, out: Any) -> None:
        norms = layer.layer_norm_v(arguments[0]), layer.layer_norm_l(arguments[1])
        for side, before, after in zip("vl", norms, out, strict=True):
            self.fusion_share[f"{name}.{side}"] = float((after - before).std() / before.std())

    def sampled(self, name: str, _: nn.Module, __: Any, out: Any) -> None:
        self.offsets[name] = float(out.std())

    def decoded(self, _: str, __: nn.Module, arguments: Any, out: Any) -> None:
        (x, weights), text = out, arguments[3]
        mean = weights.mean(1)
        received = mean.sum(1) - mean.diagonal(dim1=1, dim2=2)
        score = class_score(x, text, torch.ones(1, text.shape[1], dtype=torch.bool))
        count = (x.shape[1] + 1) // 2
        first, second = (set(s[0].topk(count).indices.tolist()) for s in (received, score))
        self.kept_by_both.append(len(first & second) / count)


def measure_realism(
    of: ReferDino, images: Tensor, ids: tuple[int, ...], special_ids: Sequence[int]
) -> Realism:
    """Run a clip of at least two frames and measure it."""
    probe = _Probe()
    with _watched(of, probe):
        clip = Reference(of, special_ids).run(images, np.array(ids))
    return Realism(
        entropy=probe.entropy,
        fusion_share=probe.fusion_share,
        offsets=probe.offsets,
        mean_score=clip.enhanced.score.mean(0).numpy(),
        kept_by_both=float(np.mean(probe.kept_by_both)),
        box_moved=float((clip.enhanced.box - clip.ref_tracked).abs().mean()),
        enhanced=_enhanced(clip),
        coverage=(clip.mask_logits > 0).double().mean((0, 2, 3)).numpy(),
        permuted=float((clip.permutations[1:] != np.arange(clip.permutations.shape[1])).mean()),
    )


def _enhanced(clip: Clip) -> float:
    hs = torch.cat([frame.hs for frame in clip.grounding])
    tracked = hs.take_along_dim(torch.from_numpy(clip.permutations)[..., None], 1)
    return float((clip.enhanced.hs_v - tracked).std() / tracked.std())


@contextmanager
def _watched(of: ReferDino, probe: _Probe) -> Iterator[None]:
    handles = []
    for name, module in of.named_modules():
        if hook := probe.hook_of(name, module):
            handles.append(module.register_forward_hook(functools.partial(hook, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
