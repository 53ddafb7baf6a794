"""A made-up model family whose results come at the end: five tiny graphs and a host-side match.

A backbone and a proposer see every frame; a text graph embeds each expression; a fusion graph
scores the proposals for an expression. The host averages the scores over the video, picks the best
proposal, and only then does the mask graph run, frame by frame.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fake_bundle
import msgspec
import numpy as np
import onnx
from onnx import parser

from refsam_trt.backends.base import Buffer, Event
from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.contract.registry import FamilyModules
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import StateError
from refsam_trt.families.base import FamilyParts, Row
from refsam_trt.result.raw_frame import RawFrame

FAMILY = "late"
MODULES = FamilyModules(contract=__name__, runtime=__name__)
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


def check(manifest: Manifest) -> None:
    """Refuse manifests that lack graphs which no such model can do without."""
    for variant in manifest.variants.values():
        assert {"backbone", "mask"} <= variant.graphs.keys()


def open_family(parts: FamilyParts) -> "LateFamily":
    """Load the graphs."""
    return LateFamily(parts)


class LateFamily:
    """The five graphs."""

    is_late = True
    can_embed = True

    def __init__(self, parts: FamilyParts) -> None:
        self.backend = parts.backend
        self.graphs = {name: parts.load_graph(name) for name in _GRAPHS}

    def embed(self, text: str) -> tuple[str, np.ndarray]:
        return text, np.array([[len(text)]], np.float32)

    def open_encoder(self) -> "LateEncoder":
        return LateEncoder(self)

    def open_track(self) -> "LateTrack":
        return LateTrack(self)

    def close(self) -> None:
        self.graphs.clear()


class _Runner:
    """Execution contexts of some graphs on one stream."""

    def __init__(self, family: LateFamily, *names: str) -> None:
        self.backend = family.backend
        self.stream = family.backend.new_stream()
        self._graphs = {name: family.graphs[name] for name in names}
        self._contexts = {name: graph.context() for name, graph in self._graphs.items()}

    def run(self, name: str, inputs: dict[str, Buffer]) -> dict[str, Buffer]:
        spec = self._graphs[name].spec
        outputs = {t.name: self.backend.empty(t.shape({}), t.dtype) for t in spec.outputs}
        self._contexts[name].run(inputs, outputs)
        return outputs


@dataclass(frozen=True)
class LateFeatures:
    tensors: dict[str, Buffer]
    ready: Event

    def release(self) -> None:
        """Keep the memory: a track may hold on to it until the end of the video."""


class LateEncoder(_Runner):
    """Backbone and proposer."""

    def __init__(self, family: LateFamily) -> None:
        super().__init__(family, "backbone", "proposer")

    def encode(self, image: np.ndarray | Buffer) -> LateFeatures:
        with self.stream:
            uploaded = self.backend.upload(image) if isinstance(image, np.ndarray) else image
            features = self.run("backbone", {"image": uploaded})
            tensors = features | self.run("proposer", features)
            return LateFeatures(tensors, self.stream.record())


class LateTrack(_Runner):
    """Keeps every frame's features on the device until `finish`."""

    def __init__(self, family: LateFamily) -> None:
        super().__init__(family, "text", "fusion", "mask")
        self._rows: Sequence[Row] = ()
        self._frames: list[LateFeatures] = []

    def set_rows(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def forget(self, ids: Collection[int]) -> None:
        pass

    def reset(self) -> None:
        self._frames.clear()

    def decode(self, features: LateFeatures, frame_index: int) -> list[RawFrame]:
        assert frame_index == len(self._frames)
        self._frames.append(features)
        return []

    def finish(self) -> Iterator[RawFrame]:
        frames, self._frames = self._frames, []
        with self.stream:
            for frame in frames:
                self.stream.wait(frame.ready)
            choices = [self._match(row.embedding, frames) for row in self._rows] if frames else []
        for index, frame in enumerate(frames):
            with self.stream:
                raw = self._raw_frame(index, frame.tensors["features"], choices)
            yield raw

    def save(self) -> dict[str, np.ndarray]:
        raise StateError("this family decides at the end of a video and cannot be interrupted")

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        raise StateError("this family cannot go on from a saved state")

    def _match(self, length: np.ndarray, frames: list[LateFeatures]) -> np.ndarray:
        query = self.run("text", {"length": self.backend.upload(length)})
        scores = [
            self.run("fusion", query | {"proposals": frame.tensors["proposals"]})["scores"]
            for frame in frames
        ]
        mean = np.mean([self.backend.download(score)[0] for score in scores], axis=0)
        return np.eye(NUM_PROPOSALS, dtype=np.float32)[int(mean.argmax())]

    def _raw_frame(self, index: int, features: Buffer, choices: list[np.ndarray]) -> RawFrame:
        logits = []
        for choice in choices:
            inputs = {"features": features, "choice": self.backend.upload(choice[None])}
            logits.append(self.backend.download(self.run("mask", inputs)["low_res_logits"])[0, 0])
        ids, texts = zip(*((row.id, row.text) for row in self._rows), strict=True)
        return RawFrame(index, ids, texts, np.stack(logits), np.zeros(len(choices), np.float32))
