"""The slow side of `refsam-bench speed`: PyTorch in the order of the released scripts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import Preprocessor


class ReferenceLoop:
    """PyTorch, text and image encoded again for every expression of every frame."""

    def __init__(self, loaded: LoadedModel, frame_hw: tuple[int, int]) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._tokens: dict[str, torch.Tensor] = {}
        config = self._model.config
        self._preprocessor = Preprocessor(frame_hw, config.preprocess)
        low_res_hw = (4 * config.grid_size,) * 2
        self._postprocessor = Postprocessor(self._preprocessor.geometry, low_res_hw)

    def step(self, frame: np.ndarray[Any, Any], texts: list[str]) -> list[np.ndarray[Any, Any]]:
        """Return one bool mask [H, W] per expression."""
        masks = []
        for text in texts:
            with torch.no_grad():
                logits = self._expression(self._preprocessor(frame), text)
            masks.append(self._postprocessor.logits(logits) > 0)
        return masks

    def _expression(self, image: np.ndarray[Any, Any], text: str) -> np.ndarray[Any, Any]:
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        words, sentence = self._model.encode_text(ids, torch.ones_like(ids))
        embedding, features = self._model.encode_image(torch.from_numpy(image))
        token = self._tokens.get(text)
        out = self._model.step(
            embedding,
            features,
            words,
            torch.ones_like(ids, dtype=torch.bool),
            sentence,
            torch.zeros(1, words.shape[-1]) if token is None else token,
            torch.tensor([token is not None]),
        )
        self._tokens[text] = out.next_track_token
        return out.low_res_logits[0, 0].numpy()
