"""Random weights keep what `realistic_init` promises, and depend on seed and key alone."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from referdino_models import CONFIGS, MIDDLE, SPECIAL_IDS, TWO_BLOCKS, frames, model
from referdino_realism import measure_realism

from refsam_export.referdino.init import drawn, realistic_init
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.reference import normalised
from refsam_trt.families.referdino.blocks import text_blocks


@pytest.mark.parametrize(("name", "seed"), [("tiny", 0), ("tiny", 1), ("odd", 0), ("narrow", 0)])
def test_it_behaves_like_a_trained_model(name: str, seed: int):
    figures = measure_realism(
        model(name, seed), normalised(frames(3), torch.float64), TWO_BLOCKS, SPECIAL_IDS
    )
    # Attention is neither uniform nor a choice of one. Along time, where the `[CLS]` of some frames
    # look at each other and are alike, it comes close.
    alike = {key for key in figures.entropy if key.endswith("decoder.self_attn")}
    assert {k: v for k, v in figures.entropy.items() if not 0.2 < v < 0.97 and k not in alike} == {}
    assert all(figures.entropy[key] < 0.9999 for key in alike)
    assert all(0.1 < share < 2 for share in figures.fusion_share.values())
    assert all(0.5 < size < 8 for size in figures.offsets.values())
    # Classes are not certain, and slots differ.
    assert 0.05 < figures.mean_score.mean() < 0.95
    assert np.ptp(figures.mean_score) > 0.05
    # Each of the two pruning scores decides something.
    assert 0.2 < figures.kept_by_both < 0.9
    assert figures.box_moved > 0.01
    assert 0.2 < figures.enhanced < 2
    assert 0.02 < figures.coverage.mean() < 0.6
    assert figures.permuted > 0.5


def test_every_parameter_moves_something():
    of = copy.deepcopy(model("odd")).requires_grad_(True)
    images, ids = normalised(frames(2), torch.float64), torch.tensor([MIDDLE])
    positions, mask = (
        torch.from_numpy(array)[None] for array in text_blocks(ids[0].numpy(), SPECIAL_IDS)
    )
    token_mask = torch.ones_like(mask[:, 0])
    text = of.encode_text(ids, positions, mask)
    frame = of.ground(of.encode_image(images), text, positions, mask, token_mask)
    enhanced = of.enhance(frame.hs, frame.ref, frame.text_mem, token_mask)
    masks = of.masks(enhanced.hs_v, frame.ref, frame.text_mem, token_mask, frame.x16)
    generator = torch.Generator().manual_seed(0)
    results = (enhanced.score, enhanced.box, masks)
    total = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() / x.std()
        for x in results
    )
    torch.as_tensor(total).backward()
    dead = {
        key
        for key, parameter in of.named_parameters()
        if parameter.grad is None or float(parameter.grad.abs().max()) < 1e-9
    }
    # The same is added to the scores of all keys.
    assert dead == {f"bert.encoder.layer.{i}.attention.self.key.bias" for i in range(2)}


def test_values_depend_on_seed_and_key_alone():
    first, second = (ReferDino(CONFIGS["tiny"]) for _ in range(2))
    realistic_init(first, 0)
    realistic_init(second, 1)
    states = first.state_dict(), second.state_dict()
    assert not any(torch.equal(states[0][key], states[1][key]) for key in states[0])
    key = "transformer.encoder.layers.0.linear1.weight"
    assert torch.equal(states[0][key], drawn(key, (128, 256), CONFIGS["tiny"], 0))


def test_the_bits_are_the_same_everywhere():
    of = ReferDino(CONFIGS["tiny"])
    realistic_init(of, 0)
    digest = hashlib.sha256()
    for key, value in sorted(of.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    assert digest.hexdigest()[:16] == "1cbb002255966218"
