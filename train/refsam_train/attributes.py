"""An auxiliary task for training from nothing: name shape, colour and pattern at every grid cell.

Without a pre-trained backbone the masks alone teach the image encoder colours quickly, but shapes
and patterns only after very long: nothing asks for them until the decoder can use them, and the
other way round. The heads are thrown away; the published model does not have them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_bench.synthetic.palette import COLOURS
from refsam_bench.synthetic.scene import SceneObject
from refsam_bench.synthetic.shapes import OUTLINES
from refsam_bench.synthetic.texture import PATTERNS
from refsam_bench.synthetic.video import SyntheticVideo
from refsam_export.model.config import EMBED_DIM

UNNAMED: Final = 255
"""Class of a cell that has no name now, such as a colour that is changing; it is not judged."""

_NAMES: Final = (tuple(OUTLINES), tuple(COLOURS), tuple(PATTERNS))
NUM_ATTRIBUTES: Final = len(_NAMES)


def attribute_maps(video: SyntheticVideo, num_frames: int) -> npt.NDArray[np.uint8]:
    """Return what every pixel shows, uint8 [T, 3, H, W]: 0 background, else 1 + place of the name.

    Args:
        video: whose frames are labelled.
        num_frames: length of the clip that its frame indices count in.
    """
    maps = []
    for label_map, index in zip(video.label_map, video.frame_indices, strict=True):
        table = np.zeros((NUM_ATTRIBUTES, 256), np.uint8)
        for item in video.scene.objects:
            table[:, item.object_id] = _classes(item, index / max(num_frames - 1, 1))
        maps.append(table[:, label_map])
    return np.stack(maps)


def _classes(item: SceneObject, time: float) -> list[int]:
    values = (item.shape, item.colour_at(time), item.pattern)
    return [
        UNNAMED if value is None else 1 + names.index(value)
        for names, value in zip(_NAMES, values, strict=True)
    ]


class AttributeHeads(nn.Module):
    """One linear classifier of every attribute per level of the image encoder's features."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self._sizes = [1 + len(names) for names in _NAMES]
        self.heads = nn.ModuleList(
            nn.Linear(EMBED_DIM, sum(self._sizes)) for _ in range(num_levels)
        )

    def forward(self, levels: Tensor, classes: Tensor) -> Tensor:
        """Return the mean cross-entropy over levels, attributes and cells.

        Args:
            levels: [M, L, 256, h, w], of unit length along 256.
            classes: uint8 [M, 3, H, W], from `attribute_maps`; a cell has the class of its centre.
        """
        step = classes.shape[-1] // levels.shape[-1]
        target = classes[..., step // 2 :: step, step // 2 :: step].long()
        # Unit vectors have elements of about 1/16: bring them to 1.
        scaled = levels.permute(1, 0, 3, 4, 2) * EMBED_DIM**0.5
        losses = []
        for head, level in zip(self.heads, scaled, strict=True):
            parts = head(level).float().split(self._sizes, dim=-1)
            losses += [
                functional.cross_entropy(part.movedim(-1, 1), target[:, row], ignore_index=UNNAMED)
                for row, part in enumerate(parts)
            ]
        return torch.stack(losses).mean()
