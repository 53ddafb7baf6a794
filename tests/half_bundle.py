"""The stand-in bundle with float16 between its graphs: a Cast at every border, fp32 inside."""

from pathlib import Path

import fake_bundle
import onnx
from onnx import TensorProto, helper


def make_half_precision(folder: Path) -> Path:
    """Turn a fresh fake bundle into an fp16 one, in place; the image stays float32."""
    manifest = fake_bundle.read_manifest(folder)
    for variant in manifest["variants"].values():
        variant["precision"] = "fp16"
        for entry in variant["graphs"].values():
            model = onnx.load(folder / entry["file"])
            _cast_borders(model.graph)
            onnx.save_model(model, folder / entry["file"])
            ops = [node.op_type for node in model.graph.node]
            entry["node_types"] = {op: ops.count(op) for op in set(ops)}
            for tensor in (*entry["spec"]["inputs"], *entry["spec"]["outputs"]):
                if tensor["dtype"] == "float32" and tensor["name"] != "image":
                    tensor["dtype"] = "float16"
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    return folder


def _cast_borders(graph: onnx.GraphProto) -> None:
    def is_border(value: onnx.ValueInfoProto) -> bool:
        is_float = value.type.tensor_type.elem_type == TensorProto.FLOAT
        return is_float and value.name != "image"

    inputs = {value.name for value in graph.input if is_border(value)}
    outputs = {value.name for value in graph.output if is_border(value)}
    nodes = list(graph.node)
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in inputs | outputs:
                    names[index] = f"{name}_float32"
    for value in (*graph.input, *graph.output):
        if is_border(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    before = [
        helper.make_node("Cast", [name], [f"{name}_float32"], to=TensorProto.FLOAT)
        for name in sorted(inputs)
    ]
    after = [
        helper.make_node("Cast", [f"{name}_float32"], [name], to=TensorProto.FLOAT16)
        for name in sorted(outputs)
    ]
    del graph.node[:]
    graph.node.extend([*before, *nodes, *after])
