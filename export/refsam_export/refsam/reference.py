"""RefSAM in PyTorch, frame by frame: what the runtime's session does, the slow and obvious way.

What computes the graphs differs (`programs`): the model itself, programs rounded to half precision,
compiled ones on a GPU. What happens between graphs does not, and is written here alone: expressions
are cleaned as the model's configuration says, frames become network inputs, every expression keeps
its track token, logits become masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import ReferenceGraphs, Tensors, model_graphs
from refsam_trt.contract.refsam import DECODER_STEP, EMBED_DIM, IMAGE_ENCODER, TEXT_ENCODER
from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.result.result import FrameResults, frame_results
from refsam_trt.text.tokenizer import Tokenizer

Observer = Callable[[int, str, Tensors, Tensors], None]
"""Told of every run of a graph: frame, graph, tensors known to it by name, outputs by name."""


@dataclass(frozen=True)
class ReferenceModel:
    """Opens videos, like a `refsam_trt.Engine`.

    Attributes:
        graphs: what is run.
        tokenizer: cleans expressions and cuts them into tokens, the same code as the runtime's.
        preprocess: what is done to frames.
        pad_id: token that fills up shorter expressions.
        together: decode all expressions of a video in one padded batch, like the runtime; otherwise
            each is decoded alone and unpadded.
    """

    graphs: ReferenceGraphs
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    pad_id: int = 0
    together: bool = False

    @classmethod
    def of(
        cls, loaded: LoadedModel, graphs: ReferenceGraphs | None = None, *, together: bool = False
    ) -> ReferenceModel:
        """Return the model with its own tokenizer and configuration.

        Args:
            loaded: fp32.
            graphs: what computes it; None takes the model itself.
            together: see the attribute.
        """
        config = loaded.model.config
        tokenizer = Tokenizer(
            loaded.tokenizer.to_str(), lowercase=config.lowercase, max_words=config.max_words
        )
        graphs = graphs or model_graphs(loaded.model)
        return cls(graphs, tokenizer, config.preprocess, loaded.pad_id, together)

    def open_video(
        self, *, keeps_text: bool = True, observe: Observer | None = None
    ) -> ReferenceSession:
        """Begin a video.

        Args:
            keeps_text: embed each expression once; otherwise in every frame anew.
            observe: told of every run of a graph.
        """
        return ReferenceSession(self, keeps_text=keeps_text, observe=observe)

    def token_ids(self, text: str) -> list[int]:
        """Return the tokens of an expression.

        Raises:
            ExpressionError: what the runtime refuses too.
        """
        return [int(token) for token in self.tokenizer.encode(self.tokenizer.clean(text))]

    def text_inputs(self, rows: Sequence[Sequence[int]]) -> Tensors:
        """Return the text graph's inputs for the tokens of some expressions, padded."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


@dataclass
class _Batch:
    """Expressions that are decoded together, a row each, and what is remembered of them.

    Attributes:
        ids: of the expressions.
        track_token: [B, 256] on the device, of no meaning where not `has_track`.
        has_track: bool [B] on the device.
        text: expression-scope inputs of the step; None before they are computed.
    """

    ids: tuple[int, ...]
    track_token: Tensor
    has_track: Tensor
    text: Tensors | None = None


@dataclass(frozen=True)
class _Expression:
    text: str
    tokens: list[int] = field(repr=False)


