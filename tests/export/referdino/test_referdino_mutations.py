"""Knock out one term of the reference: the comparison with the twin must notice.

Where a slip only shows on special pictures or weights, the case is made for it.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from referdino_models import (
    MIDDLE,
    SHORT,
    SMALL_HW,
    TWO_BLOCKS,
    WIDE_HW,
    differences,
    model,
    reference_clip,
    twin_clip,
    twin_clip_of,
)
from torch import Tensor, nn

import refsam_export.referdino.reference as reference_module
from refsam_export.referdino.model import (
    attention,
    boxes,
    cross_modal,
    grounding,
    image_encoder,
)
from refsam_export.referdino.model.referdino import ReferDino
from refsam_trt.families.referdino import matching

NOTICED = 1e-5
"""Of a difference that a comparison at 1e-10 must see; ids that differ count 1."""

Change = Callable[[pytest.MonkeyPatch, ReferDino], object]


def worst(of: ReferDino, case: tuple[Any, ...]) -> float:
    _, *arguments = case
    return max(differences(reference_clip(of, *arguments), twin_clip(*case)).values())


TINY = ("tiny", TWO_BLOCKS, 2, SMALL_HW)
IN_WIDE_FRAME = ("wide", MIDDLE, 2, WIDE_HW)


def set_to(module: Any, name: str, value: object) -> Change:
    return lambda patch, _: patch.setattr(module, name, value)


def replaced(module: Any, name: str, make: Callable[[Any], object]) -> Change:
    """Replace a function by what `make` makes of it."""
    return lambda patch, _: patch.setattr(module, name, make(getattr(module, name)))


def zeroed(*keys: str) -> Change:
    def change(_: pytest.MonkeyPatch, of: ReferDino) -> None:
        for key in keys:
            of.get_parameter(key).data.zero_()

    return change


def without(*paths: str) -> Change:
    """Replace modules by the identity."""

    def change(_: pytest.MonkeyPatch, of: ReferDino) -> None:
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(of.get_submodule(parent), name, nn.Identity())

    return change


def other_groups(path: str, num_groups: int) -> Change:
    def change(_: pytest.MonkeyPatch, of: ReferDino) -> None:
        of.get_submodule(path).num_groups = num_groups

    return change


def all_one_block(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(ids: np.ndarray, special_ids: object) -> tuple[np.ndarray, np.ndarray]:
        positions, mask = right(ids, special_ids)
        return positions, np.ones_like(mask)

    return wrong


def positions_that_go_on(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(ids: np.ndarray, special_ids: object) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(ids)), right(ids, special_ids)[1]

    return wrong


def pruning(received_part: float, score_part: float, *, diagonal: bool = False) -> Change:
    def wrong(weights: Tensor, score: Tensor) -> Tensor:
        mean = weights.mean(1)
        received = mean.sum(1) - (0 if diagonal else 1) * mean.diagonal(dim1=1, dim2=2)
        return received_part * received.softmax(-1) + score_part * score.softmax(-1)

    return set_to(grounding, "pruning_score", wrong)


def reversed_levels(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Samples of the levels in the other order: what offsets and weights are numbered by."""

    def wrong(
        self: attention.DeformableAttention,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        sizes: Any,
    ) -> Tensor:
        maps = value.split([height * width for height, width in sizes], dim=-2)
        return right(self, query, reference, torch.cat(maps[::-1], dim=-2), sizes[::-1])

    return wrong


