"""What PyTorch computes, written to disk: inputs and outputs of each graph, and a whole chain.

The chain is the slow, obvious way: SAM's own attention, one expression at a time, without padding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refsam_export.files.tensor_files import write_tensors
from refsam_export.parity.compare import RECORD, TENSORS
from refsam_export.parity.inputs import EXPRESSIONS, FIRST_FRAMES, joining, named_frames
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import split_graphs
from refsam_export.refsam.reference import ReferenceModel
from refsam_trt.contract.refsam import DECODER_STEP, IMAGE_ENCODER, TEXT_ENCODER, Split
from refsam_trt.image.preprocess import Preprocessor


def write_reference(loaded: LoadedModel, split: Split, num_frames: int, folder: Path) -> None:
    """Write `TENSORS` and `RECORD` into an existing folder.

    Tensors: `frames` uint8 [T, H, W, 3]; per graph `<graph>.in.<name>` and `<graph>.out.<name>`;
    the chain `chain.<expression>.<frame>.low_res_logits` [1, 4h, 4w] and `.track_token` [256].

    Args:
        loaded: fp32.
        split: whose graph inputs and outputs are wanted.
        num_frames: length of the chain, more than `LATE_FRAME`.
        folder: where to write.
    """
    frames = named_frames(num_frames)
    model = ReferenceModel.of(loaded, split_graphs(loaded.model, split))
    chain = _chain(ReferenceModel.of(loaded), frames)
    ids = [model.token_ids(text) for text in EXPRESSIONS]
    images = np.concatenate([Preprocessor(f.shape[:2], model.preprocess)(f) for f in frames[:2]])
    tokens = np.stack([chain[f"chain.{row}.0.track_token"] for row in (0, 1)])
    graphs = _graph_tensors(model, torch.from_numpy(images), ids, torch.from_numpy(tokens))
    tensors = {"frames": frames, **chain, **graphs}
    # Copies: a safetensors file shares no memory between tensors, step inputs and outputs do.
    write_tensors(folder / TENSORS, {k: torch.tensor(v) for k, v in tensors.items()}, {})
    record = {
        "expressions": list(EXPRESSIONS),
        "first_frames": list(FIRST_FRAMES),
        "num_frames": num_frames,
        "num_tokens": [len(row) for row in ids],
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")


def _chain(model: ReferenceModel, frames: np.ndarray) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    with model.open_video() as video:
        for index, frame in enumerate(frames):
            for text in joining(index):
                video.add_expression(text)
            for row, result in enumerate(video.step(frame)):
                token = video.track_token(result.expression_id)
                assert token is not None
                tensors[f"chain.{row}.{index}.low_res_logits"] = result.low_res_logits[None]
                tensors[f"chain.{row}.{index}.track_token"] = token
    return tensors


def _graph_tensors(
    model: ReferenceModel, images: Tensor, ids: Sequence[Sequence[int]], tokens: Tensor
) -> dict[str, np.ndarray]:
    """Run each graph's PyTorch form, in SAM's attention, on a padded batch of every expression.

    The step takes the second image, and the track tokens of the first expressions.
    """
    text_in = model.text_inputs(ids)
    image_out = model.graphs.run(IMAGE_ENCODER, {"image": images})
    text_out = model.graphs.run(TEXT_ENCODER, text_in)
    step_in = {
        **{name: value[1:2] for name, value in image_out.items()},
        **text_out,
        "word_mask": text_in["attention_mask"] > 0,
        "track_token": torch.cat([tokens, torch.zeros(len(ids) - len(tokens), tokens.shape[1])]),
        "has_track": torch.arange(len(ids)) < len(tokens),
    }
    values: Mapping[str, Mapping[str, Tensor]] = {
        f"{IMAGE_ENCODER}.in": {"image": images},
        f"{IMAGE_ENCODER}.out": image_out,
        f"{TEXT_ENCODER}.in": text_in,
        f"{TEXT_ENCODER}.out": text_out,
        f"{DECODER_STEP}.in": step_in,
        f"{DECODER_STEP}.out": model.graphs.run(DECODER_STEP, step_in),
    }
    return {
        f"{prefix}.{name}": value.numpy()
        for prefix, named in values.items()
        for name, value in named.items()
    }
