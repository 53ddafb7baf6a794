"""What PyTorch computes, written to disk: inputs and outputs of each graph, and a whole chain.

The chain is the slow, obvious way: SAM's own attention, one expression at a time, without padding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.files.tensor_files import write_tensors
from refsam_export.parity.inputs import EXPRESSIONS, LATE_FRAME, named_frames
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.model.hda import no_features
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.contract.refsam import (
    DECODER_STEP,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    Split,
    contract,
)
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.image.preprocess import Preprocessor

TENSORS = "reference.safetensors"
RECORD = "reference.json"


def write_reference(
    model: RefSam, tokenizer: Tokenizer, split: Split, num_frames: int, folder: Path
) -> None:
    """Write `TENSORS` and `RECORD` into an existing folder.

    Tensors: `frames` uint8 [T, H, W, 3]; per graph `<graph>.in.<name>` and `<graph>.out.<name>`;
    the chain `chain.<expression>.<frame>.low_res_logits` [1, 4h, 4w] and `.track_token` [256].

    Args:
        model: fp32.
        tokenizer: the bundle's.
        split: whose graph inputs and outputs are wanted.
        num_frames: length of the chain, more than `LATE_FRAME`.
        folder: where to write.
    """
    config = model.config
    frames = named_frames(num_frames)
    preprocessor = Preprocessor(frames.shape[1:3], config.preprocess)
    ids = [tokenizer.encode(config.cleaned(text)).ids for text in EXPRESSIONS]
    tensors: dict[str, np.ndarray] = {"frames": frames}
    with torch.no_grad():
        encoded = [model.encode_image(torch.from_numpy(preprocessor(frame))) for frame in frames]
        tensors.update(_chain(model, encoded, ids))
        images = np.concatenate([preprocessor(frame) for frame in frames[:2]])
        tokens = [tensors[f"chain.{i}.0.track_token"] for i in (0, 1)]
        tensors.update(_graph_tensors(model, split, torch.from_numpy(images), ids, tokens))
    # Copies: a safetensors file shares no memory between tensors, step inputs and outputs do.
    write_tensors(folder / TENSORS, {k: torch.tensor(v) for k, v in tensors.items()}, {})
    record = {
        "expressions": list(EXPRESSIONS),
        "first_frames": _first_frames(),
        "num_frames": num_frames,
        "num_tokens": [len(row) for row in ids],
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")


def _first_frames() -> list[int]:
    return [*[0] * (len(EXPRESSIONS) - 1), LATE_FRAME]


def _chain(
    model: RefSam, encoded: Sequence[tuple[Tensor, Tensor]], ids: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    results: dict[str, np.ndarray] = {}
    for expression, (row, first) in enumerate(zip(ids, _first_frames(), strict=True)):
        input_ids = torch.tensor([row])
        words, sentence = model.encode_text(input_ids, torch.ones_like(input_ids))
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        token, has_track = torch.zeros(1, words.shape[-1]), torch.tensor([False])
        for index in range(first, len(encoded)):
            embedding, features = encoded[index]
            out = model.step(embedding, features, words, mask, sentence, token, has_track)
            token, has_track = out.next_track_token, torch.tensor([True])
            results[f"chain.{expression}.{index}.low_res_logits"] = out.low_res_logits[0].numpy()
            results[f"chain.{expression}.{index}.track_token"] = token[0].numpy()
    return results


def _graph_tensors(
    model: RefSam,
    split: Split,
    images: Tensor,
    ids: Sequence[Sequence[int]],
    tokens: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    """Run each graph's PyTorch form, in SAM's attention, on a padded batch of every expression."""
    config = model.config
    spec = contract(config.image_size, config.grid_size, split, hda_levels=config.hda_levels)
    modules = build_graphs(model, split, "reference")
    longest = max(len(row) for row in ids)
    input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
    attention_mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in ids], dtype=torch.int64
    )
    track_token = torch.zeros(len(ids), tokens[0].shape[0])
    track_token[: len(tokens)] = torch.from_numpy(np.stack(tokens))
    has_track = torch.arange(len(ids)) < len(tokens)
    image_out = _named(spec[IMAGE_ENCODER].outputs, modules[IMAGE_ENCODER](images))
    text_out = _named(spec[TEXT_ENCODER].outputs, modules[TEXT_ENCODER](input_ids, attention_mask))
    step_in = {
        **{name: value[1:2] for name, value in image_out.items()},
        **text_out,
        "word_mask": attention_mask > 0,
        "track_token": track_token,
        "has_track": has_track,
    }
    step_out = model.step(
        step_in["image_embedding"],
        step_in.get("hda_features", no_features(step_in["image_embedding"])),
        step_in["words"],
        step_in["word_mask"],
        step_in["sentence"],
        track_token,
        has_track,
    )
    values = {
        f"{IMAGE_ENCODER}.in": {"image": images},
        f"{IMAGE_ENCODER}.out": image_out,
        f"{TEXT_ENCODER}.in": {"input_ids": input_ids, "attention_mask": attention_mask},
        f"{TEXT_ENCODER}.out": text_out,
        f"{DECODER_STEP}.in": step_in,
        f"{DECODER_STEP}.out": _named(spec[DECODER_STEP].outputs, step_out),
    }
    return {
        f"{prefix}.{name}": value.numpy()
        for prefix, named in values.items()
        for name, value in named.items()
    }


def _named(specs: Sequence[TensorSpec], values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {spec.name: value for spec, value in zip(specs, values, strict=True)}
