"""What training samples are, and how they become batches of network inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from refsam_export.refsam.model.config import ModelConfig
from refsam_train.data.cells import CellLabels, Shown, cell_labels
from refsam_trt.errors import DatasetError
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.text.tokenizer import tidied


@dataclass(frozen=True)
class Clip:
    """One sample, wholly in memory.

    frames: uint8 [T, H, W, 3], RGB. masks: bool [E, T, H, W]. texts: one per expression. name:
    where it came from, for messages. shown: what the frames show; None where nobody knows.
    """

    frames: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    texts: tuple[str, ...]
    name: str
    shown: Shown | None = None


class ClipSource(Protocol):
    """Makes samples; the same key always gives the same sample, in every process."""

    def clip(self, key: tuple[int, ...], num_frames: int) -> Clip:
        """Return the sample that belongs to this key of non-negative numbers."""
        ...


@dataclass(frozen=True)
class MaskGroup:
    """Expressions whose images have one size.

    rows: int64 [e], which expressions of the batch. masks: uint8 [T, e, H, W], 0 or 1. resized_hw:
    the part of the network input that the image fills, from the top left corner.
    """

    rows: Tensor
    masks: Tensor
    resized_hw: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Clips of equal length, ready for the model.

    images: float32 [T, C, 3, S, S], normalised and padded. input_ids, attention_mask: int64 [E, N].
    clip_of: int64 [E], which clip an expression speaks of, ascending. object_of: int64 [E], equal
    for expressions of the same masks. groups: the masks. cells: labels with the leading axes T and
    C if every clip has them, else None.
    """

    images: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    clip_of: Tensor
    object_of: Tensor
    groups: tuple[MaskGroup, ...]
    cells: CellLabels | None = None

    @property
    def num_targets(self) -> int:
        """Number of masks: frames times expressions."""
        return self.images.shape[0] * len(self.clip_of)

    def first_rows(self, per_clip: int) -> Tensor:
        """Return the first `per_clip` expressions of every clip, or all of it, int64 [e]."""
        place = torch.arange(len(self.clip_of), device=self.clip_of.device)
        place = place - torch.searchsorted(self.clip_of, self.clip_of)
        return torch.nonzero(place < per_clip).flatten()

    def with_rows(self, rows: Tensor) -> Batch:
        """Return the batch with these of its expressions, in ascending order."""
        new_row = torch.full_like(self.clip_of, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        groups = []
        for group in self.groups:
            kept = new_row[group.rows] >= 0
            if kept.any():
                rows_kept = new_row[group.rows[kept]]
                groups.append(MaskGroup(rows_kept, group.masks[:, kept], group.resized_hw))
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            clip_of=self.clip_of[rows],
            object_of=self.object_of[rows],
            groups=tuple(groups),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on that device."""
        groups = tuple(
            MaskGroup(g.rows.to(device), g.masks.to(device), g.resized_hw) for g in self.groups
        )
        return Batch(
            self.images.to(device),
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.clip_of.to(device),
            self.object_of.to(device),
            groups,
            None if self.cells is None else CellLabels(*(x.to(device) for x in self.cells)),
        )


class Collator:
    """Turns clips into batches for one model.

    Args:
        config: the model's configuration. Frames are not brought to `downscale_short_side`:
            training skips that step (refsam-model 9.4).
        tokenizer: of the model's text encoder.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer

    def __call__(self, clips: Sequence[Clip]) -> Batch:
        """Return the batch of these clips, which have equally many frames.

        Raises:
            DatasetError: an expression has more tokens than the model accepts.
        """
        images = np.stack([self._network_input(clip) for clip in clips], axis=1)
        input_ids, attention_mask = self._tokens(clips)
        counts = torch.tensor([len(clip.texts) for clip in clips])
        clip_of = torch.repeat_interleave(torch.arange(len(clips)), counts)
        return Batch(
            torch.from_numpy(images),
            input_ids,
            attention_mask,
            clip_of,
            _objects([masks for clip in clips for masks in clip.masks]),
            self._groups(clips, clip_of),
            self._cells(clips),
        )

    def _cells(self, clips: Sequence[Clip]) -> CellLabels | None:
        grid = self._config.grid_size
        labels = [cell_labels(clip.shown, grid) for clip in clips if clip.shown is not None]
        if len(labels) < len(clips):
            return None
        return CellLabels(*(torch.stack(part, dim=1) for part in zip(*labels, strict=True)))

    def _network_input(self, clip: Clip) -> npt.NDArray[np.float32]:
        preprocessor = _preprocessor(clip.frames.shape[1:3], self._config.image_size)
        return np.concatenate([preprocessor(frame) for frame in clip.frames])

    def _tokens(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        rows = []
        for clip in clips:
            for text in clip.texts:
                rows.append(
                    self._tokenizer.encode(tidied(text, lowercase=self._config.lowercase)).ids
                )
                if len(rows[-1]) > self._config.max_words:
                    raise DatasetError(
                        f"{clip.name}: expression {text!r} has {len(rows[-1])} tokens, at most "
                        f"{self._config.max_words} are accepted; shorten it or leave it out"
                    )
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        return ids, mask.long()

    def _groups(self, clips: Sequence[Clip], clip_of: Tensor) -> tuple[MaskGroup, ...]:
        sizes = [clip.frames.shape[1:3] for clip in clips]
        groups = []
        for size_hw in dict.fromkeys(sizes):
            members = [index for index, size in enumerate(sizes) if size == size_hw]
            rows = torch.nonzero(torch.isin(clip_of, torch.tensor(members))).flatten()
            masks = np.concatenate([clips[index].masks for index in members]).astype(np.uint8)
            geometry = _preprocessor(size_hw, self._config.image_size).geometry
            groups.append(
                MaskGroup(rows, torch.from_numpy(masks).transpose(0, 1), geometry.resized_hw)
            )
        return tuple(groups)


def _objects(masks: Sequence[npt.NDArray[np.bool_]]) -> Tensor:
    """Return for every expression, [T, H, W] each, the first one with the same masks."""
    firsts: dict[bytes, int] = {}
    return torch.tensor([firsts.setdefault(m.tobytes(), row) for row, m in enumerate(masks)])


@lru_cache(maxsize=64)
def _preprocessor(size_hw: tuple[int, int], image_size: int) -> Preprocessor:
    return Preprocessor(size_hw, PreprocessConfig(image_size, downscale_short_side=None))
