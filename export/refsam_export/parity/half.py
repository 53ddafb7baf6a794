"""What half precision does to the results, judged in PyTorch: rounding, and range.

ONNX Runtime's CPU provider computes many fp16 operators in fp32 and has no bf16, so what it says of
a half graph is a smoke test only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from refsam_export.parity.compare import RECORD, TENSORS, Parity, mask_iou, relative_error
from refsam_export.precision.policy import PrecisionPolicy
from refsam_export.precision.range_audit import RangeAudit
from refsam_export.refsam.programs import GraphChain, Programs, rounded_chain
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor

BACKEND = "pytorch-rounded"


def half_figures(
    variant: str,
    programs: Programs,
    specs: Mapping[str, GraphSpec],
    policy: PrecisionPolicy,
    tokenizer: Any,
    preprocess: PreprocessConfig,
    reference: Path,
) -> dict[str, Any]:
    """Judge a policy on what a reference was written for (`parity.reference`).

    Args:
        variant: name of the variant in the figures.
        programs: fp32 program of each graph.
        specs: their contract.
        policy: what is half.
        tokenizer: the bundle's.
        preprocess: the bundle's.
        reference: folder of the reference.

    Returns:
        `rounded`: as `compare.Parity`, with `passed`; `range_audit`: as `RangeAudit.to_json`, for
        fp16 alone, as bf16 has the range of fp32.
    """
    tensors = load_file(reference / TENSORS)
    record = json.loads((reference / RECORD).read_text(encoding="utf-8"))
    chain = rounded_chain(programs, specs, policy)
    rounded = _rounded_parity(variant, chain, policy, tokenizer, preprocess, tensors, record)
    found: dict[str, Any] = {"rounded": {**asdict(rounded), "passed": rounded.passed}}
    if policy.dtype == torch.float16:
        audit = RangeAudit(programs, policy)
        for name in policy.graphs:
            audit.run(name, tuple(tensors[f"{name}.in.{t.name}"] for t in specs[name].inputs))
        found["range_audit"] = audit.to_json()
    return found


def _rounded_parity(
    variant: str,
    chain: GraphChain,
    policy: PrecisionPolicy,
    tokenizer: Any,
    preprocess: PreprocessConfig,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> Parity:
    graphs = {name: _graph_errors(chain, name, tensors) for name in chain.specs}
    rows = _run_chain(chain, tokenizer, preprocess, tensors, record)
    return Parity.of(variant, policy.name, BACKEND, record, graphs, rows)


def _graph_errors(chain: GraphChain, graph: str, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    given = {t.name: tensors[f"{graph}.in.{t.name}"] for t in chain.specs[graph].inputs}
    return {
        name: relative_error(value.numpy(), tensors[f"{graph}.out.{name}"].numpy())
        for name, value in chain.run(graph, given).items()
    }


def _run_chain(
    chain: GraphChain,
    tokenizer: Any,
    preprocess: PreprocessConfig,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> list[dict[str, Any]]:
    frames = tensors["frames"].numpy()
    preprocessor = Preprocessor(frames.shape[1:3], preprocess)
    height, width = tensors["chain.0.0.low_res_logits"].shape[1:]
    postprocessor = Postprocessor(preprocessor.geometry, (height, width))
    texts = [
        chain.encode_text(tokenizer.encode(" ".join(text.lower().split())).ids)
        for text in record["expressions"]
    ]
    tokens: list[Tensor | None] = [None] * len(texts)
    rows = []
    for index, frame in enumerate(frames):
        encoded = chain.encode_image(torch.from_numpy(preprocessor(frame)))
        for number, first in enumerate(record["first_frames"]):
            if index < first:
                continue
            out = chain.step(encoded, texts[number], tokens[number])
            tokens[number] = out["next_track_token"]
            expected = tensors[f"chain.{number}.{index}.low_res_logits"][0].numpy()
            found = out["low_res_logits"][0, 0].numpy()
            rows.append(_row(index, number, found, expected, postprocessor))
    return rows


def _row(
    frame: int,
    expression: int,
    found: np.ndarray,
    expected: np.ndarray,
    postprocessor: Postprocessor,
) -> dict[str, Any]:
    expected_mask = postprocessor.logits(expected) > 0
    is_finite = bool(np.isfinite(found).all())
    return {
        "frame": frame,
        "expression": expression,
        "logits_error": relative_error(found, expected),
        "mask_iou": mask_iou(postprocessor.logits(found) > 0, expected_mask) if is_finite else 0.0,
        "coverage": float(expected_mask.mean()),
    }
