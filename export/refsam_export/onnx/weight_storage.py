"""Weights stored in fp16 and cast to fp32 when the graph is loaded: half the bytes, same values.

Only initialisers whose every value fp16 holds exactly are stored so; the others stay as they are.
The arithmetic of the graph does not change: a runtime folds the casts once, at load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx_ir
from torch import Tensor

from refsam_trt.errors import CheckpointError

WeightStorage = Literal["fp32", "fp16"]
# A smaller tensor would save less than the cast that it needs costs.
_MIN_ELEMENTS = 1024


def check_exact_fp16(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that fp16 cannot hold exactly.

    Raises:
        CheckpointError: some value would change; the text names the first tensor with one.
    """
    inexact = [key for key, value in tensors.items() if not bool((value.half() == value).all())]
    if inexact:
        raise CheckpointError(
            f"{inexact[0]} holds values that fp16 cannot hold exactly ({len(inexact)} of "
            f"{len(tensors)} tensors do), and --weight-storage fp16 never rounds; round them first "
            "(`refsam-train publish` writes such weights), or use --weight-storage fp32"
        )


def store_exact_fp16(model: Any) -> None:
    """Store initialisers in fp16 where that loses nothing.

    Args:
        model: `onnx_ir.Model`, changed in place; sub-graphs are left alone.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        stored = _exact_fp16(value.const_value)
        if stored is None:
            continue
        name = f"{value.name}.fp16"
        compact = onnx_ir.Value(
            name=name,
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
            shape=onnx_ir.Shape(stored.shape),
            const_value=onnx_ir.Tensor(stored, name=name),
        )
        cast = onnx_ir.node("Cast", [compact], attributes={"to": onnx_ir.DataType.FLOAT.value})
        widened = cast.outputs[0]
        widened.type, widened.shape = value.type, value.shape
        value.replace_all_uses_with(widened)
        del graph.initializers[value.name]
        widened.name = value.name
        graph.register_initializer(compact)
        graph.insert_before(graph[0], cast)


def _exact_fp16(tensor: Any) -> np.ndarray[Any, Any] | None:
    if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _MIN_ELEMENTS:
        return None
    wide = tensor.numpy()
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(np.float32), wide) else None
