"""RefSAM, the PyTorch reference (refsam-model sections 3 to 7).

The configuration says which form of each part is built: the paper's by default.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refsam_export.key_bias import key_bias
from refsam_export.refsam.model.config import EMBED_DIM, ModelConfig
from refsam_export.refsam.model.hda import (
    dense_attention,
    dense_convolution,
    no_features,
)
from refsam_export.refsam.model.image_encoder import ImageEncoder, L2Norm
from refsam_export.refsam.model.itm import ITM_NAMES, TemporalAggregationNetwork, TrackTokenMlp
from refsam_export.refsam.model.mask_decoder import (
    DecoderOutput,
    decode,
    position_encoding,
    sam_mask_decoder,
)
from refsam_export.refsam.model.text_encoder import cross_modal_mlp, embed_text


class StepOutput(NamedTuple):
    """What one frame gives for B expressions."""

    low_res_logits: Tensor  # [B, 1, 4h, 4w]
    iou: Tensor  # [B, 1], SAM's raw score of that mask, uncalibrated (6.6)
    next_track_token: Tensor  # [B, 256]


class PositionEncoding(nn.Module):
    """Holder of SAM's random Fourier matrix, canonical key `pe.gaussian`."""

    gaussian: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gaussian", torch.randn(2, EMBED_DIM // 2))


