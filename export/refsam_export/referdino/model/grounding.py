"""The grounding transformer: encoder, choice of queries, decoder that halves them (4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from refsam_export.key_bias import key_bias
from refsam_export.referdino.model.attention import DecoderLayer
from refsam_export.referdino.model.boxes import (
    TEXT_TEMPERATURE,
    LevelSizes,
    Mlp,
    box_code,
    cell_centres,
    image_positions,
    inverse_sigmoid,
    proposals,
    sine,
)
from refsam_export.referdino.model.config import NUM_LEVELS, ModelConfig
from refsam_export.referdino.model.cross_modal import Encoder

NO_SCORE = -1e9
"""Below every score: of padding, and of the entries that fill up a small picture."""


class Grounded(NamedTuple):
    """What the transformer makes of one frame and B expressions.

    Attributes:
        hs: [B, slots, d], embeddings of the objects.
        reference: [B, slots, 4], their boxes before the last refinement.
        memory: [B, S, d], the cells of all levels.
        text_mem: [B, N, d].
        selected_ids: int64 [B, queries + kept of each layer]: the cells of the proposals in the
            order of their scores, then what each layer kept, as positions among its queries.
    """

    hs: Tensor
    reference: Tensor
    memory: Tensor
    text_mem: Tensor
    selected_ids: Tensor


def class_score(x: Tensor, text_mem: Tensor, token_mask: Tensor) -> Tensor:
    """Return the largest product with a token (4.5); special tokens count, padding does not.

    Args:
        x: [B, Q, d].
        text_mem: [B, N, d].
        token_mask: bool [B or 1, N].

    Returns:
        [B, Q]; its sigmoid is a probability.
    """
    scores = x @ text_mem.mT
    scores = torch.where(token_mask[:, None], scores, torch.full_like(scores, NO_SCORE))
    return scores.amax(dim=-1)


def pruning_score(attention: Tensor, score: Tensor) -> Tensor:
    """Return how much each query matters, [B, Q]: looked at by others, and fitting the text (4.6).

    Args:
        attention: weights of the self-attention [B, heads, Q, Q].
        score: class scores [B, Q].
    """
    attention = attention.mean(dim=1)
    others = 1 - torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    received = (attention * others).sum(dim=-2)
    return (received.softmax(dim=-1) + score.softmax(dim=-1)) / 2


def gather_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Return rows [B, K, C] of x [B, Q, C] by ids [B, K]."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


class Decoder(nn.Module):
    """The decoder's modules; `bbox_embed` has one entry, whatever the depth: all are tied."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = width = config.width
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.num_heads, NUM_LEVELS, config.num_points, config.ffn_dim)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.ref_point_head = Mlp(2 * width, width, width)
        self.bbox_embed = nn.ModuleList([Mlp(width, width, width, 4)])

    def box_positions(self, boxes: Tensor) -> Tensor:
        """Return the position codes [..., d] of boxes [..., 4]."""
        position: Tensor = self.ref_point_head(box_code(boxes, self.width))
        return position

    def refined(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes [..., 4] that embeddings [..., d] move boxes to."""
        moved: Tensor = self.bbox_embed[0](x) + inverse_sigmoid(boxes)
        return moved.sigmoid()


class Transformer(nn.Module):
    """Everything between the projected maps and the objects of a frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_queries, self.num_kept = config.num_queries, config.num_kept
        self.level_embed = nn.Parameter(torch.zeros(NUM_LEVELS, width))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.tgt_embed = nn.Embedding(config.num_queries, width)
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.enc_out_bbox_embed = Mlp(width, width, width, 4)

    def forward(
        self,
        src: Tensor,
        sizes: LevelSizes,
        text_embed: Tensor,
        position_ids: Tensor,
        text_self_mask: Tensor,
        token_mask: Tensor,
        selection: Tensor | None = None,
    ) -> Grounded:
        """Ground B expressions in a frame, or each in a frame of its own.

        Args:
            src: [B or 1, S, d], the cells of all levels.
            sizes: of the levels.
            text_embed: [B or 1, N, d].
            position_ids: int64 [B or 1, N].
            text_self_mask: bool [B or 1, N, N].
            token_mask: bool [B or 1, N].
            selection: `selected_ids` of another run, to be taken instead of the best; None takes
                the best. Rounding alone can exchange neighbours (12.2).
        """
        memory, text_mem = self.encoder(
            src,
            image_positions(sizes, self.level_embed),
            cell_centres(sizes, src)[None],
            sizes,
            text_embed,
            sine(position_ids.to(src.dtype), src.shape[-1], TEXT_TEMPERATURE),
            text_self_mask,
            token_mask,
        )
        forced = self._split(selection)
        ids, reference = self._choose(memory, text_mem, token_mask, sizes, forced[0])
        selected = [ids]
        x = self.tgt_embed.weight.expand(ids.shape[0], -1, -1)
        bias = key_bias(token_mask, src.dtype)[:, None, None]
        for layer, count, forced_ids in zip(
            self.decoder.layers, self.num_kept, forced[1:], strict=True
        ):
            if len(selected) > 1:
                reference = self.decoder.refined(x, reference)
            position = self.decoder.box_positions(reference)
            x, attention = layer(x, position, reference, text_mem, bias, memory, sizes)
            score = pruning_score(attention, class_score(x, text_mem, token_mask))
            ids = score.topk(count).indices if forced_ids is None else forced_ids
            selected.append(ids)
            x, reference = gather_rows(x, ids), gather_rows(reference, ids)
        hs: Tensor = self.decoder.norm(x)
        return Grounded(hs, reference, memory, text_mem, torch.cat(selected, dim=1))

    def _split(self, selection: Tensor | None) -> list[Tensor | None]:
        counts = [self.num_queries, *self.num_kept]
        return [None] * len(counts) if selection is None else list(selection.split(counts, dim=1))

    def _choose(
        self,
        memory: Tensor,
        text_mem: Tensor,
        token_mask: Tensor,
        sizes: LevelSizes,
        forced: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cells that become queries, best first, and their boxes [B, queries, 4]."""
        logits, valid = proposals(sizes, memory)
        x = self.enc_output_norm(self.enc_output(memory * valid))
        ids = forced
        if ids is None:
            score = class_score(x, text_mem, token_mask)
            # So that an export need not know that there are as many cells as queries. The caller
            # sees to it that there are.
            fill = torch.full_like(score[:, :1], NO_SCORE).expand(-1, self.num_queries)
            ids = torch.cat((score, fill), dim=1).topk(self.num_queries).indices
        boxes = self.enc_out_bbox_embed(gather_rows(x, ids)) + logits[ids]
        return ids, boxes.sigmoid()
