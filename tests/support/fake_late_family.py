"""A made-up model family whose results come at the end: five tiny graphs and a host-side match.

A backbone and a proposer see every frame; a text graph embeds each expression; a fusion graph
scores the proposals for an expression. The host averages the scores over the video, picks the best
proposal, and only then does the mask graph run, frame by frame.
"""

from pathlib import Path

import fake_bundle
import msgspec
import numpy as np
import onnx
from onnx import parser

from refsam_trt.backends.base import Buffer
from refsam_trt.contract.manifest import Variant
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import StateError
from refsam_trt.families.base import FamilyParts
from refsam_trt.result.raw_frame import RawFrame

FAMILY = "late"
NUM_PROPOSALS, LOW_RES = 3, 8

_GRAPHS = {
    "backbone": (
        "float[1, 3, 32, 32] image",
        "float[1, 3, 8, 8] features",
        "features = AveragePool<kernel_shape = [4, 4], strides = [4, 4]>(image)",
    ),
    "proposer": (
        "float[1, 3, 8, 8] features",
        "float[1, 3] proposals",
        "proposals = ReduceMean<keepdims = 0>(features, axes)",
    ),
    "text": ("float[1, 1] length", "float[1, 3] query", "query = Mul(length, row)"),
    "fusion": (
        "float[1, 3] proposals, float[1, 3] query",
        "float[1, 3] scores",
        "angle = Mul(proposals, query)\n scores = Sin(angle)",
    ),
    "mask": (
        "float[1, 3, 8, 8] features, float[1, 3] choice",
        "float[1, 1, 8, 8] low_res_logits",
        """columns = Reshape(features, columns_shape)
        choice_row = Unsqueeze(choice, one)
        picked = MatMul(choice_row, columns)
        low_res_logits = Reshape(picked, map_shape)""",
    ),
}
_CONSTANTS = {
    "axes": np.array([2, 3]),
    "one": np.array([1]),
    "columns_shape": np.array([1, 3, 64]),
    "map_shape": np.array([1, 1, 8, 8]),
    "row": np.array([[1, 2, 3]], np.float32),
}


def make_late_bundle(folder: Path) -> Path:
    """Write a bundle of this family to `folder`, which must not exist."""
    fake_bundle.make_bundle(folder, text_encoder=False)
    manifest = fake_bundle.read_manifest(folder)
    entries = {}
    for name, (inputs, outputs, body) in _GRAPHS.items():
        header = f'<ir_version: 10, opset_import: ["" : 20]> {name} ({inputs}) => ({outputs})'
        model = parser.parse_model(f"{header} {{ {body} }}")
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, key)
            for key, value in _CONSTANTS.items()
            if key in body
        )
        onnx.save_model(fake_bundle.with_shapes(model), folder / f"graphs/{name}.onnx")
        spec = GraphSpec(_tensors(model.graph.input), _tensors(model.graph.output))
        entries[name] = fake_bundle.entry_of(folder, f"graphs/{name}.onnx", spec, model)
    variant = Variant("fp32", "plain", "whole", (), 20, entries)
    manifest |= {
        "family": FAMILY,
        "state": [],
        "variants": {"fp32-late": msgspec.to_builtins(variant)},
        "files": msgspec.to_builtins(fake_bundle.file_entries(folder)),
    }
    fake_bundle.rewrite_manifest(folder, manifest)
    return folder


def _tensors(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            "float32",
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
            "frame",
        )
        for value in values
    )


class LateFamily:
    """The five graphs."""

    def __init__(self, parts: FamilyParts) -> None:
        self.backend = parts.backend
        self.graphs = {name: parts.load_graph(name) for name in _GRAPHS}

    def open_video(self) -> "LateVideo":
        return LateVideo(self)

    def close(self) -> None:
        self.graphs.clear()


class LateVideo:
    """Keeps every frame's features on the device until `finish`."""

    def __init__(self, family: LateFamily) -> None:
        self._backend = family.backend
        self._specs = {name: graph.spec for name, graph in family.graphs.items()}
        self._contexts = {name: graph.context() for name, graph in family.graphs.items()}
        self.expressions: dict[int, str] = {}
        self._frames: list[dict[str, Buffer]] = []

    def add_expression(self, expression_id: int, text: str) -> None:
        self.expressions[expression_id] = text

    def remove_expression(self, expression_id: int) -> None:
        del self.expressions[expression_id]

    def reset(self) -> None:
        self._frames.clear()

    def reset_track(self, expression_id: int) -> None:
        pass

    def step(self, image: np.ndarray, frame_index: int) -> None:
        features = self._run("backbone", {"image": self._backend.upload(image)})
        self._frames.append(features | self._run("proposer", features))

    def finish(self) -> list[RawFrame]:
        if not self._frames:
            return []
        choices = {id_: self._match(text) for id_, text in self.expressions.items()}
        frames = [
            self._raw_frame(index, tensors["features"], choices)
            for index, tensors in enumerate(self._frames)
        ]
        self._frames.clear()
        return frames

    def save(self) -> dict[str, np.ndarray]:
        raise StateError("this family decides at the end of a video and cannot be interrupted")

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        raise StateError("this family cannot go on from a saved state")

    def _match(self, text: str) -> np.ndarray:
        length = self._backend.upload(np.array([[len(text)]], np.float32))
        query = self._run("text", {"length": length})
        scores = [
            self._run("fusion", query | {"proposals": frame["proposals"]})["scores"]
            for frame in self._frames
        ]
        mean = np.mean([self._backend.download(score)[0] for score in scores], axis=0)
        return np.eye(NUM_PROPOSALS, dtype=np.float32)[int(mean.argmax())]

    def _raw_frame(self, index: int, features: Buffer, choices: dict[int, np.ndarray]) -> RawFrame:
        logits = []
        for choice in choices.values():
            inputs = {"features": features, "choice": self._backend.upload(choice[None])}
            logits.append(self._backend.download(self._run("mask", inputs)["low_res_logits"])[0, 0])
        scores = np.zeros(len(choices), np.float32)
        texts = tuple(self.expressions.values())
        return RawFrame(index, tuple(choices), texts, np.stack(logits), scores)

    def _run(self, name: str, inputs: dict[str, Buffer]) -> dict[str, Buffer]:
        spec = self._specs[name]
        outputs = {t.name: self._backend.empty(t.shape({}), t.dtype) for t in spec.outputs}
        self._contexts[name].run(inputs, outputs)
        return outputs
