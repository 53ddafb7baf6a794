"""Two ways to follow expressions, for scoring: a bundle, and the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import Postprocessor, mask_from_logits
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.session.engine import Engine

Frames: TypeAlias = Iterable[NDArray[np.uint8]]
Masks: TypeAlias = list[NDArray[np.bool_]]
Logits: TypeAlias = list[NDArray[np.float32]]

Memory = Literal["kept", "forgotten"]
"""`forgotten`: no frame sees a track token, as if every frame were the first."""


class Tracker(Protocol):
    """Follows expressions through a video."""

    def track(self, frames: Frames, texts: Sequence[str], memory: Memory) -> Iterator[Masks]:
        """Yield per frame one bool mask [H, W] per expression, in their order."""


class LogitTracker(Tracker, Protocol):
    """A tracker that also gives what its masks are decided from."""

    def logits(self, frames: Frames, texts: Sequence[str]) -> Iterator[Logits]:
        """Yield per frame the logits, float32 [H, W], of each expression, in their order."""


class EngineTracker:
    """A loaded bundle."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def track(
        self, frames: Frames, texts: Sequence[str], memory: Memory = "kept"
    ) -> Iterator[Masks]:
        """Yield the masks of every frame (see `Tracker`)."""
        _check(memory)
        with self._engine.open_video() as video:
            ids = [video.add_expression(text) for text in texts]
            for frame in frames:
                yield [result.mask for result in video.step(frame)]
                if memory == "forgotten":
                    for expression_id in ids:
                        video.reset_track(expression_id)

    def logits(self, frames: Frames, texts: Sequence[str]) -> Iterator[Logits]:
        """Yield the logits of every frame (see `LogitTracker`)."""
        with self._engine.open_video() as video:
            for text in texts:
                video.add_expression(text)
            for frame in frames:
                yield [result.logits for result in video.step(frame)]


class ReferenceTracker:
    """The PyTorch reference in SAM's own form, each expression alone and unpadded."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        config = loaded.model.config
        self._preprocess = config.preprocess
        self._low_res_hw = (4 * config.grid_size,) * 2

    def track(
        self, frames: Frames, texts: Sequence[str], memory: Memory = "kept"
    ) -> Iterator[Masks]:
        """Yield the masks of every frame (see `Tracker`)."""
        _check(memory)
        for logits in self._logits(frames, texts, memory):
            yield [mask_from_logits(plane) for plane in logits]

    def logits(self, frames: Frames, texts: Sequence[str]) -> Iterator[Logits]:
        """Yield the logits of every frame (see `LogitTracker`)."""
        return self._logits(frames, texts, "kept")

    def _logits(self, frames: Frames, texts: Sequence[str], memory: Memory) -> Iterator[Logits]:
        embedded = [self._embed(text) for text in texts]
        tokens: list[torch.Tensor | None] = [None] * len(texts)
        preprocessor: Preprocessor | None = None
        for frame in frames:
            if preprocessor is None:
                preprocessor = Preprocessor(frame.shape[:2], self._preprocess)
                postprocessor = Postprocessor(preprocessor.geometry, self._low_res_hw)
            planes: Logits = []
            with torch.no_grad():
                features = self._model.encode_image(torch.from_numpy(preprocessor(frame)))
                for index, text in enumerate(embedded):
                    low_res, tokens[index] = self._step(features, text, tokens[index])
                    planes.append(postprocessor.logits(low_res))
            yield planes
            if memory == "forgotten":
                tokens = [None] * len(texts)

    @torch.no_grad()
    def _embed(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([self._tokenizer.encode(self._model.config.cleaned(text)).ids])
        return self._model.encode_text(ids, torch.ones_like(ids))

    def _step(
        self,
        features: tuple[torch.Tensor, torch.Tensor],
        text: tuple[torch.Tensor, torch.Tensor],
        token: torch.Tensor | None,
    ) -> tuple[NDArray[Any], torch.Tensor]:
        words, sentence = text
        out = self._model.step(
            *features,
            words=words,
            word_mask=torch.ones(words.shape[:2], dtype=torch.bool),
            sentence=sentence,
            track_token=torch.zeros_like(sentence) if token is None else token,
            has_track=torch.tensor([token is not None]),
        )
        return out.low_res_logits[0, 0].numpy(), out.next_track_token


def _check(memory: Memory) -> None:
    if memory not in get_args(Memory):
        raise UsageError(f"memory={memory!r}: expected one of {', '.join(get_args(Memory))}")
