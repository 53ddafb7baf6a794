"""Every form of attention against SAM's own, at the sizes of every preset, windowed and global."""

import pytest
import torch
from reference_models import relative
from torch import nn

from refsam_export.refsam.attention import AugmentedAttention, BiasAttention, SdpaAttention
from refsam_export.refsam.model.config import PRESETS
from refsam_export.refsam.model.sam import Block

EXACT = 1e-12  # in double precision
SIZES = sorted(
    {
        (config.head_dim, side)
        for config in PRESETS.values()
        for side in (config.window_size, config.grid_size)
    }
)


def sam_attention(head_dim: int, side: int, num_heads: int) -> nn.Module:
    """SAM's module with its relative tables filled: as made they are zero and hide everything."""
    torch.manual_seed(0)
    module = Block(head_dim * num_heads, num_heads, use_rel_pos=True, input_size=(side, side)).attn
    for name in ("rel_pos_h", "rel_pos_w"):
        getattr(module, name).data.normal_(std=0.5)
    return module.double().eval().requires_grad_(False)


@pytest.mark.parametrize(("head_dim", "side"), SIZES)
@pytest.mark.parametrize("form", [BiasAttention, AugmentedAttention, SdpaAttention])
def test_equal_to_sam_at_every_presets_sizes(form: type, head_dim: int, side: int) -> None:
    num_heads = 1 if side > 16 else 3
    plain = sam_attention(head_dim, side, num_heads)
    x = torch.randn(1, side, side, head_dim * num_heads, dtype=torch.float64)
    expected = plain(x)
    assert relative(form(plain, side)(x), expected) <= EXACT


@pytest.mark.parametrize("table", ["rel_h", "rel_w"])
@pytest.mark.parametrize("form", [BiasAttention, AugmentedAttention, SdpaAttention])
def test_each_term_counts(form: type, table: str) -> None:
    plain = sam_attention(64, 14, 2)
    changed = form(plain, 14)
    getattr(changed, table).zero_()
    x = torch.randn(2, 14, 14, 128, dtype=torch.float64)
    assert relative(changed(x), plain(x)) > 1e-3


def test_widths_of_the_augmented_product() -> None:
    """TensorRT fuses up to 256 wide, and Q, K and V only when equally so (V is padded)."""
    for config in PRESETS.values():
        for side in (config.window_size, config.grid_size):
            assert config.head_dim + 2 * side <= 256
