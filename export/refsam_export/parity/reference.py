"""What PyTorch computes, written to disk: inputs and outputs of each graph, and a whole chain.

The chain is the slow, obvious way: SAM's own arithmetic, one frame and one expression at a time,
without padding. Nothing of a frame stays in memory when the next one begins, and no more scores of
its attention are there at once than those of one head (`attention.HEADWISE`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refsam_export.files.tensor_stream import TensorWriter
from refsam_export.parity.compare import RECORD, TENSORS
from refsam_export.parity.inputs import (
    EXPRESSIONS,
    FIRST_FRAMES,
    FRAME_HW,
    joining,
    named_frames,
)
from refsam_export.refsam.attention import HEADWISE
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import ReferenceGraphs, Tensors, release, specs_of, split_graphs
from refsam_export.refsam.reference import ReferenceModel
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, Split
from refsam_trt.contract.specs import GraphSpec

NUM_IMAGES = 2
"""Frames of the chain, its first ones, that the image encoder's graph is compared on."""

_STEP_IMAGE = 1
"""Frame that the step is compared on: expressions of frame 0 have track tokens there."""

Watch = Callable[[int], None]
"""Told of every frame that is done, by its index."""


def write_reference(
    loaded: LoadedModel,
    split: Split,
    num_frames: int,
    folder: Path,
    *,
    frees_text: bool = False,
    watch: Watch = lambda _: None,
) -> None:
    """Write `TENSORS` and, when they are whole, `RECORD` into an existing folder.

    Tensors: `frames` uint8 [T, H, W, 3]; per graph `<graph>.in.<name>` and `<graph>.out.<name>`;
    the chain `chain.<expression>.<frame>.low_res_logits` [1, 4h, 4w] and `.track_token` [256].

    Args:
        loaded: fp32.
        split: whose graph inputs and outputs are written.
        num_frames: length of the chain, more than `LATE_FRAME`.
        folder: where to write.
        frees_text: drop the model's text encoder once it is not needed any more; `loaded` has none
            afterwards.
        watch: told of progress.

    Raises:
        OutputError: the files cannot be written.
    """
    graphs = split_graphs(loaded.model, split, HEADWISE)
    model = ReferenceModel.of(loaded, graphs)
    ids = [model.token_ids(text) for text in EXPRESSIONS]
    specs = specs_of(loaded.model, split)
    with TensorWriter(folder / TENSORS, _shapes(specs, ids, num_frames)) as file:
        writer = _Writer(file, specs)
        text_in = model.text_inputs(ids)
        text_out = graphs.run(TEXT_ENCODER, text_in)
        writer.graph(TEXT_ENCODER, text_in, text_out)
        known = _KnownText(loaded.model.encode_text, model, ids)
        chain = ReferenceModel.of(loaded, _chain_graphs(graphs, known, loaded))
        if frees_text:  # these hold it too
            release(loaded.model.text_encoder)
            loaded.model.text_encoder = None
            del graphs, model
        image_out, tokens = _write_chain(chain, num_frames, writer, watch)
        step_in = {
            **image_out,
            **text_out,
            "word_mask": text_in["attention_mask"] > 0,
            "track_token": torch.cat([tokens, tokens.new_zeros(len(ids) - len(tokens), 256)]),
            "has_track": torch.arange(len(ids)) < len(tokens),
        }
        writer.graph(DECODER_STEP, step_in, chain.graphs.run(DECODER_STEP, step_in))
    record = {
        "expressions": list(EXPRESSIONS),
        "first_frames": list(FIRST_FRAMES),
        "num_frames": num_frames,
        "num_tokens": [len(row) for row in ids],
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")


class _KnownText:
    """The model's text encoder, run on each expression alone before it is dropped."""

    def __init__(
        self, encode: Callable[..., Any], model: ReferenceModel, ids: Sequence[Sequence[int]]
    ) -> None:
        self._outputs: dict[tuple[int, ...], Any] = {}
        for row in ids:
            with torch.no_grad():
                self._outputs[tuple(row)] = encode(**model.text_inputs([row]))

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self._outputs[tuple(input_ids[0].tolist())]


class _Writer:
    """Writes what graphs take and give."""

    def __init__(self, file: TensorWriter, specs: dict[str, GraphSpec]) -> None:
        self.file, self._specs = file, specs

    def graph(
        self, graph: str, inputs: Tensors, outputs: Tensors, frame: int | None = None
    ) -> None:
        """Write one run; of a frame it is one row of the graph's tensors."""
        spec = self._specs[graph]
        for side, group, tensors in (("in", spec.inputs, inputs), ("out", spec.outputs, outputs)):
            for tensor in group:
                value = tensors[tensor.name].numpy()
                row = value if frame is None else value[0]
                self.file.write(f"{graph}.{side}.{tensor.name}", row, frame)


def _shapes(
    specs: dict[str, GraphSpec], ids: Sequence[Sequence[int]], num_frames: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor of the file."""
    sizes = {"M": NUM_IMAGES, "B": len(ids), "N": max(map(len, ids))}
    logits = specs[DECODER_STEP].output("low_res_logits").shape({"B": 1})[1:]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "frames": ("uint8", (num_frames, *FRAME_HW, 3))
    }
    for row, first in enumerate(FIRST_FRAMES):
        for index in range(first, num_frames):
            shapes[f"chain.{row}.{index}.low_res_logits"] = "float32", logits
            shapes[f"chain.{row}.{index}.track_token"] = "float32", (256,)
    for name, spec in specs.items():
        for side, group in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in group:
                shapes[f"{name}.{side}.{tensor.name}"] = tensor.dtype, tensor.shape(sizes)
    return shapes


def _chain_graphs(
    graphs: ReferenceGraphs, text: _KnownText, loaded: LoadedModel
) -> ReferenceGraphs:
    """Return the model itself, but for what a split asks of the image encoder beside its own."""
    specs = {**graphs.specs, TEXT_ENCODER: specs_of(loaded.model, "baseline")[TEXT_ENCODER]}
    return ReferenceGraphs({**graphs.programs, TEXT_ENCODER: text}, specs)


def _write_chain(
    model: ReferenceModel, num_frames: int, writer: _Writer, watch: Watch
) -> tuple[Tensors, Tensor]:
    """Write the chain, and each first frame's run of the image encoder.

    Returns:
        The image encoder's outputs of the frame `_STEP_IMAGE`, and the track tokens of the frame
        before, one row per expression.
    """
    image_out: Tensors = {}
    tokens: list[Tensor] = []

    def observe(frame: int, graph: str, inputs: Tensors, outputs: Tensors) -> None:
        if graph == IMAGE_ENCODER and frame < NUM_IMAGES:
            writer.graph(graph, inputs, outputs, frame)
        if graph == IMAGE_ENCODER and frame == _STEP_IMAGE:
            image_out.update(outputs)

    with model.open_video(observe=observe) as video:
        for index, frame in enumerate(named_frames(num_frames)):
            writer.file.write("frames", frame, index)
            for text in joining(index):
                video.add_expression(text)
            for row, result in enumerate(video.step(frame)):
                token = video.track_token(result.expression_id)
                assert token is not None
                name = f"chain.{row}.{index}"
                writer.file.write(f"{name}.low_res_logits", result.low_res_logits[None])
                writer.file.write(f"{name}.track_token", token)
                if index == _STEP_IMAGE - 1:
                    tokens.append(torch.from_numpy(token))
            watch(index)
    return image_out, torch.stack(tokens)
