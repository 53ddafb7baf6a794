"""What half precision does to the results, judged in PyTorch: rounding, and range.

ONNX Runtime's CPU provider computes many fp16 operators in fp32 and has no bf16, so what it says of
a half graph is a smoke test only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refsam_export.parity.compare import chain_rows, read_reference
from refsam_export.parity.figures import Parity, relative_error
from refsam_export.parity.graph_runs import GraphCall, graph_calls
from refsam_export.precision.policy import PrecisionPolicy
from refsam_export.precision.range_audit import RangeAudit, RangeFigures
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.programs import Programs, ReferenceGraphs, rounded_graphs, specs_of
from refsam_export.refsam.reference import ReferenceModel
from refsam_trt.contract.refsam import Split

BACKEND = "pytorch-rounded"


@dataclass(frozen=True)
class HalfParity:
    """What PyTorch says of a half precision.

    Attributes:
        rounded: of the graphs with every half tensor rounded, against the reference.
        range_audit: of fp16 alone, as bf16 has the range of fp32.
    """

    rounded: Parity
    range_audit: RangeFigures | None

    @property
    def parts(self) -> list[Parity | RangeFigures]:
        """What has a verdict."""
        return [self.rounded, *([self.range_audit] if self.range_audit else [])]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, as manifests hold it."""
        audit = {"range_audit": self.range_audit.to_json()} if self.range_audit else {}
        return {"rounded": self.rounded.to_json(), **audit}


def half_figures(
    variant: str,
    loaded: LoadedModel,
    split: Split,
    programs: Programs,
    policy: PrecisionPolicy,
    reference: Path,
) -> HalfParity:
    """Judge a policy on what a reference was written for (`parity.reference`).

    Args:
        variant: name of the variant in the figures.
        loaded: the model, fp32.
        split: of the programs.
        programs: fp32 program of each graph.
        policy: what is half.
        reference: folder of the reference.
    """
    tensors, record = read_reference(reference)
    graphs = rounded_graphs(programs, specs_of(loaded.model, split), policy)
    errors = {name: _graph_errors(graphs, name, tensors) for name in graphs.specs}
    rows = chain_rows(ReferenceModel.of(loaded, graphs), tensors, record)
    rounded = Parity.of(variant, policy.name, BACKEND, record, errors, rows)
    if policy.dtype != torch.float16:
        return HalfParity(rounded, None)
    audit = RangeAudit(programs, policy)
    for name in policy.graphs:
        for call in graph_calls(name, graphs.specs[name], tensors):
            audit.run(name, tuple(_inputs(call).values()))
    return HalfParity(rounded, audit.figures())


def _inputs(call: GraphCall) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in call.inputs.items()}


def _graph_errors(
    graphs: ReferenceGraphs, graph: str, tensors: Mapping[str, np.ndarray]
) -> dict[str, float]:
    errors: dict[str, float] = {}
    for call in graph_calls(graph, graphs.specs[graph], tensors):
        for name, value in graphs.run(graph, _inputs(call)).items():
            error = relative_error(value.numpy(), call.outputs[name])
            errors[name] = max(error, errors.get(name, 0.0))
    return errors
