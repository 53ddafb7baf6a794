"""ReferDINO on official keys, with one method for each of its five graphs (referdino-model 9.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from refsam_export.referdino.model.config import NUM_LEVELS, ModelConfig
from refsam_export.referdino.model.grounding import Transformer, class_score
from refsam_export.referdino.model.image_encoder import Swin
from refsam_export.referdino.model.mask_head import MaskBlocks, PixelDecoder
from refsam_export.referdino.model.temporal import TemporalDecoder
from refsam_export.referdino.model.text_encoder import Bert

_PROJECTION_GROUPS = 32


class ImageMaps(NamedTuple):
    """What a frame gives to all expressions; maps are channel last, [M, h, w, C].

    Attributes:
        src8: stride 8, d channels.
        src16: stride 16.
        src32: stride 32.
        src64: stride 64.
        skip4: stride 4, d / 8 channels.
    """

    src8: Tensor
    src16: Tensor
    src32: Tensor
    src64: Tensor
    skip4: Tensor


class Grounding(NamedTuple):
    """What a frame and B expressions give.

    Attributes:
        hs: [B, slots, d], embeddings of the objects.
        ref: [B, slots, 4], their boxes (cx, cy, w, h), before the last refinement.
        text_mem: [B, N, d], the text as this frame sees it.
        x16: [B, d / 16, H4, W4], from which masks are made.
        selected_ids: int64 [B, queries + kept of each layer], see `Grounded`.
    """

    hs: Tensor
    ref: Tensor
    text_mem: Tensor
    x16: Tensor
    selected_ids: Tensor


class Enhanced(NamedTuple):
    """What an expression gives over all frames of a clip.

    Attributes:
        hs_v: [T, slots, d].
        score: [T, slots], probabilities.
        box: [T, slots, 4], (cx, cy, w, h), relative to the frame.
    """

    hs_v: Tensor
    score: Tensor
    box: Tensor


class ReferDino(nn.Module):
    """All parts of the model. Tied modules exist once: `transformer.decoder.*` has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.ModuleList([Swin(config)])
        channels = config.swin_channels
        last = nn.Conv2d(channels[-1], config.width, 3, stride=2, padding=1)
        convolutions = [*(nn.Conv2d(c, config.width, 1) for c in channels[1:]), last]
        self.input_proj = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(_PROJECTION_GROUPS, config.width))
            for convolution in convolutions
        )
        self.bert = Bert(config)
        self.feat_map = nn.Linear(config.bert_width, config.width)
        self.transformer = Transformer(config)
        self.pixel_decoder = PixelDecoder(config)
        self.mask_decoder = MaskBlocks(config)
        self.temporal_decoder = nn.ModuleList([TemporalDecoder(config)])

    def encode_text(self, input_ids: Tensor, position_ids: Tensor, self_mask: Tensor) -> Tensor:
        """Encode expressions.

        Args:
            input_ids: int64 [B, N].
            position_ids: int64 [B, N].
            self_mask: `text_self_mask`, bool [B, N, N].

        Returns:
            `text_embed` [B, N, d].
        """
        text: Tensor = self.feat_map(self.bert(input_ids, position_ids, self_mask))
        return text

    def encode_image(self, image: Tensor) -> ImageMaps:
        """Encode normalised frames [M, 3, H, W]; nothing here depends on an expression."""
        stages = [stage.permute(0, 3, 1, 2) for stage in self.backbone[0](image)]
        inputs = [*stages[1:], stages[-1]]  # stride 64 is made of stride 32
        maps = [project(x) for project, x in zip(self.input_proj, inputs, strict=True)]
        maps.append(self.pixel_decoder.adapter3(stages[0]))
        return ImageMaps(*(x.permute(0, 2, 3, 1) for x in maps))

    def ground(
        self,
        maps: ImageMaps,
        text_embed: Tensor,
        position_ids: Tensor,
        text_self_mask: Tensor,
        token_mask: Tensor,
        selection: Tensor | None = None,
    ) -> Grounding:
        """Find the objects of one frame that B expressions may mean.

        Args:
            maps: of one frame, or of B frames.
            text_embed: [B, N, d].
            position_ids: int64 [B, N].
            text_self_mask: bool [B, N, N].
            token_mask: bool [B, N], false for padding.
            selection: `selected_ids` to take instead of the best; None takes the best.
        """
        levels = maps[:NUM_LEVELS]
        sizes = [(level.shape[1], level.shape[2]) for level in levels]
        src = torch.cat([level.flatten(1, 2) for level in levels], dim=1)
        hs, ref, memory, text_mem, selected_ids = self.transformer(
            src, sizes, text_embed, position_ids, text_self_mask, token_mask, selection
        )
        cells = memory.split([height * width for height, width in sizes], dim=1)
        m8, m16, m32 = (
            cell.mT.unflatten(-1, size) for cell, size in zip(cells[:3], sizes[:3], strict=True)
        )
        x16 = self.pixel_decoder(m8, m16, m32, maps.skip4.permute(0, 3, 1, 2))
        return Grounding(hs, ref, text_mem, x16, selected_ids)

    def enhance(
        self, hs_tracked: Tensor, ref_tracked: Tensor, text_mem: Tensor, token_mask: Tensor
    ) -> Enhanced:
        """Look at the objects of one expression in all frames together.

        Args:
            hs_tracked: [T, slots, d], in the order of the tracker's slots.
            ref_tracked: [T, slots, 4], likewise.
            text_mem: [T, N, d].
            token_mask: bool [1, N].
        """
        hs_v = hs_tracked
        if self.config.temporal:
            hs_v = self.temporal_decoder[0](hs_tracked, text_mem[:, 0])
        score = class_score(hs_v, text_mem, token_mask).sigmoid()
        return Enhanced(hs_v, score, self.transformer.decoder.refined(hs_v, ref_tracked))

    def masks(
        self, hs_v: Tensor, ref_tracked: Tensor, text_mem: Tensor, token_mask: Tensor, x16: Tensor
    ) -> Tensor:
        """Compute the masks of all slots, each frame alone.

        Args:
            hs_v: [B, slots, d]; B counts frames here.
            ref_tracked: [B, slots, 4].
            text_mem: [B, N, d].
            token_mask: bool [B or 1, N].
            x16: [B, d / 16, H4, W4].

        Returns:
            `mask_logits` [B, slots, H4, W4].
        """
        mask_map = self.pixel_decoder.out_lay(x16)
        position = self.transformer.decoder.box_positions(ref_tracked)
        x = self.mask_decoder(hs_v, position, ref_tracked, text_mem, token_mask, mask_map)
        logits: Tensor = (x @ mask_map.flatten(2)).unflatten(-1, mask_map.shape[2:])
        return logits
