"""ReferDINO in PyTorch over a clip: what the runtime does with five graphs, the slow obvious way.

One expression, all frames. Every frame is grounded alone, the tracker orders its objects, the
temporal blocks look at all frames together, and the masks of each frame follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from refsam_export.referdino.model.referdino import Enhanced, Grounding, ReferDino
from refsam_trt.errors import VideoError
from refsam_trt.families.referdino.blocks import text_blocks
from refsam_trt.families.referdino.frame import num_cells
from refsam_trt.families.referdino.matching import SlotTracker

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Clip:
    """Everything that a clip gives for one expression.

    Attributes:
        text_embed: [1, N, d].
        grounding: of each frame, B = 1, in the order of that frame.
        permutations: int64 [T, slots], the object of each slot.
        memories: [T, slots, d], what the tracker remembered after each frame.
        enhanced: in the order of the slots, like all that follows.
        ref_tracked: [T, slots, 4].
        mask_logits: [T, slots, H4, W4].
    """

    text_embed: Tensor
    grounding: tuple[Grounding, ...]
    permutations: NDArray[np.int64]
    memories: NDArray[np.floating]
    enhanced: Enhanced
    ref_tracked: Tensor
    mask_logits: Tensor


def normalised(frames: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """Return frames uint8 [T, H, W, 3] as the network's input [T, 3, H, W] of a dtype."""
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
    image = torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float64) / 255
    return ((image - mean) / std).to(dtype)


def full_size(mask_logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Interpolate logits [..., H4, W4] straight to the size of the original frame (7)."""
    rows = mask_logits.reshape(-1, 1, *mask_logits.shape[-2:])
    resized = functional.interpolate(rows, size_hw, mode="bilinear", align_corners=False)
    return resized.reshape(*mask_logits.shape[:-2], *size_hw)


class Reference:
    """Runs clips through a model, in the model's dtype.

    Args:
        model: any dtype.
        special_ids: the tokens that end a block.
    """

    def __init__(self, model: ReferDino, special_ids: Sequence[int]) -> None:
        self.model, self._special_ids = model.eval(), tuple(special_ids)

    @torch.no_grad()
    def run(
        self,
        images: Tensor,
        input_ids: NDArray[np.int64],
        selections: Sequence[Tensor] | None = None,
    ) -> Clip:
        """Run all frames of a clip for one expression.

        Args:
            images: [T, 3, H, W], normalised, of the model's dtype.
            input_ids: int64 [N], begin and end tokens included.
            selections: of each frame, the `selected_ids` [1, ...] to take; None takes the best.

        Raises:
            VideoError: the frames have fewer cells than the model has queries.
        """
        self._check_size(images)
        model = self.model
        ids = torch.from_numpy(input_ids)[None]
        positions, self_mask = (
            torch.from_numpy(array)[None] for array in text_blocks(input_ids, self._special_ids)
        )
        token_mask = torch.ones_like(ids, dtype=torch.bool)
        text_embed = model.encode_text(ids, positions, self_mask)
        tracker = SlotTracker(model.config.tracker_momentum)
        grounding, permutations, memories = [], [], []
        for index, image in enumerate(images):
            selection = None if selections is None else selections[index]
            maps = model.encode_image(image[None])
            frame = model.ground(maps, text_embed, positions, self_mask, token_mask, selection)
            permutations.append(
                tracker.step(frame.hs[0].numpy(), frame.text_mem[0].numpy(), token_mask[0].numpy())
            )
            assert tracker.memory is not None
            memories.append(tracker.memory)
            grounding.append(frame)
        order = torch.from_numpy(np.stack(permutations))[..., None]
        hs, ref, text_mem, x16 = (
            torch.cat(tensors) for tensors in tuple(zip(*grounding, strict=True))[:4]
        )
        hs, ref = hs.take_along_dim(order, 1), ref.take_along_dim(order, 1)
        enhanced = model.enhance(hs, ref, text_mem, token_mask)
        mask_logits = model.masks(enhanced.hs_v, ref, text_mem, token_mask, x16)
        return Clip(
            text_embed,
            tuple(grounding),
            np.stack(permutations),
            np.stack(memories),
            enhanced,
            ref,
            mask_logits,
        )

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        needed, cells = self.model.config.num_queries, num_cells(height, width)
        if cells < needed:
            raise VideoError(
                f"frames of {height}x{width} have {cells} cells, the model needs {needed}; bring "
                "them to a larger size"
            )
