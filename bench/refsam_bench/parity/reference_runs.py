"""What each graph of a bundle is given, frame by frame, and what PyTorch makes of it.

The inputs are always the reference's own, so that an error in one graph shows in that graph alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refsam_export.parity.inputs import EXPRESSIONS, LATE_FRAME, named_frames
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.hda import no_features
from refsam_trt.contract.manifest import Manifest
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, contract
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.image.preprocess import Preprocessor

_Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class GraphRun:
    """One run of one graph on the host: its inputs, and the outputs expected of it."""

    frame: int
    graph: str
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


def reference_runs(
    loaded: LoadedModel, manifest: Manifest, variant: str, num_frames: int
) -> Iterator[GraphRun]:
    """Yield the runs of parity's chain in order; each is computed when it is asked for.

    Per frame the image encoder, the text encoder where an expression joins, the step for all
    expressions in one padded batch. The reference is in SAM's own attention, its step not split.

    Args:
        loaded: fp32.
        manifest: of the bundle made from it.
        variant: whose tensors are wanted.
        num_frames: length of the chain.
    """
    reference = _Reference(loaded, manifest, variant)
    frames = named_frames(num_frames)
    preprocessor = Preprocessor(frames.shape[1:3], manifest.preprocess)
    text: _Tensors = {}
    for index, frame in enumerate(frames):
        image = {"image": torch.from_numpy(preprocessor(frame))}
        encoded = reference.run(IMAGE_ENCODER, image)
        yield _graph_run(index, IMAGE_ENCODER, image, encoded)
        if index in (0, LATE_FRAME):
            ids = reference.tokens(EXPRESSIONS if index else EXPRESSIONS[:-1])
            text = reference.run(TEXT_ENCODER, ids)
            if TEXT_ENCODER in manifest.variants[variant].graphs:
                yield _graph_run(index, TEXT_ENCODER, ids, text)
            text["word_mask"] = ids["attention_mask"] > 0
        given, out = reference.step({**encoded, **text})
        yield _graph_run(index, DECODER_STEP, given, out)


class _Reference:
    """The PyTorch graphs, and the track tokens of the expressions seen so far."""

    def __init__(self, loaded: LoadedModel, manifest: Manifest, variant: str) -> None:
        split: Any = manifest.variants[variant].split
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._pad_id = manifest.tokenizer.pad_id
        config = loaded.model.config
        self._specs = contract(
            config.image_size, config.grid_size, split, hda_levels=config.hda_levels
        )
        self._modules: dict[str, nn.Module] = build_graphs(loaded.model, split, "reference")
        self._track_token: Tensor | None = None

    def tokens(self, expressions: Sequence[str]) -> _Tensors:
        cleaned = self._model.config.cleaned
        rows = [self._tokenizer.encode(cleaned(text)).ids for text in expressions]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        padded = [[*row, *[self._pad_id] * n] for row, n in zip(rows, padding, strict=True)]
        mask = [[1] * len(row) + [0] * n for row, n in zip(rows, padding, strict=True)]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}

    @torch.no_grad()
    def run(self, graph: str, inputs: _Tensors) -> _Tensors:
        spec = self._specs[graph]
        outputs = self._modules[graph](*(inputs[tensor.name] for tensor in spec.inputs))
        return _named(spec.outputs, outputs)

    @torch.no_grad()
    def step(self, known: _Tensors) -> tuple[_Tensors, _Tensors]:
        """Decode a frame; return the graph's inputs and outputs, and keep the track tokens."""
        spec = self._specs[DECODER_STEP]
        kept = self._track_token
        num_kept = 0 if kept is None else len(kept)
        track_token = torch.zeros_like(known["sentence"])
        if kept is not None:
            track_token[:num_kept] = kept
        has_track = torch.arange(len(track_token)) < num_kept
        given = {**known, "track_token": track_token, "has_track": has_track}
        embedding = given["image_embedding"]
        out = self._model.step(
            embedding,
            given.get("hda_features", no_features(embedding)),
            given["words"],
            given["word_mask"],
            given["sentence"],
            track_token,
            has_track,
        )
        self._track_token = out.next_track_token
        return {t.name: given[t.name] for t in spec.inputs}, _named(spec.outputs, out)


def _named(specs: Sequence[TensorSpec], values: Sequence[Tensor]) -> _Tensors:
    return {spec.name: value for spec, value in zip(specs, values, strict=True)}


def _graph_run(frame: int, graph: str, inputs: _Tensors, expected: _Tensors) -> GraphRun:
    return GraphRun(
        frame,
        graph,
        {name: value.numpy() for name, value in inputs.items()},
        {name: value.numpy() for name, value in expected.items()},
    )
