"""The three graphs as PyTorch modules, in both splits (refsam-model 12.1, 12.4).

Their inputs and outputs are those of `refsam_trt.contract.refsam.contract`. The optimised split
moves whatever depends on the frame or on the expression alone out of the step. It is exact: a 1x1
convolution of a concatenation is a sum of two linear maps, and a linear map commutes with the
attention average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.key_bias import key_bias
from refsam_export.refsam.attention import with_attention
from refsam_export.refsam.model.config import EMBED_DIM, TEXT_SCALE
from refsam_export.refsam.model.hda import no_features
from refsam_export.refsam.model.mask_decoder import ImageProjections, decode, position_encoding
from refsam_export.refsam.model.refsam import RefSam, zero_absent
from refsam_export.refsam.model.text_encoder import embed_text
from refsam_export.refsam.rewrites import rewritten
from refsam_export.text.graph import text_graph
from refsam_trt.contract.refsam import (
    DECODER_STEP,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    Split,
    contract,
)


class _Shared(nn.Module):
    """The model (weights shared) and what every optimised graph takes from it."""

    pe: Tensor

    def __init__(self, model: RefSam, split: Split) -> None:
        super().__init__()
        self.model, self.split = model, split
        self.register_buffer("pe", position_encoding(model.pe.gaussian, model.config.grid_size))
        self.dense_convs: Any = nn.ModuleList(model.dense_convolutions)
        layer = model.mask_decoder.transformer.layers[0]
        self.to_image = layer.cross_attn_token_to_image
        self.to_token = layer.cross_attn_image_to_token

    def with_projections(self, language: Tensor) -> Tensor:
        """Return [..., 640] of [..., 256]: it, and what layer 0's k, v and q make of it (12.4)."""
        projections = (self.to_image.k_proj, self.to_image.v_proj, self.to_token.q_proj)
        return torch.cat([language, *(language @ p.weight.T for p in projections)], dim=-1)


class ImageEncoderGraph(_Shared):
    """`image` -> the frame-scope tensors."""

    mix_weight: Tensor  # [256, levels * 256, 1, 1]: the image columns P_l of the levels
    mix_bias: Tensor  # [256]: sum of the b_l

    def __init__(
        self, model: RefSam, split: Split, attention: str, rewrites: tuple[str, ...]
    ) -> None:
        super().__init__(model, split)
        self.encoder = with_attention(rewritten(model.image_encoder, rewrites), attention)
        if self.dense_convs:
            weights = [conv.weight[:, :EMBED_DIM] for conv in self.dense_convs]
            self.register_buffer("mix_weight", torch.cat(weights, dim=1))
            self.register_buffer("mix_bias", torch.stack([c.bias for c in self.dense_convs]).sum(0))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode M frames."""
        embedding, features = self.model.encode_image(image, self.encoder)
        maps = (embedding, features) if len(self.dense_convs) > 1 else (embedding,)
        if self.split == "baseline":
            return maps
        base = self._base(embedding, features)
        tokens = base.flatten(2).transpose(1, 2)
        located = tokens + self.pe.flatten(2).transpose(1, 2)
        return (
            *maps,
            base,
            self.to_image.k_proj(located),
            self.to_image.v_proj(tokens),
            self.to_token.q_proj(located),
        )

    def _base(self, embedding: Tensor, features: Tensor) -> Tensor:
        """Return the image embedding plus what of the dense prompt depends on the frame alone."""
        if self.dense_convs:
            levels = torch.cat([*features.unbind(1), embedding], dim=1)
            return embedding + functional.conv2d(levels, self.mix_weight, self.mix_bias)
        if self.model.config.dense_origin:
            return embedding + embedding
        return embedding + self.model.no_mask_embed.weight[..., None, None]


class TextEncoderGraph(_Shared):
    """`input_ids`, `attention_mask` -> the expression-scope tensors."""

    # Two tensors, because `--weight-storage fp16` can hold the first, which are the model's own
    # weights, but not the second, which are products of them.
    language: Tensor  # [levels, 256, 256]: Q_l^T of each level
    projected: Tensor  # [levels, 256, 384]: Q_l^T [Wk^T | Wv^T | Wq^T]

    def __init__(self, model: RefSam, split: Split) -> None:
        super().__init__(model, split)
        self.encoder = text_graph(model.text_encoder, model.config.max_words)
        if self.dense_convs:
            language = torch.stack([c.weight[:, EMBED_DIM:, 0, 0].T for c in self.dense_convs])
            self.register_buffer("language", language)
            self.register_buffer("projected", self.with_projections(language)[..., EMBED_DIM:])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encode B expressions of up to N tokens."""
        mask = attention_mask > 0
        words, sentence = embed_text(
            self.encoder(input_ids, mask),
            mask,
            self.model.resizer,
            self.model.text_l2norm,
        )
        if self.split == "baseline" or not self.dense_convs:
            return words, sentence
        # The sentence row comes first, so that padding stays at the end.
        text = torch.cat([sentence[:, None], words], dim=1)[:, None]
        return words, sentence, torch.cat([text @ self.language, text @ self.projected], dim=-1)


