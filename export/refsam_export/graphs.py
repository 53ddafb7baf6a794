"""The three graphs as PyTorch modules, in both splits (refsam-model 12.1, 12.4).

Their inputs and outputs are those of `refsam_trt.families.refsam.contract`. The optimised split
moves whatever depends on the frame or on the expression alone out of the step. It is exact: a 1x1
convolution of a concatenation is a sum of two linear maps, and a linear map commutes with the
attention average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.attention import with_attention
from refsam_export.model.config import EMBED_DIM, TEXT_SCALE
from refsam_export.model.hda import key_bias
from refsam_export.model.mask_decoder import ImageProjections, decode, position_encoding
from refsam_export.model.refsam import RefSam, zero_absent
from refsam_export.model.text_encoder import embed_text
from refsam_export.text_graph import T5Graph
from refsam_trt.families.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, Split


class _Shared(nn.Module):
    """The model (weights shared) and what every optimised graph takes from it."""

    pe: Tensor

    def __init__(self, model: RefSam, split: Split) -> None:
        super().__init__()
        self.model, self.split = model, split
        self.register_buffer("pe", position_encoding(model.pe.gaussian, model.config.grid_size))
        # F_1..F_3 use `dense_conv2`, F_4 `dense_conv`: the order of `hda_features`, then F_4.
        self.dense_convs: Any = nn.ModuleList([*model.dense_conv2, model.dense_conv])
        layer = model.mask_decoder.transformer.layers[0]
        self.to_image = layer.cross_attn_token_to_image
        self.to_token = layer.cross_attn_image_to_token


class ImageEncoderGraph(_Shared):
    """`image` -> the frame-scope tensors."""

    mix_weight: Tensor  # [256, 4 * 256, 1, 1]: the image columns P_l of the four levels
    mix_bias: Tensor  # [256]: sum of the b_l

    def __init__(self, model: RefSam, split: Split, attention: str) -> None:
        super().__init__(model, split)
        self.encoder = with_attention(model.image_encoder, attention)
        weights = [conv.weight[:, :EMBED_DIM] for conv in self.dense_convs]
        self.register_buffer("mix_weight", torch.cat(weights, dim=1))
        self.register_buffer("mix_bias", torch.stack([c.bias for c in self.dense_convs]).sum(0))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode M frames."""
        embedding, features = self.model.encode_image(image, self.encoder)
        if self.split == "baseline":
            return embedding, features
        levels = torch.cat([features.flatten(1, 2), embedding], dim=1)
        base = embedding + functional.conv2d(levels, self.mix_weight, self.mix_bias)
        tokens = base.flatten(2).transpose(1, 2)
        located = tokens + self.pe.flatten(2).transpose(1, 2)
        return (
            embedding,
            features,
            base,
            self.to_image.k_proj(located),
            self.to_image.v_proj(tokens),
            self.to_token.q_proj(located),
        )


class TextEncoderGraph(_Shared):
    """`input_ids`, `attention_mask` -> the expression-scope tensors."""

    values: Tensor  # [4, 256, 640]: Q_l^T [1 | Wk^T | Wv^T | Wq^T] of each level

    def __init__(self, model: RefSam, split: Split) -> None:
        super().__init__(model, split)
        self.encoder = T5Graph(model.text_encoder, model.config.max_words)
        language = torch.stack([c.weight[:, EMBED_DIM:, 0, 0].T for c in self.dense_convs])
        projections = (self.to_image.k_proj, self.to_image.v_proj, self.to_token.q_proj)
        values = [language, *(language @ projection.weight.T for projection in projections)]
        self.register_buffer("values", torch.cat(values, dim=-1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encode B expressions of up to N tokens."""
        mask = attention_mask > 0
        words, sentence = embed_text(
            self.encoder(input_ids, mask),
            mask,
            self.model.resizer,
            l2norm=self.model.config.l2norm_text,
        )
        if self.split == "baseline":
            return words, sentence
        # The sentence row comes first, so that padding stays at the end.
        text = torch.cat([sentence[:, None], words], dim=1)
        return words, sentence, text[:, None] @ self.values


class DecoderStepGraph(_Shared):
    """Frame, expression and video tensors -> masks and the next track tokens."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode one frame for B expressions; inputs in the order of the contract."""
        if self.split == "baseline":
            embedding, features, words, sentence, word_mask, track_token, has_track = inputs
            return tuple(
                self.model.step(
                    embedding, features, words, word_mask, sentence, track_token, has_track
                )
            )
        return self._optimised(*inputs)

    def _optimised(
        self,
        image_embedding: Tensor,
        hda_features: Tensor,
        image_base: Tensor,
        image_k0: Tensor,
        image_v0: Tensor,
        image_q0: Tensor,
        words: Tensor,
        sentence: Tensor,
        text_values: Tensor,
        word_mask: Tensor,
        track_token: Tensor,
        has_track: Tensor,
    ) -> tuple[Tensor, ...]:
        words, track_token = zero_absent(words, word_mask, track_token, has_track)
        language = self._language(
            torch.cat([hda_features[0], image_embedding]), words, word_mask, sentence, text_values
        )
        parts = torch.split(language, [EMBED_DIM, *[image_k0.shape[-1]] * 3], dim=-1)
        src = image_base + parts[0].transpose(1, 2).unflatten(-1, image_base.shape[-2:])
        projections = ImageProjections(
            image_k0 + parts[1], image_v0 + parts[2], image_q0 + parts[3]
        )
        valid = torch.cat([has_track[:, None], word_mask], dim=1)
        out = decode(
            self.model.mask_decoder,
            src,
            self.pe,
            torch.cat([track_token[:, None], words], dim=1),
            key_bias(valid, words.dtype),
            projections,
        )
        return out.logits, out.iou, self.model.track_token_mlp(out.main_mask_token)

    @staticmethod
    def _language(
        features: Tensor, words: Tensor, word_mask: Tensor, sentence: Tensor, text_values: Tensor
    ) -> Tensor:
        """Return sum_l A_l [G_l | G_l Wk^T | ...]: one product over levels and tokens."""
        text = torch.cat([sentence[:, None], words], dim=1)
        valid = torch.cat([torch.ones_like(word_mask[:, :1]), word_mask], dim=1)
        pixels = features.flatten(-2).transpose(-1, -2)[None]  # [1, 4, h*w, 256]
        scores = pixels @ text.transpose(-1, -2)[:, None]
        bias = key_bias(valid, words.dtype)[:, None, None]
        attention = torch.softmax(scores * TEXT_SCALE + bias, dim=-1)  # [B, 4, h*w, N+1]
        return attention.transpose(1, 2).flatten(-2) @ text_values.flatten(1, 2)


def build_graphs(model: RefSam, split: Split, attention: str) -> dict[str, nn.Module]:
    """Return the module of each graph; weights are shared with the model."""
    return {
        IMAGE_ENCODER: ImageEncoderGraph(model, split, attention).eval(),
        TEXT_ENCODER: TextEncoderGraph(model, split).eval(),
        DECODER_STEP: DecoderStepGraph(model, split).eval(),
    }
