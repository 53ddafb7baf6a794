"""The graphs as PyTorch modules: equal to the reference, blind to padding and batching."""

import pytest
import torch
from reference_models import (
    image_of,
    model,
    reference,
    relative,
    run_graphs,
    tokens,
    track_token,
)

from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.refsam.attention import FORMS, with_attention
from refsam_export.refsam.graphs import build_graphs
from refsam_trt.errors import UsageError

SPLITS = ("optimised", "baseline")
# Pads, batching and late joining: the same numbers in another order of summation.
INVARIANCE = 1e-5
EXACT = 5e-6


@pytest.mark.parametrize("preset", ["tiny", "nano"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("form", FORMS)
def test_graphs_equal_the_reference(preset: str, split: str, form: str) -> None:
    of = model(preset)
    token = track_token(of, preset)
    expected = [
        reference(of, t, k, preset) for t, k in zip(EXPRESSIONS, (token, None, token), strict=True)
    ]
    ids, mask = tokens(preset, *EXPRESSIONS, extra_pads=3)
    # Absent rows hold what would overflow a softmax: zeroing them at the entry must come first.
    track = torch.stack([token, torch.full_like(token, 3e4), token])
    has_track = torch.tensor([True, False, True])
    found = run_graphs(of, split, form, ids, mask, track, has_track)
    for name in ("image_embedding", "hda_features"):
        assert relative(found[name], expected[0][name]) <= EXACT, name
    for row, single in enumerate(expected):
        num_tokens = int(mask[row].sum())
        assert relative(found["words"][row, :num_tokens], single["words"][0]) <= INVARIANCE
        assert found["words"][row, num_tokens:].abs().max() == 0
        for name in ("sentence", "low_res_logits", "iou", "next_track_token"):
            assert relative(found[name][row], single[name][0]) <= INVARIANCE, (row, name)


@pytest.mark.parametrize("split", SPLITS)
def test_several_frames_in_one_batch_equal_one_by_one(split: str) -> None:
    of = model("tiny")
    encoder = build_graphs(of, split, "augmented")["image_encoder"]
    images = [image_of(of, index) for index in range(3)]
    with torch.no_grad():
        batch = encoder(torch.cat(images))
        single = [encoder(image) for image in images]
    for position, whole in enumerate(batch):
        parts = torch.cat([one[position] for one in single])
        assert relative(whole, parts) <= EXACT


def test_unknown_attention_form_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no attention form 'flash'; choose one of reference"):
        with_attention(model("tiny").image_encoder, "flash")


def test_rewritten_encoder_shares_its_weights() -> None:
    encoder = model("tiny").image_encoder
    rewritten = with_attention(encoder, "augmented")
    assert rewritten.blocks[0].attn.qkv.weight is encoder.blocks[0].attn.qkv.weight
    assert rewritten.blocks[0].mlp.lin1.weight is encoder.blocks[0].mlp.lin1.weight
