"""Every form of the model besides the paper's: against the float64 twin, as graphs, knocked out."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy_reference import random_weights, run_frame, run_step, text
from realism import measure_realism
from reference_models import (
    image_of,
    model,
    reference,
    relative,
    run_graphs,
    tokens,
    variant,
    with_all_masks,
)
from torch import Tensor

from refsam_export.parity.compare import MAX_RELATIVE_ERROR
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.refsam.model.config import PRESETS, ModelConfig
from refsam_export.refsam.model.hda import no_features
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.model.text_encoder import cross_modal_mlp
from refsam_trt.errors import UsageError

RELEASED = {"hda_levels": 1, "itm": "qim", "adapter_act": "gelu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "released": RELEASED,
    "one level": {"hda_levels": 1},
    "qim": {"itm": "qim"},
    "no dense attention": {"hda_levels": 0},
    "dense origin": {"hda_levels": 0, "dense_origin": True},
    "no word tokens": {"word_tokens": False},
    "best iou": {"mask_select": "best_iou"},
}
TWIN_TOLERANCE = 1e-10
INVARIANCE = 1e-5


def close(found: Tensor, expected: np.ndarray) -> None:
    assert np.abs(found.numpy() - expected).max() <= TWIN_TOLERANCE * np.abs(expected).max()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def as_double(of: RefSam) -> tuple[RefSam, dict[str, np.ndarray]]:
    double = copy.deepcopy(of).double()
    return double, {key: value.numpy() for key, value in double.state_dict().items()}


def embedding_of(of: RefSam) -> tuple[Tensor, Tensor]:
    ids, mask = tokens("tiny", EXPRESSIONS[0])
    return of.encode_text(ids, mask)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_the_twin(name: str) -> None:
    """Three frames from the image encoder's output on; the last carry a track token."""
    double, weights = as_double(variant(**VARIANTS[name]))
    words, sentence = embedding_of(double)
    mask = torch.ones(words.shape[:2], dtype=torch.bool)
    token, has_track, twin_token = torch.zeros(1, 256).double(), torch.tensor([False]), None
    levels = max(double.config.hda_levels - 1, 0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        maps = torch.randn(1 + levels, 256, 8, 8, generator=generator, dtype=torch.float64)
        maps = maps / maps.norm(dim=1, keepdim=True)
        out = double.step(maps[:1], maps[None, 1:], words, mask, sentence, token, has_track)
        text_side = (words[0].numpy(), sentence[0].numpy())
        logits, iou, twin_token = run_step(
            weights, double.config, maps[0].numpy(), maps[1:].numpy(), *text_side, twin_token
        )
        close(out.low_res_logits[0], logits)
        close(out.iou[0], iou)
        close(out.next_track_token[0], twin_token)
        token, has_track = out.next_track_token, torch.tensor([True])


def test_whole_frames_of_the_released_model_equal_the_twin() -> None:
    double, weights = as_double(variant(**RELEASED))
    words, sentence = embedding_of(double)
    mask = torch.ones(words.shape[:2], dtype=torch.bool)
    image, token = image_of(double).double(), noise(1, 256).double()
    encoded = double.encode_image(image)
    assert encoded[1].shape == (1, 0, 256, 8, 8)
    out = double.step(*encoded, words, mask, sentence, token, torch.tensor([True]))
    expected = run_frame(
        weights,
        double.config,
        image[0].numpy(),
        words[0].numpy(),
        sentence[0].numpy(),
        token[0].numpy(),
    )
    for found, wanted in zip(out, expected, strict=True):
        close(found[0], wanted)


@pytest.mark.parametrize("hidden", [None, (), (48,), (32, 32), (40, 24, 16)], ids=str)
def test_every_cross_modal_mlp_equals_the_twin(hidden: tuple[int, ...] | None) -> None:
    weights = random_weights.fill(random_weights.resizer_shapes(64, hidden), seed=3)
    mlp = cross_modal_mlp(64, hidden).double()
    state = {key.removeprefix("resizer."): torch.from_numpy(w) for key, w in weights.items()}
    mlp.load_state_dict(state)
    x = random_weights.normal(5, 64, seed=4)
    with torch.no_grad():
        close(mlp(torch.from_numpy(x)), text.cross_modal_mlp(weights, x))


def shown(of: RefSam, split: str) -> dict[str, Tensor]:
    """All outputs for a padded batch; the second expression has no track token yet."""
    ids, mask = tokens("tiny", *EXPRESSIONS, extra_pads=2)
    track = torch.stack([token_of(of), torch.full((256,), 3e4), token_of(of)])
    has_track = torch.tensor([True, False, True])
    return run_graphs(of, split, "augmented", ids, mask, track, has_track)


def token_of(of: RefSam) -> Tensor:
    return reference(of, EXPRESSIONS[0], None, "tiny")["next_track_token"][0]


@pytest.mark.parametrize("split", ["optimised", "baseline"])
@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_equal_the_reference(name: str, split: str) -> None:
    of = variant(**VARIANTS[name])
    found = shown(of, split)
    assert ("hda_features" in found) == (of.config.hda_levels == 4)
    if split == "optimised" and of.config.hda_levels:
        assert found["text_values"].shape[1] == of.config.hda_levels
    for row, (expression, token) in enumerate(
        zip(EXPRESSIONS, (token_of(of), None, token_of(of)), strict=True)
    ):
        expected = reference(of, expression, token, "tiny")
        for output in ("low_res_logits", "iou", "next_track_token"):
            assert relative(found[output][row], expected[output][0]) <= INVARIANCE, output


KNOCKED_OUT = {
    "released": [
        "temporal_aggregation_network.self_attn.in_proj_weight",
        "temporal_aggregation_network.self_attn.in_proj_bias",
        "temporal_aggregation_network.self_attn.out_proj.weight",
        "temporal_aggregation_network.self_attn.out_proj.bias",
        *(
            f"temporal_aggregation_network.{layer}.{kind}"
            for layer in ("linear1", "linear2", "linear_feat1", "linear_feat2")
            for kind in ("weight", "bias")
        ),
        *(
            f"temporal_aggregation_network.{norm}.{kind}"
            for norm in ("norm1", "norm2", "norm_feat")
            for kind in ("weight", "bias")
        ),
        "dense_conv.weight",
        "dense_conv.bias",
    ],
    "no dense attention": ["no_mask_embed.weight"],
}


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in KNOCKED_OUT.items() for path in paths]
)
def test_one_parameter(name: str, path: str, expected: dict[str, dict[str, Tensor]]) -> None:
    mutated = copy.deepcopy(variant(**VARIANTS[name]))
    dict(mutated.named_parameters())[path].data.zero_()
    assert worst(stepped(mutated), expected[name]) > MAX_RELATIVE_ERROR


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dense origin", {"dense_origin": False}),
        ("no word tokens", {"word_tokens": True}),
        ("best iou", {"mask_select": "main"}),
    ],
)
def test_one_switch(
    name: str, change: dict[str, Any], expected: dict[str, dict[str, Tensor]]
) -> None:
    mutated = copy.deepcopy(variant(**VARIANTS[name]))
    mutated.config = dataclasses.replace(mutated.config, **change)
    mutated.no_mask_embed = torch.nn.Embedding(1, 256)
    assert worst(stepped(mutated), expected[name]) > MAX_RELATIVE_ERROR


