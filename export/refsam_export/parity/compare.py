"""Runs a bundle on the inputs of a written reference and states the differences.

Imports neither torch nor onnx: in a process of its own (`refsam_trt.command.in_process`), the
figures are those of the runtime that people embed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

import refsam_trt
from refsam_export.parity.figures import BOUNDS, ChainRow, Parity
from refsam_trt.backends.base import Backend
from refsam_trt.backends.select import AUTO, open_backend
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.plans import Plans, plans_for
from refsam_trt.contract.manifest import Variant
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import UsageError
from refsam_trt.session.variants import choose_variant

if TYPE_CHECKING:
    from refsam_export.refsam.reference import ReferenceModel

TENSORS = "reference.safetensors"
RECORD = "reference.json"
MAX_RELATIVE_ERROR = BOUNDS["fp32"].max_relative_error
MIN_MASK_IOU = BOUNDS["fp32"].min_mask_iou
# The error of anything that is not finite: JSON has no infinity.
NOT_FINITE = sys.float_info.max


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    `NOT_FINITE` if either holds a value that is not finite.
    """
    if not (np.isfinite(values).all() and np.isfinite(expected).all()):
        return NOT_FINITE
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(values.astype(np.float64) - expected).max()) / scale


def mask_iou(found: np.ndarray, expected: np.ndarray) -> float:
    """Return intersection over union of two bool masks; 1 when both are empty."""
    union = int(np.logical_or(found, expected).sum())
    return int(np.logical_and(found, expected).sum()) / union if union else 1.0


def compare(
    folder: Path,
    reference: Path,
    variant: str | None = None,
    *,
    backend: str = AUTO,
    plans: Path | None = None,
) -> Parity:
    """Measure a bundle against a reference written by `parity.reference`.

    Args:
        folder: the bundle.
        reference: folder with the reference's tensors and record.
        variant: which variant; None takes the bundle's default.
        backend: that runs the graphs.
        plans: folder of `refsam-build`, whose plans run instead.

    Raises:
        UsageError: the reference is of another split than the variant.
        RefsamError: as of `refsam_trt.load`.
    """
    tensors, record = read_reference(reference)
    bundle = open_bundle(folder, verify="deferred")
    variant = choose_variant(bundle.manifest, variant)
    _check_reference(bundle.manifest.variants[variant], tensors)
    with refsam_trt.load(bundle, variant=variant, backend=backend, plans=plans) as engine:
        backend = engine.backend
        chain = chain_rows(engine, tensors, record)
    built = plans_for(bundle, plans, variant) if plans else None
    graphs = _run_graphs(bundle, variant, backend, tensors, built)
    precision = bundle.manifest.variants[variant].precision
    return Parity.of(variant, precision, backend, record, graphs, chain)


def read_reference(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return tensors and record of a written reference."""
    tensors = load_file(folder / TENSORS)
    return tensors, json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _check_reference(variant: Variant, tensors: dict[str, np.ndarray]) -> None:
    needed = [
        f"{graph}.{side}.{tensor.name}"
        for graph, entry in variant.graphs.items()
        for side, group in (("in", entry.spec.inputs), ("out", entry.spec.outputs))
        for tensor in group
    ]
    if missing := [name for name in needed if name not in tensors]:
        raise UsageError(
            f"the reference lacks {', '.join(missing)}: it was written for another split; write it "
            f"for {variant.split!r}"
        )


def _run_graphs(
    bundle: Bundle,
    variant: str,
    backend_name: str,
    tensors: Mapping[str, np.ndarray],
    plans: Plans | None,
) -> dict[str, dict[str, float]]:
    backend = open_backend(backend_name, plans=plans)
    try:
        return {
            name: _graph_errors(
                backend,
                plans.plan(name) if plans else bundle.verify_file(entry.file),
                entry.spec,
                graph_calls(name, entry.spec, tensors, plans),
            )
            for name, entry in bundle.manifest.variants[variant].graphs.items()
        }
    finally:
        backend.close()


@dataclass(frozen=True)
class GraphCall:
    """Inputs of one call of a graph, and what the reference says of its outputs."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def graph_calls(
    name: str, spec: GraphSpec, tensors: Mapping[str, np.ndarray], plans: Plans | None = None
) -> Iterator[GraphCall]:
    """Yield the reference's inputs of a graph, in as many calls as the sizes of plans ask for.

    Args:
        name: of the graph.
        spec: its contract.
        tensors: of the reference.
        plans: that take so many rows at once; None takes all.
    """
    rows_in = [len(tensors[f"{name}.in.{t.name}"]) for t in spec.inputs if _has_rows(t)]
    num_rows = max(rows_in, default=1)
    step = _rows_at_once(name, spec, plans) or num_rows
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        inputs, outputs = (
            {
                t.name: tensors[f"{name}.{side}.{t.name}"][rows if _has_rows(t) else ...]
                for t in group
            }
            for side, group in (("in", spec.inputs), ("out", spec.outputs))
        )
        yield GraphCall(inputs, outputs)


def _has_rows(tensor: TensorSpec) -> bool:
    return bool(tensor.dims) and isinstance(tensor.dims[0], str)


def _rows_at_once(name: str, spec: GraphSpec, plans: Plans | None) -> int | None:
    profiles = plans.manifest.graphs[name].profiles if plans else {}
    return min(
        (profiles[t.name].max[0] for t in spec.inputs if _has_rows(t) and t.name in profiles),
        default=None,
    )


def _graph_errors(
    backend: Backend, path: Path, spec: GraphSpec, calls: Iterator[GraphCall]
) -> dict[str, float]:
    context = backend.load(path, spec).context()
    errors: dict[str, float] = {}
    for call in calls:
        outputs = {t.name: backend.empty(call.outputs[t.name].shape, t.dtype) for t in spec.outputs}
        context.run({key: backend.upload(array) for key, array in call.inputs.items()}, outputs)
        for key, buffer in outputs.items():
            error = relative_error(backend.download(buffer), call.outputs[key])
            errors[key] = max(error, errors.get(key, 0.0))
    return errors


def chain_rows(
    model: refsam_trt.Engine | ReferenceModel,
    tensors: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
) -> list[ChainRow]:
    """Follow the reference's expressions through its frames and compare every frame.

    Masks of logits that are not finite have the IoU 0.

    Args:
        model: of an engine, or in PyTorch.
        tensors: of the reference.
        record: of the reference.
    """
    rows: list[ChainRow] = []
    expression_of: dict[int, int] = {}
    with model.open_video() as video:
        for index, frame in enumerate(tensors["frames"]):
            for expression, first in enumerate(record["first_frames"]):
                if first == index:
                    id_ = video.add_expression(record["expressions"][expression])
                    expression_of[id_] = expression
            for result in video.step(frame):
                expression = expression_of[result.expression_id]
                expected = tensors[f"chain.{expression}.{index}.low_res_logits"][0]
                rows.append(_chain_row(expression, result, expected))
    return rows


def _chain_row(expression: int, result: refsam_trt.Result, expected: np.ndarray) -> ChainRow:
    expected_mask = replace(result, low_res_logits=expected).mask
    is_finite = bool(np.isfinite(result.low_res_logits).all())
    return ChainRow(
        frame=result.frame_index,
        expression=expression,
        logits_error=relative_error(result.low_res_logits, expected),
        mask_iou=mask_iou(result.mask, expected_mask) if is_finite else 0.0,
        coverage=float(expected_mask.mean()),
    )
