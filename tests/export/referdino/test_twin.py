"""The reference against a twin in numpy that was written from the description alone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from referdino_models import (
    MIDDLE,
    SHORT,
    SMALL_HW,
    SPECIAL_IDS,
    TWO_BLOCKS,
    WIDE_HW,
    differences,
    frames,
    model,
    reference_clip,
    relative,
    twin_clip,
)
from torch import Tensor

from refsam_export.referdino.reference import Reference, normalised
from refsam_trt.errors import VideoError
from refsam_trt.families.referdino.blocks import text_blocks

BOUND = 1e-10
SINGLE_BOUND = 5e-5
"""Float32 against float64 with the same selection; twice that of the golden figures, whose weights
are smaller."""

CASES = [
    ("tiny", SHORT, 3, SMALL_HW),
    ("tiny", TWO_BLOCKS, 3, SMALL_HW),
    ("odd", MIDDLE, 1, SMALL_HW),
    ("wide", MIDDLE, 2, WIDE_HW),
    ("narrow", TWO_BLOCKS, 2, SMALL_HW),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{len(case[1])}-{case[2]}")
def test_a_clip(case: tuple[str, tuple[int, ...], int, tuple[int, int]]):
    name, *arguments = case
    clip, twin = reference_clip(model(name), *arguments), twin_clip(*case)
    assert {k: v for k, v in differences(clip, twin).items() if v > BOUND} == {}
    assert clip.enhanced.score.shape[1] == model(name).config.num_slots


def test_what_several_expressions_share():
    """Padded to one length and run together, each is what it is alone."""
    of, expressions = model("tiny"), (SHORT, TWO_BLOCKS, MIDDLE)
    longest = max(map(len, expressions))
    ids = torch.zeros(len(expressions), longest, dtype=torch.long)
    positions, self_mask = torch.zeros_like(ids), torch.eye(longest, dtype=torch.bool)
    self_mask = self_mask.repeat(len(expressions), 1, 1)
    token_mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(expressions):
        count = len(tokens)
        own = text_blocks(np.array(tokens), SPECIAL_IDS)
        ids[row, :count] = torch.tensor(tokens)
        positions[row, :count], self_mask[row, :count, :count] = map(torch.from_numpy, own)
        token_mask[row, :count] = True
    with torch.no_grad():
        maps = of.encode_image(normalised(frames(3)[:1], torch.float64))
        text = of.encode_text(ids, positions, self_mask)
        together = of.ground(maps, text, positions, self_mask, token_mask)
        masks = of.masks(together.hs, together.ref, together.text_mem, token_mask, together.x16)
        for row, tokens in enumerate(expressions):
            rows, real = slice(row, row + 1), slice(0, len(tokens))
            alone = of.ground(
                maps,
                of.encode_text(ids[rows, real], positions[rows, real], self_mask[rows, real, real]),
                positions[rows, real],
                self_mask[rows, real, real],
                token_mask[rows, real],
            )
            assert torch.equal(together.selected_ids[rows], alone.selected_ids)
            assert close(together.hs[rows], alone.hs)
            assert close(together.text_mem[rows, real], alone.text_mem)
            assert close(together.x16[rows], alone.x16)
            mask = of.masks(alone.hs, alone.ref, alone.text_mem, token_mask[rows, real], alone.x16)
            assert close(masks[rows], mask)


def close(value: Tensor, expected: Tensor) -> bool:
    return relative(value.numpy(), expected.numpy()) < BOUND


def test_frames_may_be_encoded_together():
    of = model("odd")
    images = normalised(frames(3), torch.float64)
    with torch.no_grad():
        together = of.encode_image(images)
        for index in range(len(images)):
            alone = of.encode_image(images[index : index + 1])
            assert all(close(a[index : index + 1], b) for a, b in zip(together, alone, strict=True))


def test_single_precision_with_the_same_selection():
    of = copy.deepcopy(model("tiny")).float()
    exact = reference_clip(model("tiny"), SHORT, 3)
    forced = [frame.selected_ids for frame in exact.grounding]
    images = normalised(frames(3), torch.float32)
    clip = Reference(of, SPECIAL_IDS).run(images, np.array(SHORT), forced)
    errors = differences(clip, twin_clip("tiny", SHORT, 3))
    assert {k: v for k, v in errors.items() if v > SINGLE_BOUND} == {}


def test_a_forced_selection_is_taken():
    of = model("tiny")
    images = normalised(frames(1), torch.float64)
    reference = Reference(of, SPECIAL_IDS)
    best = reference.run(images, np.array(SHORT)).grounding[0]
    exchanged = best.selected_ids.clone()
    exchanged[:, :2] = best.selected_ids[:, :2].flip(1)
    forced = reference.run(images, np.array(SHORT), [exchanged]).grounding[0]
    assert torch.equal(forced.selected_ids, exchanged)
    # The content query belongs to the rank, so that this is another frame to the decoder.
    assert not torch.allclose(forced.hs, best.hs, atol=1e-3)


def test_untrained_temporal_blocks_are_left_out():
    of = copy.deepcopy(model("tiny"))
    of.config = dataclasses.replace(of.config, temporal=False)
    clip = reference_clip(of, SHORT, 3)
    hs = torch.cat([frame.hs for frame in clip.grounding])
    order = torch.from_numpy(clip.permutations)[..., None]
    assert torch.equal(clip.enhanced.hs_v, hs.take_along_dim(order, 1))


def test_a_frame_with_fewer_cells_than_queries():
    images = torch.zeros(1, 3, 48, 48, dtype=torch.float64)
    with pytest.raises(VideoError, match="48x48 have 50 cells, the model needs 120"):
        Reference(model("tiny"), SPECIAL_IDS).run(images, np.array(SHORT))
