"""The manifest of a bundle: everything that is known about it, strictly typed.

This module is the schema and its canonical bytes, whose SHA-256 is the bundle id. The `bundle` room
reads it from disk and checks files against it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from refsam_trt.contract.specs import GraphSpec
from refsam_trt.image.preprocess import PreprocessConfig

SCHEMA_VERSION = 3


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a manifest, or the whole; a field that this version does not know is refused."""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: JSON, UTF-8, keys sorted, two-space indent, final newline."""
        raw = msgspec.json.encode(self, order="sorted")
        return msgspec.json.format(raw, indent=2) + b"\n"


class FileEntry(Record, frozen=True):
    """Size in bytes and SHA-256 of one file of the bundle."""

    size_bytes: int
    sha256: str


class Source(Record, frozen=True):
    """A file the weights came from: its role, its name (no folder) and its SHA-256."""

    role: str
    name: str
    size_bytes: int
    sha256: str


class TrainingRun(Record, frozen=True):
    """One run of `refsam-train`: name and SHA-256 of its recipe, kind of data, steps done."""

    recipe: str
    recipe_sha256: str
    data: str
    num_steps: int


class Training(Record, frozen=True):
    """How the weights were trained, as far as it is known: the runs in their order.

    `vocabulary` holds every word of the expressions that they were trained on, sorted; None where
    there is no such list, as with a text encoder that knows a language from elsewhere.
    """

    runs: tuple[TrainingRun, ...]
    vocabulary: tuple[str, ...] | None = None


class Weights(Record, frozen=True):
    """Where the weights came from.

    `random_init_seed` is None for weights that all come from files; otherwise `num_random_tensors`
    tensors were filled with `realistic_init(seed)` and no accuracy can be expected. `training` is
    None where the files do not tell.
    """

    sources: tuple[Source, ...]
    random_init_seed: int | None = None
    num_random_tensors: int = 0
    training: Training | None = None


class Tokenizer(Record, frozen=True):
    """Expression -> token ids; `file` is in the format of the `tokenizers` library."""

    file: str
    lowercase: bool
    pad_id: int


class GraphEntry(Record, frozen=True):
    """One ONNX graph: its file, its tensors, what it is made of, and what it computes in.

    `node_types` counts nodes per operator type, `node_dtypes` per element type that they compute in
    (`onnx_file.types`). `flops` are those of one call with M = B = 1 and N = 16, per element type.
    `precision` of a quantised graph names its base too: `int8-fp16`.
    """

    file: str
    spec: GraphSpec
    precision: str
    node_types: dict[str, int]
    node_dtypes: dict[str, int]
    flops: dict[str, int]


class Variant(Record, frozen=True):
    """One set of graphs: a precision, an attention form and a split.

    `rewrites` names the exporter's exact rewrites of the image encoder's blocks. A graph may be of
    a higher precision than its variant: fp16 leaves the text encoder in fp32, and int8 quantises
    the image encoder alone. Variants may share files.
    `weight_storage` is `fp16` where weights that fp16 holds exactly are stored so and cast by the
    graph; None where they are stored as the graph computes with them.
    """

    precision: str
    attention: str
    split: str
    rewrites: tuple[str, ...]
    opset: int
    graphs: dict[str, GraphEntry]
    weight_storage: str | None = None


class StateEntry(Record, frozen=True):
    """A tensor kept per video and expression: step output `output` becomes step input `input`."""

    input: str
    output: str
    is_present: str


class Limits(Record, frozen=True):
    """Largest sizes a graph accepts: frames, expressions, and words with the end token."""

    max_frames: int
    max_expressions: int
    max_words: int


class Quantisation(Record, frozen=True):
    """What the quantised variants of a bundle are, and where they came from.

    Attributes:
        scheme: their precision.
        base_bundle: id of the bundle that all else was taken from.
        layers: module paths of the layers whose products are quantised, in the model's order; the
            image encoder of each quantised variant has as many such products.
        record: what calibration found (ranges, ranking, verified accuracy); for people.
    """

    scheme: str
    base_bundle: str
    layers: tuple[str, ...]
    record: dict[str, Any]


class Manifest(Record, frozen=True):
    """The whole manifest; `docs/format/bundle.md` explains every field.

    `configuration` is the exporter's model configuration and opaque to the runtime. `parity` holds
    per variant the figures measured against the PyTorch reference.
    """

    schema_version: int
    family: str
    preset: str
    configuration: dict[str, Any]
    weights: Weights
    tools: dict[str, str]
    preprocess: PreprocessConfig
    tokenizer: Tokenizer
    variants: dict[str, Variant]
    state: tuple[StateEntry, ...]
    limits: Limits
    parity: dict[str, Any]
    files: dict[str, FileEntry]
    source: str | None = None
    text_cache: str | None = None
    quantisation: Quantisation | None = None

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The words that the model was trained on; None where they are not known."""
        return self.weights.training.vocabulary if self.weights.training else None