class RefSam(nn.Module):
    """The whole model. `text_encoder` is a Hugging Face encoder or None when text is not needed.

    The state dictionary without `text_encoder.` has the canonical keys of refsam-model 8.5.
    """

    def __init__(self, config: ModelConfig, text_encoder: Any, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.text_width = text_width
        self.image_encoder = ImageEncoder(config)
        self.mask_decoder: Any = sam_mask_decoder(config.decoder_mlp_dim)
        self.pe = PositionEncoding()
        self.l2norm = L2Norm()
        self.resizer = cross_modal_mlp(text_width, config.resizer_hidden)
        self.fpn_conv = nn.ModuleList(
            nn.Conv2d(config.width, EMBED_DIM, 1) for _ in config.intermediate_blocks
        )
        self.dense_conv2 = nn.ModuleList(dense_convolution() for _ in self.fpn_conv)
        if config.hda_levels:
            self.dense_conv = dense_convolution()
        elif not config.dense_origin:
            self.no_mask_embed = nn.Embedding(1, EMBED_DIM)
        itm = TrackTokenMlp if config.itm == "ffn" else TemporalAggregationNetwork
        self.add_module(ITM_NAMES[config.itm], itm(config.itm_dim))
        self.text_encoder = text_encoder
        self.eval()
        self.requires_grad_(False)

    @property
    def dense_convolutions(self) -> list[nn.Conv2d]:
        """Convolutions of Dense Attention in the order of `hda_features`, then of F_4."""
        return [*self.dense_conv2, self.dense_conv] if self.config.hda_levels else []

    @property
    def text_l2norm(self) -> L2Norm | None:
        """What brings words and sentence to unit length, None if nothing does."""
        return self.l2norm if self.config.l2norm_text else None

    def encode_image(
        self, image: Tensor, encoder: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode frames: the frame scope of the baseline split (12.1).

        Args:
            image: [M, 3, S, S].
            encoder: a rewritten but equal image encoder; None uses SAM's own form.

        Returns:
            image_embedding [M, 256, h, w] (F_4) and hda_features [M, 3, 256, h, w] (F_1 to F_3), or
            [M, 0, 256, h, w] where Dense Attention has no level but the last.
        """
        embedding, maps = (encoder or self.image_encoder)(image)
        if self.config.l2norm_image:
            embedding = self.l2norm(embedding, 1)
        reduced = [conv(x.permute(0, 3, 1, 2)) for conv, x in zip(self.fpn_conv, maps, strict=True)]
        if not reduced:
            return embedding, no_features(embedding)
        features = torch.stack(reduced, dim=1)
        if self.config.l2norm_intermediate:
            features = self.l2norm(features, 2)
        return embedding, features

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode expressions: int64 [B, N] twice -> words [B, N, 256], sentence [B, 256]."""
        hidden = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask)
        return embed_text(
            hidden.last_hidden_state,
            attention_mask.bool(),
            self.resizer,
            self.text_l2norm,
        )

    def dense_prompt(
        self,
        image_embedding: Tensor,
        hda_features: Tensor,
        words: Tensor,
        word_mask: Tensor,
        sentence: Tensor,
    ) -> Tensor:
        """Sum Dense Attention over the levels (5.1) -> [B, 256, h, w]."""
        if not self.config.hda_levels:
            return self._dense_without_attention(image_embedding, sentence)
        text = torch.cat([words, sentence[:, None]], dim=1)
        valid = torch.cat([word_mask, torch.ones_like(word_mask[:, :1])], dim=1)
        bias = key_bias(valid, words.dtype)
        dense = dense_attention(image_embedding, text, bias, self.dense_conv)
        for level, conv in enumerate(self.dense_conv2):
            dense = dense + dense_attention(hda_features[:, level], text, bias, conv)
        return dense

    def _dense_without_attention(self, image_embedding: Tensor, sentence: Tensor) -> Tensor:
        """Return the dense prompt of the ablations of 5.1, [B, 256, h, w]."""
        if self.config.dense_origin:
            return image_embedding + sentence[..., None, None]
        no_mask = self.no_mask_embed.weight[..., None, None]
        return no_mask.expand(len(sentence), -1, *image_embedding.shape[-2:])

    def prompts(self, words: Tensor, track_token: Tensor) -> Tensor:
        """Return the prompt tokens [B, 1 + N, 256] of words [B, N, 256] and track token [B, 256].

        Absent ones are zero already.
        """
        if not self.config.word_tokens:
            words = torch.zeros_like(words)
        return torch.cat([track_token[:, None], words], dim=1)

    def next_track_token(
        self, main_mask_token: Tensor, track_token: Tensor, has_track: Tensor
    ) -> Tensor:
        """Return the next track token [B, 256] (section 7).

        Args:
            main_mask_token: E_m, [B, 256].
            track_token: the one of the previous frame, [B, 256], ignored where not `has_track`.
            has_track: bool [B].
        """
        itm: Any = getattr(self, ITM_NAMES[self.config.itm])
        if self.config.itm == "ffn":
            return itm(main_mask_token)  # type: ignore[no-any-return]
        zero = torch.zeros((), dtype=track_token.dtype, device=track_token.device)
        return itm(  # type: ignore[no-any-return]
            main_mask_token, torch.where(has_track[:, None], track_token, zero)
        )

    def decode(
        self,
        image_embedding: Tensor,
        hda_features: Tensor,
        words: Tensor,
        word_mask: Tensor,
        sentence: Tensor,
        track_token: Tensor,
        has_track: Tensor,
    ) -> DecoderOutput:
        """Decode one frame for B expressions; the arguments are those of `step`."""
        words, track_token = zero_absent(words, word_mask, track_token, has_track)
        dense = self.dense_prompt(image_embedding, hda_features, words, word_mask, sentence)
        valid = torch.cat([has_track[:, None], word_mask], dim=1)
        return decode(
            self.mask_decoder,
            image_embedding + dense,
            position_encoding(self.pe.gaussian, image_embedding.shape[-1]),
            self.prompts(words, track_token),
            key_bias(valid, words.dtype),
            mask_select=self.config.mask_select,
        )

    def step(
        self,
        image_embedding: Tensor,
        hda_features: Tensor,
        words: Tensor,
        word_mask: Tensor,
        sentence: Tensor,
        track_token: Tensor,
        has_track: Tensor,
    ) -> StepOutput:
        """Decode one frame and make the next track tokens (12.1, `decoder_step`).

        Args:
            image_embedding: [1, 256, h, w].
            hda_features: [1, 3, 256, h, w], or with no level as `encode_image` gives it.
            words: [B, N, 256].
            word_mask: bool [B, N], true for tokens.
            sentence: [B, 256].
            track_token: [B, 256], ignored where not `has_track`.
            has_track: bool [B].
        """
        out = self.decode(
            image_embedding, hda_features, words, word_mask, sentence, track_token, has_track
        )
        token = self.next_track_token(out.main_mask_token, track_token, has_track)
        return StepOutput(out.logits, out.iou, token)


def zero_absent(
    words: Tensor, word_mask: Tensor, track_token: Tensor, has_track: Tensor
) -> tuple[Tensor, Tensor]:
    """Zero pad words and absent track tokens: the bias alone would not stop large values (12.2)."""
    zero = torch.zeros((), dtype=words.dtype, device=words.device)
    return (
        torch.where(word_mask[..., None], words, zero),
        torch.where(has_track[:, None], track_token, zero),
    )
