"""Matching of sentences and track tokens with cells."""

from __future__ import annotations

import math

import pytest
import torch

from refsam_train.learn.match import Match


def test_matching_is_the_cross_entropy_of_cosines_with_covered_cells() -> None:
    """Against plain sums in float64."""
    torch.manual_seed(4)
    match = Match()
    embedding = torch.nn.functional.normalize(torch.randn(2, 256, 4, 4), dim=1)
    sentence = torch.nn.functional.normalize(torch.randn(2, 256), dim=1)
    masks = torch.zeros(2, 32, 32)
    masks[0, 4:20, 8:16] = 1.0
    masks[1, :8, :8] = 1.0
    total = 0.0
    for row in range(2):
        for i in range(4):
            for j in range(4):
                covered = masks[row, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].double().mean().item()
                cosine = (embedding[row, :, i, j].double() @ sentence[row].double()).item()
                chance = 1.0 / (1.0 + math.exp(4.0 - 10.0 * cosine))
                total -= covered * math.log(chance) + (1.0 - covered) * math.log(1.0 - chance)
    found = match(embedding, sentence, masks).item()
    assert found == pytest.approx(0.2 * total / 3.0, rel=1e-5)


def test_matching_rewards_cells_that_are_parallel_to_their_own_sentence() -> None:
    match = Match()
    sentences = torch.eye(256)[:2]
    embedding = torch.zeros(2, 256, 2, 2)
    embedding[:, 7] = 1.0
    masks = torch.zeros(2, 16, 16)
    for row, (i, j) in enumerate(((0, 1), (1, 0))):
        embedding[row, 7, i, j], embedding[row, row, i, j] = 0.0, 1.0
        masks[row, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = 1.0
    right = match(embedding, sentences, masks)
    assert right < 0.5 * match(embedding, sentences.flip(0), masks)
    assert match(embedding, sentences, torch.zeros_like(masks)).isfinite()


def test_length_of_the_vector_does_not_count() -> None:
    torch.manual_seed(0)
    match, embedding, masks = Match(), torch.randn(1, 256, 2, 2), torch.ones(1, 16, 16)
    vector = torch.randn(1, 256)
    torch.testing.assert_close(match(embedding, vector, masks), match(embedding, 7 * vector, masks))


def test_where_nothing_is_named_the_loss_is_the_plain_sum() -> None:
    found = Match()(torch.zeros(1, 256, 2, 2), torch.ones(1, 256), torch.zeros(1, 16, 16))
    assert found.item() == pytest.approx(0.2 * 4 * math.log1p(math.exp(-4.0)), rel=1e-5)
