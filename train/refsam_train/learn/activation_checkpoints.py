"""SAM's image encoder that forgets activations of adapter blocks and computes them again (9.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refsam_export.refsam.model.image_encoder import ImageEncoder


class ForgetfulEncoder(nn.Module):
    """The same encoder with the same parameters; needs less memory and more time for training.

    Args:
        encoder: whose parameters are used.
        blocks: indexes of the blocks that forget.
    """

    def __init__(self, encoder: ImageEncoder, blocks: range) -> None:
        super().__init__()
        self._encoder = encoder
        self._blocks = blocks

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames; see `ImageEncoder.forward`."""
        encoder = self._encoder
        x = encoder.patch_embed(image) + encoder.pos_embed
        intermediate: list[Tensor] = []
        for index, block in enumerate(encoder.blocks):
            x = checkpoint(block, x, use_reentrant=False) if index in self._blocks else block(x)
            if index in encoder.intermediate_blocks:
                intermediate.append(x)
        return encoder.neck(x.permute(0, 3, 1, 2)), intermediate