def x_and_y_exchanged(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda boxes_, width: right(boxes_[..., [1, 0, 2, 3]], width)


def other_phases(self: image_encoder.PatchMerging, x: Tensor) -> Tensor:
    x = nn.functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    phases = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return self.reduction(self.norm(torch.cat(phases, dim=-1)))


def unshifted(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    for module in of.modules():
        if isinstance(module, image_encoder.Block):
            module.shift = 0


def floor_of_half(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    """Keep one less where the count is odd, and repeat the last, so that the shapes stay."""
    right = grounding.pruning_score

    def wrong(weights: Tensor, score: Tensor) -> Tensor:
        g = right(weights, score)
        if g.shape[1] % 2 == 0:
            return g
        kept = g.topk(g.shape[1] // 2).indices
        return g.scatter(1, kept[:, -1:], -1.0)

    patch.setattr(grounding, "pruning_score", wrong)


def normalised_twice(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    """Add to the raw tensors instead of the normalised ones."""
    right = cross_modal.FusionLayer.forward

    def wrong(self: Any, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image_sum, text_sum = right(self, image, text, mask)
        return (
            image + image_sum - self.layer_norm_v(image),
            text + text_sum - self.layer_norm_l(text),
        )

    patch.setattr(cross_modal.FusionLayer, "forward", wrong)


def refined_boxes_in_the_masks(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    right = ReferDino.masks

    def wrong(self: ReferDino, hs_v: Tensor, ref: Tensor, *rest: Tensor) -> Tensor:
        return right(self, hs_v, self.transformer.decoder.refined(hs_v, ref), *rest)

    patch.setattr(ReferDino, "masks", wrong)


def sentence_not_carried(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    blocks = of.temporal_decoder[0].layer
    first: list[Tensor] = []
    blocks[0].register_forward_pre_hook(lambda _, arguments: first.append(arguments[1]))
    blocks[1].register_forward_pre_hook(lambda _, arguments: (arguments[0], first[-1]))


def final_norm_in_the_score(patch: pytest.MonkeyPatch, of: ReferDino) -> None:
    right, norm = grounding.class_score, of.transformer.decoder.norm
    patch.setattr(grounding, "class_score", lambda x, *rest: right(norm(x), *rest))


def full_momentum(right: Callable[..., Any]) -> Callable[..., Any]:
    return np.ones_like


DECODER, ENCODER, TEMPORAL = "transformer.decoder", "transformer.encoder", "temporal_decoder.0"
MUTATIONS: dict[str, Change] = {
    # Backbones.
    "Swin's shift": unshifted,
    "regions of the shift": set_to(image_encoder, "OTHER_REGION", 0.0),
    "relative positions": zeroed("backbone.0.layers.1.blocks.0.attn.relative_position_bias_table"),
    "phases of the merging": set_to(image_encoder.PatchMerging, "forward", other_phases),
    "norm of a stage": without("backbone.0.norm2"),
    "GroupNorm of a projection": without("input_proj.1.1"),
    "blocks of the text": replaced(reference_module, "text_blocks", all_one_block),
    "positions in blocks": replaced(reference_module, "text_blocks", positions_that_go_on),
    # Encoder.
    "fusion of the image": zeroed(f"{ENCODER}.fusion_layers.0.gamma_v"),
    "fusion of the text": zeroed(f"{ENCODER}.fusion_layers.1.gamma_l"),
    "sum on the normalised": normalised_twice,
    "text layer": zeroed(f"{ENCODER}.text_layers.1.self_attn.out_proj.weight"),
    "image layer": zeroed(f"{ENCODER}.layers.1.self_attn.output_proj.weight"),
    "level embedding": zeroed("transformer.level_embed"),
    "order of levels": replaced(attention.DeformableAttention, "forward", reversed_levels),
    "image temperature": set_to(boxes, "IMAGE_TEMPERATURE", 10000.0),
    "text temperature": set_to(grounding, "TEXT_TEMPERATURE", 20.0),
    # Selection and decoder.
    "size of proposals": set_to(boxes, "FIRST_SIDE", 0.1),
    "content queries": zeroed("transformer.tgt_embed.weight"),
    "x and y of boxes": replaced(grounding, "box_code", x_and_y_exchanged),
    "received attention": pruning(0.0, 0.5),
    "class score": pruning(0.5, 0.0),
    "own attention": pruning(0.5, 0.5, diagonal=True),
    "norm before the score": final_norm_in_the_score,
    "self-attention": zeroed(f"{DECODER}.layers.0.self_attn.out_proj.weight"),
    "text attention": zeroed(f"{DECODER}.layers.1.ca_text.out_proj.weight"),
    "box refinement": zeroed(f"{DECODER}.bbox_embed.0.layers.2.weight"),
    "decoder's norm": without(f"{DECODER}.norm"),
    # Over time.
    "tracker": replaced(
        matching, "minimum_assignment", lambda _: lambda cost: np.arange(len(cost))
    ),
    "tracker's momentum": set_to(matching, "_scaled", np.zeros_like),
    "tracker's weight": replaced(matching, "_scaled", full_momentum),
    "temporal attention": zeroed(f"{TEMPORAL}.layer.1.self_attn.out_proj.weight"),
    "temporal norm": without(f"{TEMPORAL}.norm.0"),
    "sentence stream": zeroed(f"{TEMPORAL}.layer.0.decoder.multihead_attn.out_proj.weight"),
    "sentence carried on": sentence_not_carried,
    # Masks.
    "GroupNorm of the pixel decoder": other_groups("pixel_decoder.gn3", 4),
    "skip of stride 4": zeroed("pixel_decoder.adapter3.weight"),
    "boxes of the masks": refined_boxes_in_the_masks,
    "mask attention": zeroed("mask_decoder.1.cross_attn.output_proj.weight"),
    "mask feed-forward": zeroed("mask_decoder.0.linear2.weight"),
}


def test_an_unchanged_copy_agrees():
    for case in (TINY, IN_WIDE_FRAME):
        assert worst(copy.deepcopy(model(case[0])), case) < 1e-10


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_twin_notices(name: str, monkeypatch: pytest.MonkeyPatch):
    mutated = copy.deepcopy(model("tiny"))
    MUTATIONS[name](monkeypatch, mutated)
    assert worst(mutated, TINY) > NOTICED


WIDE: dict[str, Change] = {
    "epsilon of the refinement": set_to(boxes, "SIGMOID_EPS", 1e-5),
    "invalid proposals": set_to(boxes, "EDGE", 0.0),
    "box of invalid proposals": set_to(boxes, "INVALID_LOGIT", 0.0),
    "half, rounded up": floor_of_half,
}


@pytest.mark.parametrize("name", WIDE)
def test_the_twin_notices_in_a_wide_frame(name: str, monkeypatch: pytest.MonkeyPatch):
    """Here invalid proposals are among the queries, and counts are odd."""
    mutated = copy.deepcopy(model("wide"))
    WIDE[name](monkeypatch, mutated)
    assert worst(mutated, IN_WIDE_FRAME) > NOTICED


def test_invalid_proposals_survive_in_a_wide_frame():
    entered: list[Tensor] = []
    of = copy.deepcopy(model("wide"))
    of.transformer.decoder.layers[-1].register_forward_pre_hook(
        lambda _, arguments: entered.append(arguments[2])
    )
    reference_clip(of, *IN_WIDE_FRAME[1:])
    assert any((boxes_ > 0.99).all(-1).any() for boxes_ in entered)


@functools.cache
def extreme(kind: str) -> ReferDino:
    """Return a model whose scores are so large that the bounds on them count."""
    of = copy.deepcopy(model("tiny"))
    for key, parameter in of.named_parameters():
        if kind == "fusion" and key.endswith(("attn.v_proj.weight", "attn.l_proj.weight")):
            parameter.data *= 400
        if kind == "window" and key.endswith("attn.qkv.weight"):
            parameter.data *= 8
    return of


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("fusion", set_to(cross_modal, "SCORE_BOUND", 1e9)),
        ("window", set_to(image_encoder, "OTHER_REGION", -1e9)),
    ],
    ids=["clamp of the fusion", "-100 between regions"],
)
def test_bounds_that_only_large_scores_reach(
    kind: str, change: Change, monkeypatch: pytest.MonkeyPatch
):
    of, arguments = extreme(kind), (SHORT, 1, SMALL_HW)
    twin = twin_clip_of(of, *arguments)
    assert max(differences(reference_clip(of, *arguments), twin).values()) < 1e-8
    change(monkeypatch, of)
    assert max(differences(reference_clip(of, *arguments), twin).values()) > NOTICED
