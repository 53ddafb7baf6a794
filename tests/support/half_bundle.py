"""The stand-in bundle in fp16: every float tensor between graphs, and the arithmetic of two."""

from pathlib import Path

import fake_bundle
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refsam_trt.contract.refsam import TEXT_ENCODER


def make_half_precision(folder: Path) -> Path:
    """Turn a fresh fake bundle into an fp16 one, in place; the image stays float32."""
    manifest = fake_bundle.read_manifest(folder)
    for variant in manifest["variants"].values():
        variant["precision"] = "fp16"
        for name, entry in variant["graphs"].items():
            model = onnx.load(folder / entry["file"])
            if name != TEXT_ENCODER:  # sines of large numbers: fp32 inside
                _halve(model.graph)
            _cast_borders(model.graph, inside=name == TEXT_ENCODER)
            onnx.save_model(fake_bundle.with_shapes(model), folder / entry["file"])
            entry["precision"] = "fp16"
            for tensor in (*entry["spec"]["inputs"], *entry["spec"]["outputs"]):
                if tensor["dtype"] == "float32" and tensor["name"] != "image":
                    tensor["dtype"] = "float16"
            fake_bundle.count_again(folder, entry, model)
    fake_bundle.rewrite_manifest(folder, manifest)
    fake_bundle.refresh_files(folder)
    return folder


def _halve(graph: onnx.GraphProto) -> None:
    """Let a graph compute in fp16; its inputs and outputs are `_cast_borders`'."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "image_float16"
    if any(value.name == "image" for value in graph.input):
        cast = helper.make_node("Cast", ["image"], ["image_float16"], to=TensorProto.FLOAT16)
        graph.node.insert(0, cast)


def _cast_borders(graph: onnx.GraphProto, *, inside: bool) -> None:
    """Make inputs and outputs float16; `inside`: the graph goes on in fp32."""

    def is_border(value: onnx.ValueInfoProto) -> bool:
        is_float = value.type.tensor_type.elem_type == TensorProto.FLOAT
        return is_float and value.name != "image"

    outputs = [value.name for value in graph.output if is_border(value)]
    for value in (*graph.input, *graph.output):
        if is_border(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if inside:
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name in outputs:
                        names[index] = f"{name}_float32"
        graph.node.extend(
            helper.make_node("Cast", [f"{name}_float32"], [name], to=TensorProto.FLOAT16)
            for name in outputs
        )
