"""Graphs of a bundle run alone, one after the other, on the inputs of a written reference.

No two of them are loaded at a time, and the image encoder sees one frame at a time: a full-size
model needs no more memory here than its largest graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refsam_export.parity.figures import relative_error
from refsam_trt.backends.base import Backend, Graph
from refsam_trt.backends.select import open_backend
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.plans import Plans
from refsam_trt.contract.manifest import Variant
from refsam_trt.contract.refsam import DECODER_STEP, TEXT_ENCODER
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.text.disk import TextDiskCache, TextKey
from refsam_trt.text.encoder import TextEncoder
from refsam_trt.text.tokenizer import Tokenizer

_FRAMES = "M"


@dataclass(frozen=True)
class KnownTexts:
    """Expressions to embed while the text graph is loaded, and the cache folder to keep them in.

    `refsam_trt.load(text_cache=folder)` then finds them and need not load it a second time.
    """

    expressions: Sequence[str]
    folder: Path


@dataclass(frozen=True)
class GraphRuns:
    """A variant of a bundle, or plans that stand for its graphs, on an open backend."""

    bundle: Bundle
    variant: Variant
    backend: Backend
    plans: Plans | None

    def load(self, graph: str) -> Graph:
        """Load a graph; it goes with its last user."""
        entry = self.variant.graphs[graph]
        path = self.plans.plan(graph) if self.plans else self.bundle.verify_file(entry.file)
        return self.backend.load(path, entry.spec)


@contextmanager
def open_runs(
    bundle: Bundle, variant: Variant, backend: str, plans: Plans | None
) -> Iterator[GraphRuns]:
    """Open the backend for a block.

    Raises:
        RefsamError: as of `open_backend`.
    """
    opened = open_backend(backend, plans=plans, precision=None if plans else variant.precision)
    try:
        yield GraphRuns(bundle, variant, opened, plans)
    finally:
        opened.close()


def graph_errors(
    runs: GraphRuns,
    name: str,
    tensors: Mapping[str, np.ndarray],
    texts: KnownTexts | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Load a graph, run it on the reference's inputs, and return the error of each output.

    Args:
        runs: what is run.
        name: of the graph.
        tensors: of the reference.
        texts: to embed too, where it is the text graph.
        watch: told of every call that is done.
    """
    graph, spec = runs.load(name), runs.variant.graphs[name].spec
    context, backend = graph.context(), runs.backend
    errors: dict[str, float] = {}
    for call in graph_calls(name, spec, tensors, runs.plans):
        outputs = {t.name: backend.empty(call.outputs[t.name].shape, t.dtype) for t in spec.outputs}
        context.run({key: backend.upload(array) for key, array in call.inputs.items()}, outputs)
        for key, buffer in outputs.items():
            error = relative_error(backend.download(buffer), call.outputs[key])
            errors[key] = max(error, errors.get(key, 0.0))
        watch(name)
    if texts is not None and name == TEXT_ENCODER:
        _embed(runs, graph, texts)
    return errors


def _embed(runs: GraphRuns, graph: Graph, texts: KnownTexts) -> None:
    """Embed expressions as the runtime does, where its engine will look for them."""
    manifest = runs.bundle.manifest
    limits = (runs.plans or runs.bundle).manifest.limits
    tokenizer = Tokenizer(
        runs.bundle.verify_file(manifest.tokenizer.file),
        lowercase=manifest.tokenizer.lowercase,
        max_words=limits.max_words,
    )
    step = runs.variant.graphs[DECODER_STEP].spec
    scoped = [t for t in step.inputs if t.scope == "expression" and t.name != "word_mask"]
    key = TextKey(
        runs.bundle.content_id(manifest.tokenizer.file),
        runs.bundle.content_id(runs.variant.graphs[TEXT_ENCODER].file),
        runs.backend.name,
    )
    encoder = TextEncoder(
        tokenizer,
        runs.backend,
        tuple(scoped),
        load_graph=lambda: graph,
        disk=TextDiskCache(texts.folder, key, tuple(scoped)),
    )
    for text in texts.expressions:
        encoder.encode(text)


@dataclass(frozen=True)
class GraphCall:
    """Inputs of one call of a graph, and what the reference says of its outputs."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def graph_calls(
    name: str, spec: GraphSpec, tensors: Mapping[str, np.ndarray], plans: Plans | None = None
) -> Iterator[GraphCall]:
    """Yield the reference's inputs of a graph in calls of one frame, or of every expression.

    Args:
        name: of the graph.
        spec: its contract.
        tensors: of the reference.
        plans: that take so many rows at once.
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
    if plans is None:
        return 1 if any(t.dims[:1] == (_FRAMES,) for t in spec.inputs) else None
    profiles = plans.manifest.graphs[name].profiles
    return min(
        (profiles[t.name].max[0] for t in spec.inputs if _has_rows(t) and t.name in profiles),
        default=None,
    )
