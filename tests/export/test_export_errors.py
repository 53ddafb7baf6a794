"""Errors of the exporter that no checkpoint causes: broken promises, and what is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from refsam_export.onnx import export
from refsam_export.refsam.model import sam
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import InternalError, MissingExtraError

X, Y = (TensorSpec(name, "float32", ("B", 2), "frame") for name in "xy")


def exported(input_name: str, *op_types: str) -> Any:
    """A stand-in for the exporter's model: one input, one output, nodes of these types."""

    def value(name: str) -> Any:
        return SimpleNamespace(name=name, metadata_props={}, shape=None)

    nodes = [
        SimpleNamespace(op_type=kind, metadata_props={}, doc_string="", outputs=[])
        for kind in op_types
    ]
    graph = SimpleNamespace(
        inputs=[value(input_name)],
        outputs=[value("y")],
        initializers={},
        metadata_props={},
        all_nodes=lambda: nodes,
    )
    return SimpleNamespace(doc_string="", metadata_props={}, graph=graph)


def test_tensors_of_another_name_break_the_contract():
    export._finish(exported("x", "Add"), GraphSpec((X,), (Y,)))
    with pytest.raises(InternalError, match=r"exported tensors \['z'\] break the contract"):
        export._finish(exported("z", "Add"), GraphSpec((X,), (Y,)))


@pytest.mark.parametrize("op_type", sorted(export.FORBIDDEN_OPS))
def test_operators_that_compilers_cannot_take_are_forbidden(op_type: str):
    with pytest.raises(InternalError, match=rf"holds forbidden operators \['{op_type}'\]"):
        export._finish(exported("x", "Add", op_type), GraphSpec((X,), (Y,)))


def test_an_exporter_that_returns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    with pytest.raises(InternalError, match=r"torch\.onnx\.export returned nothing"):
        export.export_graph(nn.Identity(), GraphSpec((X,), (Y,)), tmp_path / "g.onnx", {"B": 4})
    assert not list(tmp_path.iterdir())


def test_sam_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"refsam-trt\[export\].*segment-anything missing"):
        sam._private_copies()