class DecoderStepGraph(_Shared):
    """Frame, expression and video tensors -> masks and the next track tokens."""

    def __init__(self, model: RefSam, split: Split) -> None:
        super().__init__(model, split)
        config = model.config
        spec = contract(config.image_size, config.grid_size, split, hda_levels=config.hda_levels)
        self.names = [tensor.name for tensor in spec[DECODER_STEP].inputs]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode one frame for B expressions; inputs in the order of the contract."""
        tensors = dict(zip(self.names, inputs, strict=True))
        if self.split == "optimised":
            return self._optimised(tensors)
        tensors.setdefault("hda_features", no_features(tensors["image_embedding"]))
        return tuple(self.model.step(**tensors))

    def _optimised(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        word_mask, has_track = tensors["word_mask"], tensors["has_track"]
        words, track_token = zero_absent(
            tensors["words"], word_mask, tensors["track_token"], has_track
        )
        base = tensors["image_base"]
        language = self._language(tensors, words)
        parts = torch.split(language, [EMBED_DIM, *[tensors["image_k0"].shape[-1]] * 3], dim=-1)
        src = base + parts[0].transpose(1, 2).unflatten(-1, base.shape[-2:])
        out = decode(
            self.model.mask_decoder,
            src,
            self.pe,
            self.model.prompts(words, track_token),
            key_bias(torch.cat([has_track[:, None], word_mask], dim=1), words.dtype),
            ImageProjections(
                tensors["image_k0"] + parts[1],
                tensors["image_v0"] + parts[2],
                tensors["image_q0"] + parts[3],
            ),
            mask_select=self.model.config.mask_select,
        )
        token = self.model.next_track_token(out.main_mask_token, track_token, has_track)
        return out.logits, out.iou, token

    def _language(self, tensors: Mapping[str, Tensor], words: Tensor) -> Tensor:
        """Return what the dense prompt takes from the text, and layer 0 from that, [B, h*w, 640].

        sum_l A_l [G_l | G_l Wk^T | ...]: one product over levels and tokens.
        """
        sentence, embedding = tensors["sentence"], tensors["image_embedding"]
        if not self.dense_convs:
            added = sentence if self.model.config.dense_origin else torch.zeros_like(sentence)
            everywhere = self.with_projections(added)[:, None]
            return everywhere.expand(-1, embedding.shape[-1] ** 2, -1)
        levels = (
            [tensors["hda_features"][0], embedding] if "hda_features" in tensors else [embedding]
        )
        text = torch.cat([sentence[:, None], words], dim=1)
        valid = torch.cat(
            [torch.ones_like(tensors["word_mask"][:, :1]), tensors["word_mask"]], dim=1
        )
        pixels = torch.cat(levels).flatten(-2).transpose(-1, -2)[None]  # [1, levels, h*w, 256]
        scores = pixels @ text.transpose(-1, -2)[:, None]
        bias = key_bias(valid, words.dtype)[:, None, None]
        attention = torch.softmax(scores * TEXT_SCALE + bias, dim=-1)  # [B, levels, h*w, N+1]
        return attention.transpose(1, 2).flatten(-2) @ tensors["text_values"].flatten(1, 2)


def build_graphs(
    model: RefSam, split: Split, attention: str, rewrites: tuple[str, ...] = ()
) -> dict[str, nn.Module]:
    """Return the module of each graph; weights are shared with the model.

    Args:
        model: fp32.
        split: what is computed in which graph.
        attention: form of the image encoder's attention (`attention.FORMS`).
        rewrites: passes over its adapter blocks (`rewrites.REWRITES`); none: the plain form.
    """
    return {
        IMAGE_ENCODER: ImageEncoderGraph(model, split, attention, rewrites).eval(),
        TEXT_ENCODER: TextEncoderGraph(model, split).eval(),
        DECODER_STEP: DecoderStepGraph(model, split).eval(),
    }
