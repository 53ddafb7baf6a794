"""Expression -> text embedding: clean-up, tokens, caches, and the text graph when it is needed."""

from __future__ import annotations

import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from refsam_trt.backends.base import Backend, Graph
from refsam_trt.errors import BundleError, ExpressionError, UsageError
from refsam_trt.families.base import GraphSpec, TensorSpec
from refsam_trt.text_cache import TextCache, TextEmbedding, write_text_cache

TextMode = Literal["lazy", "resident", "cache-only"]

MAX_CHARACTERS = 4096
"""Longest expression that is looked at; none of 64 tokens comes near it."""

MEMORY_CACHE_SIZE = 256
"""Embeddings kept in memory, about 0.1 MiB each; the least recently used go first."""


class Tokenizer:
    """Cleans expressions up and turns them into token ids (refsam-model 3.1). Never truncates.

    Args:
        path: file of the `tokenizers` library.
        lowercase: lower-case expressions first.
        max_words: most tokens an expression may have, with the end token.

    Raises:
        BundleError: the file cannot be read.
    """

    def __init__(self, path: Path, *, lowercase: bool, max_words: int) -> None:
        from tokenizers import Tokenizer as Library

        self._lowercase = lowercase
        self._max_words = max_words
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path}: not a tokenizer ({error}); export again") from error
        self._library.no_truncation()
        self._library.no_padding()

    def clean(self, expression: str) -> str:
        """Return the expression lower-cased (if so configured), words joined by single blanks.

        Raises:
            ExpressionError: nothing is left, over `MAX_CHARACTERS`, or a control character.
        """
        if len(expression) > MAX_CHARACTERS:
            raise ExpressionError(
                f"expression {_shown(expression)} has {len(expression)} characters, "
                f"at most {MAX_CHARACTERS} are accepted; shorten it"
            )
        text = expression.lower() if self._lowercase else expression
        cleaned = " ".join(text.split())
        if not cleaned:
            raise ExpressionError("the expression is empty; say in words what to look for")
        for character in cleaned:
            # Cc would reach terminals and captions; Cs has no UTF-8 form.
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise ExpressionError(
                    f"expression {_shown(expression)} holds the character "
                    f"U+{ord(character):04X}, which is no text; remove it"
                )
        return cleaned

    def encode(self, cleaned: str) -> np.ndarray:
        """Return the token ids of a cleaned-up expression, int64 [N], end token included.

        Raises:
            ExpressionError: no token but the end token, or more than `max_words`.
        """
        encoding = self._library.encode(cleaned)
        num_words = len(encoding.ids)
        if sum(encoding.special_tokens_mask) == num_words:
            raise ExpressionError(f"expression {_shown(cleaned)} has no word in it; reword it")
        if num_words > self._max_words:
            raise ExpressionError(
                f"expression {_shown(cleaned)} has {num_words} tokens with the end token, "
                f"at most {self._max_words} are accepted; shorten it"
            )
        return np.array(encoding.ids, np.int64)


@dataclass(frozen=True)
class TextStatistics:
    """How often an embedding was found in memory or in the bundle, or had to be computed."""

    num_memory_hits: int = 0
    num_bundle_hits: int = 0
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
        mode: `lazy` loads the graph at the first unknown expression and drops it at `release`;
            `resident` loads it now and keeps it; `cache-only` never loads it.

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
        mode: TextMode = "lazy",
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
        self._mode = mode
        self._memory: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._memory_lock = threading.Lock()
        self._graph_lock = threading.Lock()
        self._counts = {"num_memory_hits": 0, "num_bundle_hits": 0, "num_misses": 0}
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
            BackendError: the text graph cannot be loaded or run.
        """
        cleaned = self._tokenizer.clean(expression)
        found = self._look_up(cleaned)
        if found is None:
            with self._graph_lock:
                found = self._look_up(cleaned)  # another thread may have been faster
                if found is None:
                    found = self._find(cleaned)
        return cleaned, found

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
            found = self._memory.get(cleaned)
            if found is not None:
                self._memory.move_to_end(cleaned)
                self._counts["num_memory_hits"] += 1
            return found

    def _find(self, cleaned: str) -> TextEmbedding:
        found = self._cache.get(cleaned) if self._cache else None
        kind = "num_misses" if found is None else "num_bundle_hits"
        if found is None:
            found = self._compute(cleaned)
        self._check(cleaned, found)
        with self._memory_lock:
            self._counts[kind] += 1
            self._memory[cleaned] = found
            if len(self._memory) > MEMORY_CACHE_SIZE:
                self._memory.popitem(last=False)
        return found

    def _compute(self, cleaned: str) -> TextEmbedding:
        ids = self._tokenizer.encode(cleaned)[None]
        if self._mode == "cache-only" or self._load_graph is None:
            raise self._unknown(cleaned)
        if self._graph is None:
            self._graph = self._load_graph()
        found = run_text_graph(self._backend, self._graph, ids)
        return TextEmbedding(found["words"], found["sentence"], found.get("text_values"))

    def _check(self, cleaned: str, found: TextEmbedding) -> None:
        arrays = found.tensors()
        for spec in self._tensors:
            expected = spec.shape({"B": 1, "N": found.num_words})[1:]
            shape = arrays[spec.name].shape if spec.name in arrays else None
            if shape != expected:
                raise BundleError(
                    f"text embedding of {_shown(cleaned)}: {spec.name} has shape {shape}, the "
                    f"step needs {expected}; export the bundle again"
                )

    def _unknown(self, cleaned: str) -> ExpressionError:
        reason = (
            "this bundle has no text encoder"
            if self._load_graph is None
            else 'text="cache-only" never runs the text encoder'
        )
        num_cached = len(self._cache.expressions) if self._cache else 0
        return ExpressionError(
            f"expression {_shown(cleaned)} is not among the {num_cached} cached in the bundle, and "
            f"{reason}; add it with `refsam-export ... --expressions FILE`"
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


def _shown(expression: str) -> str:
    shortened = expression if len(expression) <= 40 else f"{expression[:40]}..."
    return repr(shortened)


__all__ = [
    "MAX_CHARACTERS",
    "MEMORY_CACHE_SIZE",
    "TextCache",
    "TextEmbedding",
    "TextEncoder",
    "TextMode",
    "TextStatistics",
    "Tokenizer",
    "run_text_graph",
    "write_text_cache",
]
