"""Runs a bundle on the inputs of a written reference and states the differences.

Imports neither torch nor onnx: in a process of its own (`refsam_trt.command.in_process`), the
figures are those of the runtime that people embed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import refsam_trt
from refsam_export.files.tensor_stream import StoredTensors
from refsam_export.parity.figures import BOUNDS, ChainRow, Parity, relative_error
from refsam_export.parity.graph_runs import KnownTexts, graph_errors, open_runs
from refsam_trt.backends.select import AUTO
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.plans import plans_for
from refsam_trt.contract.manifest import Variant
from refsam_trt.errors import UsageError
from refsam_trt.session.variants import choose_variant

if TYPE_CHECKING:
    from refsam_export.refsam.reference import ReferenceModel

TENSORS = "reference.safetensors"
RECORD = "reference.json"
MAX_RELATIVE_ERROR = BOUNDS["fp32"].max_relative_error
MIN_MASK_IOU = BOUNDS["fp32"].min_mask_iou

Watch = Callable[[str], None]
"""Told of a piece of work that is done, by its name."""


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
    watch: Watch = lambda _: None,
) -> Parity:
    """Measure a bundle against a reference written by `parity.reference`.

    Graphs are loaded one by one, and the text encoder never beside another one: the chain takes
    its embeddings from the run before, through the runtime's cache on disk.

    Args:
        folder: the bundle.
        reference: folder with the reference's tensors and record.
        variant: which variant; None takes the bundle's default.
        backend: that runs the graphs.
        plans: folder of `refsam-build`, whose plans run instead.
        watch: told of every call of a graph and every frame that is done.

    Raises:
        UsageError: the reference is of another split than the variant.
        RefsamError: as of `refsam_trt.load`.
    """
    tensors, record = read_reference(reference)
    bundle = open_bundle(folder, verify="deferred")
    variant = choose_variant(bundle.manifest, variant)
    of = bundle.manifest.variants[variant]
    _check_reference(of, tensors)
    built = plans_for(bundle, plans, variant) if plans else None
    with tempfile.TemporaryDirectory(prefix="refsam-parity-") as scratch:
        texts = KnownTexts(record["expressions"], Path(scratch))
        with open_runs(bundle, of, backend, built) as runs:
            backend = runs.backend.name
            graphs = {name: graph_errors(runs, name, tensors, texts, watch) for name in of.graphs}
        with refsam_trt.load(
            bundle, variant=variant, backend=backend, plans=plans, text_cache=texts.folder
        ) as engine:
            chain = chain_rows(engine, tensors, record, watch)
    return Parity.of(variant, of.precision, backend, record, graphs, chain)


def read_reference(folder: Path) -> tuple[StoredTensors, dict[str, Any]]:
    """Return tensors and record of a written reference; a tensor is read when it is asked for."""
    tensors = StoredTensors(folder / TENSORS)
    return tensors, json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _check_reference(variant: Variant, tensors: Mapping[str, np.ndarray]) -> None:
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


def chain_rows(
    model: refsam_trt.Engine | ReferenceModel,
    tensors: StoredTensors,
    record: Mapping[str, Any],
    watch: Watch = lambda _: None,
) -> list[ChainRow]:
    """Follow the reference's expressions through its frames and compare every frame.

    Masks of logits that are not finite have the IoU 0.

    Args:
        model: of an engine, or in PyTorch.
        tensors: of the reference.
        record: of the reference.
        watch: told of every frame that is done.
    """
    rows: list[ChainRow] = []
    expression_of: dict[int, int] = {}
    with model.open_video() as video:
        for index in range(record["num_frames"]):
            for expression, first in enumerate(record["first_frames"]):
                if first == index:
                    id_ = video.add_expression(record["expressions"][expression])
                    expression_of[id_] = expression
            for result in video.step(tensors.row("frames", index)):
                expression = expression_of[result.expression_id]
                expected = tensors[f"chain.{expression}.{index}.low_res_logits"][0]
                rows.append(_chain_row(expression, result, expected))
            watch(f"chain frame {index + 1}")
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
