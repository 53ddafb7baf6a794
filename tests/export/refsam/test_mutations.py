"""Knock out one term: the figure that decides parity must exceed its bound."""

import copy
import dataclasses

import pytest
import torch
from reference_models import model, relative, run_graphs, tokens, track_token
from torch import Tensor, nn

import refsam_export.refsam.graphs as graphs_module
import refsam_export.refsam.model.mask_decoder as decoder_module
from refsam_export.key_bias import key_bias
from refsam_export.parity.compare import MAX_RELATIVE_ERROR
from refsam_export.parity.inputs import EXPRESSIONS
from refsam_export.refsam.attention import AugmentedAttention
from refsam_export.refsam.model.refsam import RefSam

DEPTH = 8
PARAMETERS = [
    *(f"image_encoder.blocks.{i}.attn.rel_pos_{axis}" for i in range(DEPTH) for axis in "hw"),
    *(
        f"image_encoder.blocks.{i}.{kind}_Adapter.D_fc2.weight"
        for i in range(DEPTH // 2, DEPTH)
        for kind in ("Space", "MLP")
    ),
    *(f"image_encoder.blocks.{i}.mlp.lin2.weight" for i in range(DEPTH)),
    "image_encoder.pos_embed",
    *(f"fpn_conv.{i}.weight" for i in range(3)),
    *(f"fpn_conv.{i}.bias" for i in range(3)),
    *(f"dense_conv2.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")),
    "dense_conv.weight",
    "dense_conv.bias",
    "resizer.0.bias",
    "resizer.2.weight",
    "track_token_mlp.linear2.weight",
    "track_token_mlp.norm.weight",
    "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight",
    *(
        f"mask_decoder.transformer.layers.{i}.{part}.out_proj.weight"
        for i in range(2)
        for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ),
    "mask_decoder.transformer.final_attn_token_to_image.out_proj.weight",
    "mask_decoder.output_hypernetworks_mlps.0.layers.2.weight",
    "mask_decoder.output_upscaling.3.bias",
    "text_encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "text_encoder.encoder.block.1.layer.0.SelfAttention.o.weight",
    "text_encoder.encoder.block.1.layer.1.DenseReluDense.wo.weight",
]
NORMS = [
    "image_encoder.blocks.3.norm1",
    "image_encoder.blocks.3.norm2",
    "image_encoder.neck.1",
    "image_encoder.neck.3",
    *(f"mask_decoder.transformer.layers.{i}.norm{k}" for i in range(2) for k in range(1, 5)),
    "mask_decoder.transformer.norm_final_attn",
    "mask_decoder.output_upscaling.1",
    "track_token_mlp.norm",
]


def outputs(of: RefSam, *, has_track: bool = True) -> dict[str, Tensor]:
    ids, mask = tokens("tiny", *EXPRESSIONS)
    token = torch.stack([track_token(model("tiny"), "tiny")] * len(ids))
    present = torch.tensor([has_track] * len(ids))
    return run_graphs(of, "optimised", "augmented", ids, mask, token, present)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return outputs(model("tiny"))


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(relative(found[name], expected[name]) for name in expected)


def test_an_unchanged_copy_passes(expected: dict[str, Tensor]) -> None:
    assert worst(outputs(copy.deepcopy(model("tiny"))), expected) == 0


@pytest.mark.parametrize("path", PARAMETERS)
def test_one_parameter(path: str, expected: dict[str, Tensor]) -> None:
    mutated = copy.deepcopy(model("tiny"))
    dict(mutated.named_parameters())[path].data.zero_()
    assert worst(outputs(mutated), expected) > MAX_RELATIVE_ERROR


@pytest.mark.parametrize("path", NORMS)
def test_one_norm(path: str, expected: dict[str, Tensor]) -> None:
    mutated = copy.deepcopy(model("tiny"))
    parent, _, name = path.rpartition(".")
    setattr(mutated.get_submodule(parent), name, nn.Identity())
    assert worst(outputs(mutated), expected) > MAX_RELATIVE_ERROR


@pytest.mark.parametrize(
    "change",
    [
        {"l2norm_image": False},
        {"l2norm_text": False},
        {"l2norm_intermediate": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_l2_norm(change: dict[str, bool], expected: dict[str, Tensor]) -> None:
    mutated = copy.deepcopy(model("tiny"))
    mutated.config = dataclasses.replace(mutated.config, **change)
    assert worst(outputs(mutated), expected) > MAX_RELATIVE_ERROR


@pytest.mark.parametrize("change", [{"adapter_act": "gelu"}, {"adapter_scale": 0.4}])
def test_another_adapter(change: dict[str, object], expected: dict[str, Tensor]) -> None:
    config = dataclasses.replace(model("tiny").config, **change)
    mutated = RefSam(config, model("tiny").text_encoder, model("tiny").text_width)
    mutated.load_state_dict(model("tiny").state_dict())
    assert worst(outputs(mutated), expected) > MAX_RELATIVE_ERROR


def test_the_track_token(expected: dict[str, Tensor]) -> None:
    assert worst(outputs(model("tiny"), has_track=False), expected) > MAX_RELATIVE_ERROR


def test_scaled_q_in_the_relative_terms(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]
) -> None:
    right = AugmentedAttention._rel_terms
    monkeypatch.setattr(
        AugmentedAttention, "_rel_terms", lambda self, q: right(self, q * self.scale)
    )
    assert worst(outputs(model("tiny")), expected) > MAX_RELATIVE_ERROR


def test_exchanged_relative_axes(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]
) -> None:
    right = AugmentedAttention._rel_terms
    monkeypatch.setattr(AugmentedAttention, "_rel_terms", lambda self, q: right(self, q)[::-1])
    assert worst(outputs(model("tiny")), expected) > MAX_RELATIVE_ERROR


@pytest.mark.parametrize("module", [graphs_module], ids=["hda and prompts"])
def test_mask_rows_that_let_pads_in(
    module: object, monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]
) -> None:
    def blind(valid: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(key_bias(valid, dtype))

    monkeypatch.setattr(module, "key_bias", blind)
    assert worst(outputs(model("tiny")), expected) > MAX_RELATIVE_ERROR


def test_a_position_encoding_with_x_and_y_exchanged(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, Tensor]
) -> None:
    right = decoder_module.position_encoding
    monkeypatch.setattr(
        graphs_module, "position_encoding", lambda g, size: right(g, size).transpose(-1, -2)
    )
    assert worst(outputs(model("tiny")), expected) > MAX_RELATIVE_ERROR


def test_hda_levels_in_another_order(expected: dict[str, Tensor]) -> None:
    mutated = copy.deepcopy(model("tiny"))
    mutated.dense_conv2[0], mutated.dense_conv2[1] = mutated.dense_conv2[1], mutated.dense_conv2[0]
    assert worst(outputs(mutated), expected) > MAX_RELATIVE_ERROR
