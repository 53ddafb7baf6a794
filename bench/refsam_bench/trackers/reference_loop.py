"""The slow side of `refsam-bench speed`: PyTorch in the order of the released scripts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.reference import ReferenceModel, ReferenceSession


class ReferenceLoop:
    """PyTorch, text and image encoded again for every expression of every frame."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = ReferenceModel.of(loaded)
        self._videos: dict[str, ReferenceSession] = {}

    def step(self, frame: NDArray[np.uint8], texts: list[str]) -> list[NDArray[np.bool_]]:
        """Return one bool mask [H, W] per expression."""
        return [self._mask(frame, text) for text in texts]

    def _mask(self, frame: NDArray[np.uint8], text: str) -> NDArray[np.bool_]:
        if text not in self._videos:
            self._videos[text] = self._model.open_video(keeps_text=False)
            self._videos[text].add_expression(text)
        (result,) = self._videos[text].step(frame)
        # Not `result.mask`, which also works out how confident it is.
        return result.logits > 0
