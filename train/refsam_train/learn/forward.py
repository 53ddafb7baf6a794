"""A batch of clips through the model, every frame with the track token of the one before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from refsam_export.refsam.model.config import EMBED_DIM
from refsam_export.refsam.model.refsam import RefSam
from refsam_train.data.cells import CellLabels
from refsam_train.data.clips import Batch, MaskGroup
from refsam_train.learn.cells import CellHeads
from refsam_train.learn.losses import dice_loss, focal_loss, mask_iou
from refsam_train.learn.match import Match
from refsam_train.learn.shared_step import FrameSide, TextSide, frame_side, shared_step, text_side
from refsam_train.recipe import Loss


@dataclass(frozen=True)
class ClipResult:
    """What a batch gave. loss: scalar with gradient. The others: means, without gradient.

    cells, shapes: loss (with that of matching sentences) and share of right shapes of the auxiliary
    task of cells; recall: loss of matching track tokens; 0 without it.
    """

    loss: Tensor
    dice: Tensor
    focal: Tensor
    iou: Tensor
    cells: Tensor
    shapes: Tensor
    recall: Tensor


def encode_frames(model: RefSam, batch: Batch, image_encoder: nn.Module | None = None) -> FrameSide:
    """Return the frame side of all frames, frame by frame: T * C of them."""
    return frame_side(model, *model.encode_image(batch.images.flatten(0, 1), image_encoder))


def encode_texts(model: RefSam, batch: Batch) -> TextSide:
    """Return the text side of all expressions."""
    words, sentence = model.encode_text(batch.input_ids, batch.attention_mask)
    return text_side(model, words, batch.attention_mask.bool(), sentence)


def follow(
    model: RefSam,
    batch: Batch,
    frames: FrameSide,
    text: TextSide,
    later_text: TextSide | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode all frames and expressions, each frame with the track tokens of the one before.

    Gradient flows from every frame back through the track tokens to the frames before it.

    Args:
        model: the reference.
        batch: clips.
        frames: from `encode_frames`.
        text: from `encode_texts`.
        later_text: what is heard after the first frame; None means the same.

    Returns:
        low-resolution logits, float32 [T, E, 4h, 4w], and the track tokens that every frame gives,
        [T, E, 256].
    """
    num_frames, num_clips = batch.images.shape[:2]
    track = text.words.new_zeros(len(text.words), EMBED_DIM)
    has_track = torch.zeros(len(track), dtype=torch.bool, device=track.device)
    logits, tracks = [], []
    for frame in range(num_frames):
        frame_of = frame * num_clips + batch.clip_of
        low_res, main_mask_token = shared_step(model, frames, frame_of, text, track, has_track)
        logits.append(low_res.float())
        track = model.next_track_token(main_mask_token, track, has_track)
        tracks.append(track)
        if later_text is not None:
            text = later_text
        has_track = torch.ones_like(has_track)
    return torch.stack(logits), torch.stack(tracks)


def muted_text(text: TextSide, muted: Tensor) -> TextSide:
    """Return the text side without a word, nor a sentence, of the muted expressions, bool [E]."""
    heard = (~muted)[:, None]
    return TextSide(
        text.words * heard[..., None],
        text.word_mask & heard,
        text.text * heard[..., None],
        text.values * heard[..., None, None],
    )


def misled_text(text: TextSide, misled: Tensor, clip_of: Tensor, object_of: Tensor) -> TextSide:
    """Return the text side in which those misled, bool [E], hear what their next sibling should.

    Siblings are expressions of the same clip, clip_of, int64 [E], and of another object, object_of,
    int64 [E]; the first one follows the last. Who has no sibling is not misled.
    """
    rows = torch.arange(len(clip_of), device=clip_of.device)
    sibling = (clip_of == clip_of[:, None]) & (object_of != object_of[:, None])
    steps = (rows - rows[:, None]) % len(rows)  # from each row on to every other
    nearest = steps.masked_fill(~sibling, len(rows)).argmin(dim=1)
    heard = torch.where(misled & sibling.any(dim=1), nearest, rows)
    return TextSide(*(part[heard] for part in text))


def image_logits(logits: Tensor, image_size: int, group: MaskGroup) -> Tensor:
    """Return logits [T, e, 4h, 4w] at the size of the masks (refsam-model 2.3, steps 1 to 3)."""
    logits = functional.interpolate(
        logits, (image_size, image_size), mode="bilinear", align_corners=False
    )
    height, width = group.resized_hw
    size_hw = group.masks.shape[-2:]
    if size_hw == (height, width) == (image_size, image_size):
        return logits
    return functional.interpolate(
        logits[..., :height, :width], size_hw, mode="bilinear", align_corners=False
    )