def stepped(of: RefSam) -> dict[str, Tensor]:
    """One optimised step on fixed maps, which is what these parts change."""
    ids, mask = tokens("tiny", *EXPRESSIONS)
    maps = noise(1, 256, 8, 8)
    embedding = maps / maps.norm(dim=1, keepdim=True)
    features = embedding[:, None].expand(-1, 3, -1, -1, -1)
    features = features if of.config.hda_levels == 4 else no_features(embedding)
    track = noise(3, 256)
    with torch.no_grad():
        words, sentence = of.encode_text(ids, mask)
        has_track = torch.tensor([True, False, True])
        out = of.step(embedding, features, words, mask > 0, sentence, 0.1 * track, has_track)
    return out._asdict()


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(relative(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Tensor]]:
    return {name: stepped(variant(**changes)) for name, changes in VARIANTS.items()}


def test_qim_adds_the_previous_token_where_there_is_one() -> None:
    of = variant(**RELEASED)
    main, token = noise(2, 2, 256)
    nothing = torch.full_like(token, torch.nan)
    with torch.no_grad():
        both = of.next_track_token(main, token, torch.tensor([True, True]))
        first = of.next_track_token(
            main, torch.stack([nothing[0], token[1]]), torch.tensor([0, 1]) > 0
        )
        without = of.next_track_token(main, nothing, torch.tensor([False, False]))
    assert torch.equal(first[1], both[1])
    assert torch.equal(first[0], without[0])
    assert relative(without, both) > 1e-2


def test_the_best_mask_is_the_one_with_the_highest_score() -> None:
    of = variant(mask_select="best_iou")
    expected = reference(of, EXPRESSIONS[1], None, "tiny")
    ids, mask = tokens("tiny", EXPRESSIONS[1])
    with torch.no_grad():
        encoded = of.encode_image(image_of(of))
        words, sentence = of.encode_text(ids, mask)
        nothing = (torch.zeros(1, 256), torch.tensor([False]))
        every = with_all_masks(of).decode(*encoded, words, mask > 0, sentence, *nothing)
    best = int(every.iou[0].argmax())
    assert best != 0
    assert relative(expected["low_res_logits"][0, 0], every.logits[0, best]) <= INVARIANCE
    assert expected["iou"][0, 0] == every.iou[0].max()


@pytest.mark.parametrize("name", ["released", "no dense attention"])
def test_random_weights_behave_like_trained_ones(name: str) -> None:
    of = variant(**VARIANTS[name])
    images = torch.cat([image_of(of, index) for index in range(3)])
    rows = [tokens("tiny", expression)[0][0].tolist() for expression in EXPRESSIONS]
    realism = measure_realism(of, images, rows)
    assert min(realism.track_moved) >= 0.01
    assert min(realism.coverage) >= 0.05
    assert max(realism.coverage) <= 0.6
    assert max(realism.frame_iou) < 0.97
    assert max(realism.expression_iou) < 0.97


@pytest.mark.parametrize("name", VARIANTS)
def test_configurations_survive_json(name: str) -> None:
    config = dataclasses.replace(PRESETS["tiny"], resizer_hidden=(7, 8), **VARIANTS[name])
    assert ModelConfig.from_json(config.to_json()) == config
    assert config != model("tiny").config


def test_dense_origin_leaves_no_level() -> None:
    with pytest.raises(UsageError, match="replaces Dense Attention, so hda_levels must be 0, fou"):
        dataclasses.replace(PRESETS["tiny"], dense_origin=True)