class ReferenceSession:
    """One video in PyTorch, with the calls of `refsam_trt.Session`; a context manager.

    Expressions are embedded in the first frame that they are decoded in, after it is encoded.
    """

    def __init__(
        self, model: ReferenceModel, *, keeps_text: bool, observe: Observer | None
    ) -> None:
        self._model, self._keeps_text, self._observe = model, keeps_text, observe
        self._expressions: dict[int, _Expression] = {}
        self._batches: list[_Batch] = []
        self._next_id = self._num_frames = 0
        self._preprocessor: Preprocessor | None = None
        self._postprocessor: Postprocessor | None = None

    def __enter__(self) -> ReferenceSession:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to give back: memory goes with the last reference."""

    @property
    def expressions(self) -> dict[int, str]:
        """Id -> expression as it was understood, in the order they were added."""
        return {id_: expression.text for id_, expression in self._expressions.items()}

    def add_expression(self, text: str) -> int:
        """Look for an expression from the next frame on; returns its id.

        Raises:
            ExpressionError: what the runtime refuses too.
        """
        tokens = self._model.token_ids(text)
        self._expressions[self._next_id] = _Expression(self._model.tokenizer.clean(text), tokens)
        self._next_id += 1
        return self._next_id - 1

    def remove_expression(self, expression_id: int) -> None:
        """Stop looking for an expression and forget its track."""
        self._check(expression_id)
        del self._expressions[expression_id]

    def reset_track(self, expression_id: int) -> None:
        """Forget one expression's track: its next frame is decoded like a first one."""
        self._check(expression_id)
        for batch in self._batches:
            if expression_id in batch.ids:
                row = batch.ids.index(expression_id)
                batch.track_token[row], batch.has_track[row] = 0.0, False

    def track_token(self, expression_id: int) -> NDArray[np.float32] | None:
        """Return what the next frame is told of the object, float32 [256]; None without a track."""
        self._check(expression_id)
        for batch in self._batches:
            if expression_id in batch.ids and batch.has_track[batch.ids.index(expression_id)]:
                return _on_host(batch.track_token[batch.ids.index(expression_id)])
        return None

    def step(self, frame: NDArray[np.uint8]) -> FrameResults:
        """Return the results of the next frame, in the order the expressions were added.

        Args:
            frame: uint8 [H, W, 3], RGB; all frames of a video have the same size.
        """
        graphs = self._model.graphs
        if graphs.has_captures:
            torch.compiler.cudagraph_mark_step_begin()
        if self._preprocessor is None:
            self._preprocessor = Preprocessor(frame.shape[:2], self._model.preprocess)
        image = torch.from_numpy(self._preprocessor(frame)).to(graphs.device)
        encoded = self._run(IMAGE_ENCODER, {"image": image})
        self._batches = self._arranged()
        outputs = [self._decode(encoded, batch) for batch in self._batches]
        self._num_frames += 1
        return self._results(outputs, self._preprocessor)

    def run(self, frames: Iterable[NDArray[np.uint8]]) -> Iterator[FrameResults]:
        """Yield the results of every frame; what changes between two of them holds at once."""
        return map(self.step, frames)

    def _run(self, graph: str, tensors: Tensors) -> Tensors:
        outputs = self._model.graphs.run(graph, tensors)
        if self._observe is not None:
            self._observe(self._num_frames, graph, tensors, outputs)
        return outputs

    def _arranged(self) -> list[_Batch]:
        """Return the batches of all expressions; those whose rows are as before are kept."""
        ids = tuple(self._expressions)
        groups = [ids] if ids and self._model.together else [(id_,) for id_ in ids]
        kept = {batch.ids: batch for batch in self._batches}
        return [kept.get(group) or self._new_batch(group) for group in groups]

    def _new_batch(self, ids: tuple[int, ...]) -> _Batch:
        """Return a batch that remembers what its expressions' former batches do."""
        device = self._model.graphs.device
        token = torch.zeros(len(ids), EMBED_DIM, device=device)
        batch = _Batch(ids, token, torch.zeros(len(ids), dtype=torch.bool, device=device))
        for former in self._batches:
            for row, id_ in enumerate(former.ids):
                if id_ in ids:
                    batch.track_token[ids.index(id_)] = former.track_token[row]
                    batch.has_track[ids.index(id_)] = former.has_track[row]
        return batch

    def _decode(self, encoded: Tensors, batch: _Batch) -> Tensors:
        """Run the step and keep the track tokens; returns its outputs."""
        text = batch.text or self._embedded(batch.ids)
        batch.text = text if self._keeps_text else None
        state = {"track_token": batch.track_token, "has_track": batch.has_track}
        outputs = self._run(DECODER_STEP, {**encoded, **text, **state})
        # A copy: the next run of a captured graph writes over its outputs.
        batch.track_token = outputs["next_track_token"].clone()
        batch.has_track = torch.ones_like(batch.has_track)
        return outputs

    def _embedded(self, ids: Sequence[int]) -> Tensors:
        inputs = self._model.text_inputs([self._expressions[id_].tokens for id_ in ids])
        inputs = {name: value.to(self._model.graphs.device) for name, value in inputs.items()}
        outputs = self._run(TEXT_ENCODER, inputs)
        return {**outputs, "word_mask": inputs["attention_mask"] > 0}

    def _results(self, outputs: Sequence[Tensors], preprocessor: Preprocessor) -> FrameResults:
        index, geometry = self._num_frames - 1, preprocessor.geometry
        if not outputs:
            return FrameResults(index, geometry.original_hw, ())
        logits, iou = (
            np.concatenate([_on_host(output[name][:, 0]) for output in outputs])
            for name in ("low_res_logits", "iou")
        )
        if self._postprocessor is None:
            height, width = logits.shape[1:]
            self._postprocessor = Postprocessor(geometry, (height, width))
        texts = tuple(expression.text for expression in self._expressions.values())
        raw = RawFrame(index, tuple(self._expressions), texts, logits, iou)
        return frame_results(raw, self._postprocessor, geometry.original_hw, 0.0)

    def _check(self, expression_id: int) -> None:
        if expression_id not in self._expressions:
            raise UsageError(f"no expression has the id {expression_id!r}")


def _on_host(tensor: Tensor) -> NDArray[Any]:
    return tensor.float().cpu().numpy()