def low_res_masks(group: MaskGroup, image_size: int, side: int) -> Tensor:
    """Return the group's masks as the decoder sees them: resized, padded, averaged to `side`."""
    height, width = group.resized_hw
    masks = group.masks.float()
    if masks.shape[-2:] != (height, width):
        masks = functional.interpolate(masks, (height, width), mode="bilinear", antialias=True)
    masks = functional.pad(masks, (0, image_size - width, 0, image_size - height))
    return functional.avg_pool2d(masks, image_size // side)


def _rows_and_masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return all rows, group by group, and their masks, float32 [T, E, H, W]: of one size here."""
    order = torch.cat([group.rows for group in batch.groups])
    return order, torch.cat([group.masks for group in batch.groups], dim=1).float()


class ClipTraining(nn.Module):
    """Model and loss as one module, which is what the distributed wrapper needs."""

    def __init__(
        self,
        model: RefSam,
        loss: Loss,
        *,
        bf16: bool,
        image_encoder: nn.Module | None = None,
        muted_share: float = 0.0,
        misled_share: float = 0.0,
    ) -> None:
        super().__init__()
        self._muted_share, self._misled_share = muted_share, misled_share
        self.model = model
        self.cell_heads = CellHeads(model.config.hda_levels) if loss.cells else None
        self.match = Match() if loss.cells else None
        self.recall = Match() if loss.recall else None
        self._loss = loss
        self._bf16 = bf16
        self._image_encoder = image_encoder

    def forward(self, batch: Batch) -> ClipResult:
        """Return the loss averaged over all frames and expressions."""
        device = batch.images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            frames = encode_frames(self.model, batch, self._image_encoder)
            text = encode_texts(self.model, batch)
            cells, shapes = self._cell_loss(frames, text, batch)
            if self._loss.decoded:
                rows = batch.first_rows(self._loss.decoded)
                batch, text = batch.with_rows(rows), TextSide(*(part[rows] for part in text))
            logits, tracks = follow(self.model, batch, frames, text, self._later_text(text, batch))
            recall = self._recall_loss(frames, tracks, batch)
        terms = torch.stack([self._terms(logits[:, g.rows], g) for g in batch.groups]).sum(0)
        dice, focal, iou = terms / batch.num_targets
        loss = self._loss.dice * dice + self._loss.focal * focal
        loss = loss + self._loss.cells * cells + self._loss.recall * recall
        return ClipResult(loss, *(x.detach() for x in (dice, focal, iou, cells, shapes, recall)))

    def _later_text(self, text: TextSide, batch: Batch) -> TextSide:
        """Return what is heard after the first frame: some are muted, others misled."""
        draw = torch.rand(len(text.words), device=text.words.device)
        misled = (draw >= self._muted_share) & (draw < self._muted_share + self._misled_share)
        return muted_text(
            misled_text(text, misled, batch.clip_of, batch.object_of),
            draw < self._muted_share,
        )

    def _cell_loss(self, frames: FrameSide, text: TextSide, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.cell_heads is None or self.match is None or batch.cells is None:
            none = torch.zeros((), device=batch.images.device)
            return none, none
        labels = CellLabels(*(part.flatten(0, 1) for part in batch.cells))
        loss, shapes = self.cell_heads(frames.levels, labels)
        # Only the first frame: of some expressions the later ones tell nothing.
        order, masks = _rows_and_masks(batch)
        embedding = frames.levels[batch.clip_of[order], -1]
        return loss + self.match(embedding, text.text[order, -1], masks[0]), shapes

    def _recall_loss(self, frames: FrameSide, tracks: Tensor, batch: Batch) -> Tensor:
        """Return how badly track tokens tell their objects in the frames after theirs."""
        num_frames, num_clips = batch.images.shape[:2]
        if self.recall is None or num_frames == 1:
            return torch.zeros((), device=batch.images.device)
        order, masks = _rows_and_masks(batch)
        later = torch.arange(1, num_frames, device=order.device)[:, None] * num_clips
        embedding = frames.levels[(later + batch.clip_of[order]).flatten(), -1]
        tokens = tracks[:-1, order].flatten(0, 1)
        return self.recall(embedding, tokens, masks[1:].flatten(0, 1))  # type: ignore[no-any-return]

    def _terms(self, logits: Tensor, group: MaskGroup) -> Tensor:
        image_size = self.model.config.image_size
        if self._loss.resolution == "image":
            target = group.masks.to(logits.dtype)
            logits = image_logits(logits, image_size, group)
        else:
            target = low_res_masks(group, image_size, logits.shape[-1])
        terms = (dice_loss(logits, target), focal_loss(logits, target), mask_iou(logits, target))
        return torch.stack([term.sum() for term in terms])
