"""Each exact rewrite of the adapter blocks against SAM's own block, alone and all together."""

import copy

import pytest
import torch
from reference_models import image_of, model, relative, variant
from torch import Tensor

from refsam_export.refsam.attention import FORMS, with_attention
from refsam_export.refsam.model.image_encoder import AdapterBlock, ImageEncoder
from refsam_export.refsam.rewrites import (
    DEFAULT_REWRITES,
    REWRITES,
    parse_rewrites,
    rewritten,
)
from refsam_trt.errors import UsageError

EXACT = 1e-12  # in double precision
EXACT_FP32 = 5e-6
ACTS = ("relu", "gelu")


def encoder(act: str) -> ImageEncoder:
    of = model("tiny") if act == "relu" else variant("tiny", adapter_act=act)
    return of.image_encoder


def double(of: ImageEncoder) -> ImageEncoder:
    return copy.deepcopy(of).double()


def outputs(of: torch.nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        embedding, maps = of(image)
    return [embedding, *maps]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", REWRITES)
def test_each_rewrite_is_exact(name: str, act: str) -> None:
    plain, image = double(encoder(act)), image_of(model("tiny")).double()
    changed = rewritten(plain, (name,))
    assert worst(outputs(changed, image), outputs(plain, image)) <= EXACT


@pytest.mark.parametrize("form", FORMS)
def test_all_rewrites_with_every_form_of_attention(form: str) -> None:
    plain, image = encoder("gelu"), image_of(model("tiny"))
    changed = with_attention(rewritten(plain, REWRITES), form)
    assert worst(outputs(changed, image), outputs(plain, image)) <= EXACT_FP32


def test_the_adapter_sees_no_padding_after_the_merge() -> None:
    """8x8 tokens in windows of 3 are padded to 9x9: 81 tokens before, 64 after."""
    seen: dict[str, list[int]] = {}
    for name, of in (
        ("plain", encoder("relu")),
        ("moved", rewritten(encoder("relu"), REWRITES[:1])),
    ):
        counts: list[int] = []
        block = next(b for b in of.blocks if hasattr(b, "Space_Adapter") and b.window_size)
        handle = block.Space_Adapter.register_forward_pre_hook(
            lambda _, given, counts=counts: counts.append(given[0][..., 0].numel())
        )
        outputs(of, image_of(model("tiny")))
        handle.remove()
        seen[name] = counts
    assert seen == {"plain": [81], "moved": [64]}


@pytest.mark.parametrize("act", ACTS)
def test_merged_mlp_is_two_products(act: str) -> None:
    merged = rewritten(encoder(act), REWRITES[1:])
    blocks = [block for block in merged.blocks if hasattr(block, "merged")]
    assert len(blocks) == 4
    for block in blocks:
        assert (block.merged.lin1.out_features, block.merged.lin2.in_features) == (272, 272)
        assert not hasattr(block, "mlp")
        assert not hasattr(block, "MLP_Adapter")


def test_a_wrong_scale_would_show() -> None:
    """The merge must carry `adapter_scale`: knocked out, the twin differs by far more."""
    plain, image = double(encoder("relu")), image_of(model("tiny")).double()
    changed = rewritten(plain, REWRITES[1:])
    for index, block in enumerate(plain.blocks):
        if isinstance(block, AdapterBlock):
            merged = changed.blocks[index].merged
            merged.lin2.weight.data[:, merged.hidden :] *= 1.01
    assert worst(outputs(changed, image), outputs(plain, image)) > 1e4 * EXACT


def test_weights_that_do_not_change_are_shared() -> None:
    plain = encoder("relu")
    changed = rewritten(plain, REWRITES)
    for index in (0, 7):
        assert changed.blocks[index].attn.qkv.weight is plain.blocks[index].attn.qkv.weight
    assert isinstance(plain.blocks[7], AdapterBlock)


def test_lists_of_rewrites() -> None:
    assert parse_rewrites("merged-mlp, adapter-after-merge") == REWRITES
    assert parse_rewrites("none") == ()
    assert parse_rewrites(",".join(DEFAULT_REWRITES)) == DEFAULT_REWRITES
    with pytest.raises(UsageError) as refused:
        parse_rewrites("merged-mlp,flash")
    assert str(refused.value) == (
        "rewrite 'flash': choose among adapter-after-merge, merged-mlp, separated by commas, or "
        "none"
    )
