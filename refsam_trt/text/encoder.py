"""Expression -> text embedding: the caches in their order, then the text graph if it is needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from refsam_trt.backends.base import Backend, Graph
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.contract.vocabulary import warn_of_unseen_words
from refsam_trt.errors import BackendError, BundleError, ExpressionError, UsageError, shown
from refsam_trt.text.cache import TextCache, TextEmbedding
from refsam_trt.text.disk import TextDiskCache
from refsam_trt.text.tokenizer import Tokenizer

TextMode = Literal["lazy", "resident", "cache-only"]

MEMORY_CACHE_SIZE = 256
"""Embeddings kept in memory, about 0.1 MiB each; the least recently used go first."""


@dataclass(frozen=True)
class TextStatistics:
    """How often an embedding was found in memory, bundle or disk cache, or had to be computed."""

    num_memory_hits: int = 0
    num_bundle_hits: int = 0
    num_disk_hits: int = 0
    num_misses: int = 0


class TextEncoder:
    """Embeds expressions, each once. May be shared by threads.

    Args:
        tokenizer: of the bundle.
        backend: runs the text graph.
        tensors: the expression-scope tensors that the step needs, among `words`, `sentence` and
            `text_values`.
        load_graph: loads the text graph; None if the bundle has none.
        cache: the bundle's text cache, if it has one.
        disk: embeddings that this text graph computed earlier, if they are to be kept.
        mode: `lazy` loads the graph at the first unknown expression and drops it at `release`;
            `resident` loads it now and keeps it; `cache-only` never loads it.
        vocabulary: words that the model was trained on; None where they are not known. Expressions
            with others get a warning, when they are not in memory yet.

    Raises:
        UsageError: an unknown mode, or `resident` without a text graph.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        backend: Backend,
        tensors: tuple[TensorSpec, ...],
        *,
        load_graph: Callable[[], Graph] | None,
        cache: TextCache | None = None,
        disk: TextDiskCache | None = None,
        mode: TextMode = "lazy",
        vocabulary: Iterable[str] | None = None,
    ) -> None:
        if mode not in get_args(TextMode):
            raise UsageError(f"text={mode!r} is not one of {', '.join(get_args(TextMode))}")
        if mode == "resident" and load_graph is None:
            raise UsageError(
                'text="resident" needs the text graph, which this bundle lacks; use '
                'text="cache-only", or export without --without-text-encoder'
            )
        self._tokenizer = tokenizer
        self._backend = backend
        self._tensors = tensors
        self._load_graph = load_graph
        self._cache = cache
        self._disk = disk
        self._mode = mode
        self._vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self._memory: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._memory_lock = threading.Lock()
        self._graph_lock = threading.Lock()
        self._counts = dict.fromkeys(TextStatistics.__dataclass_fields__, 0)
        self._graph = load_graph() if mode == "resident" and load_graph else None

    @property
    def statistics(self) -> TextStatistics:
        """Where embeddings came from so far."""
        with self._memory_lock:
            return TextStatistics(**self._counts)

    @property
    def is_loaded(self) -> bool:
        """Whether the text graph is in memory."""
        return self._graph is not None

    def encode(self, expression: str) -> tuple[str, TextEmbedding]:
        """Return the cleaned-up expression and its embedding.

        Raises:
            ExpressionError: unusable, or unknown where only cached expressions work.
            BackendError: the text graph cannot be loaded or run, or overflowed.
        """
        cleaned = self._tokenizer.clean(expression)
        embedding = self._look_up(cleaned)
        if embedding is None:
            with self._graph_lock:
                # Another thread may have been faster.
                embedding = self._look_up(cleaned) or self._find(cleaned)
        return cleaned, embedding

    def release(self) -> None:
        """Drop the text graph in mode `lazy`; the next unknown expression loads it again.

        Does nothing while another thread embeds: a frame must not wait for somebody's text.
        """
        is_due = self._graph is not None and self._mode == "lazy"
        if is_due and self._graph_lock.acquire(blocking=False):
            self._graph = None
            self._graph_lock.release()

    def close(self) -> None:
        """Drop the text graph and every embedding."""
        with self._graph_lock, self._memory_lock:
            self._graph = None
            self._memory.clear()

    def _look_up(self, cleaned: str) -> TextEmbedding | None:
        with self._memory_lock:
            embedding = self._memory.get(cleaned)
            if embedding is not None:
                self._memory.move_to_end(cleaned)
                self._counts["num_memory_hits"] += 1
            return embedding

    def _find(self, cleaned: str) -> TextEmbedding:
        counter, embedding = self._cached_or_computed(cleaned)
        self._check(cleaned, embedding)
        warn_of_unseen_words(self._vocabulary, cleaned)
        if counter == "num_misses" and self._disk:
            self._disk.put(cleaned, embedding)
        with self._memory_lock:
            self._counts[counter] += 1
            self._memory[cleaned] = embedding
            if len(self._memory) > MEMORY_CACHE_SIZE:
                self._memory.popitem(last=False)
        return embedding

    def _cached_or_computed(self, cleaned: str) -> tuple[str, TextEmbedding]:
        if self._cache and (embedding := self._cache.get(cleaned)):
            return "num_bundle_hits", embedding
        ids = self._tokenizer.encode(cleaned)
        if self._disk and (embedding := self._disk.get(cleaned, num_words=len(ids))):
            return "num_disk_hits", embedding
        return "num_misses", self._compute(cleaned, ids)

    def _compute(self, cleaned: str, ids: np.ndarray) -> TextEmbedding:
        if self._mode == "cache-only" or self._load_graph is None:
            raise self._unknown(cleaned)
        if self._graph is None:
            self._graph = self._load_graph()
        outputs = run_text_graph(self._backend, self._graph, ids[None])
        return TextEmbedding(outputs["words"], outputs["sentence"], outputs.get("text_values"))

    def _check(self, cleaned: str, embedding: TextEmbedding) -> None:
        """Refuse what the step cannot take, wherever it is from."""
        arrays = embedding.tensors()
        num_words = embedding.words.shape[0] if embedding.words.ndim else 0
        for spec in self._tensors:
            where = f"text embedding of {shown(cleaned)}: {spec.name}"
            expected = spec.shape({"B": 1, "N": min(max(num_words, 1), self._tokenizer.max_words)})
            shape = arrays[spec.name].shape if spec.name in arrays else None
            if shape != expected[1:]:
                raise BundleError(
                    f"{where} has shape {shape}, the step needs {expected[1:]}; export the bundle "
                    "again"
                )
            if arrays[spec.name].dtype not in (np.float32, np.float16):
                raise BundleError(
                    f"{where} holds {arrays[spec.name].dtype}, expected float32 or float16; export "
                    "the bundle again"
                )
            if not np.isfinite(arrays[spec.name]).all():
                raise BackendError(
                    f"{where} has values that are not finite: the text graph overflowed; use a "
                    "variant of higher precision"
                )

    def _unknown(self, cleaned: str) -> ExpressionError:
        reason = (
            "this bundle has no text encoder"
            if self._load_graph is None
            else 'text="cache-only" never runs the text encoder'
        )
        num_cached = len(self._cache.expressions) if self._cache else 0
        places = f"among the {num_cached} cached in the bundle"
        if self._disk:
            places += f", nor in {self._disk.folder}"
        return ExpressionError(
            f"expression {shown(cleaned)} is not {places}, and {reason}; write it on a line of "
            "FILE and export the bundle again with `refsam-export ... --expressions FILE`"
        )


def run_text_graph(backend: Backend, graph: Graph, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Run the text graph on one expression: int64 [1, N] -> its outputs without the leading 1."""
    inputs = {
        "input_ids": backend.upload(ids),
        "attention_mask": backend.upload(np.ones_like(ids)),
    }
    sizes = {"B": 1, "N": ids.shape[1]}
    spec: GraphSpec = graph.spec
    outputs = {t.name: backend.empty(t.shape(sizes), t.dtype) for t in spec.outputs}
    graph.context().run(inputs, outputs)
    return {name: backend.download(buffer)[0] for name, buffer in outputs.items()}
