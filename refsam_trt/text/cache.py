"""Text embeddings, and the file that keeps them: `text_cache.safetensors` of a bundle.

Format: tensors `<i>.words`, `<i>.sentence` and, for the optimised split, `<i>.text_values` of the
i-th expression; the metadata entry `refsam_text_cache` is the JSON object
`{"schema": 1, "expressions": [...]}` with the cleaned-up expressions, each once, in that order.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from refsam_trt.errors import BundleError
from refsam_trt.files.atomic import atomic_path

METADATA_KEY = "refsam_text_cache"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """What the text encoder says of one expression; read-only host arrays, float32 or float16.

    Attributes:
        words: [N, 256], N tokens, begin and end tokens included, no padding.
        sentence: [256].
        text_values: [4, N+1, 640], sentence row first; None where only the baseline split is meant.
    """

    words: np.ndarray
    sentence: np.ndarray
    text_values: np.ndarray | None

    def __post_init__(self) -> None:
        for array in self.tensors().values():
            array.flags.writeable = False

    @property
    def num_words(self) -> int:
        """N, the number of tokens, begin and end tokens included."""
        return int(self.words.shape[0])

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the arrays that are present, by name."""
        arrays = {"words": self.words, "sentence": self.sentence}
        return arrays if self.text_values is None else arrays | {"text_values": self.text_values}


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    expressions: tuple[str, ...]


def write_text_cache(path: Path, embeddings: Mapping[str, TextEmbedding]) -> None:
    """Write a text cache, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        embeddings: cleaned-up expression (`Tokenizer.clean`) -> embedding.
    """
    from safetensors.numpy import save

    tensors = {
        f"{index}.{name}": np.ascontiguousarray(array)
        for index, embedding in enumerate(embeddings.values())
        for name, array in embedding.tensors().items()
    }
    metadata = msgspec.json.encode(_Metadata(SCHEMA, tuple(embeddings))).decode()
    content = save(tensors, {METADATA_KEY: metadata})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


class TextCache:
    """A text cache opened for reading; tensors are read when asked for. May be shared by threads.

    Raises:
        BundleError: unreadable, of another schema, or naming an expression twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file: Any = importlib.import_module("safetensors").safe_open(path, "numpy")
            raw = (self._file.metadata() or {})[METADATA_KEY]
            metadata = msgspec.json.decode(raw, type=_Metadata)
        except Exception as error:
            raise self._error(f"not a text cache ({type(error).__name__}: {error})") from error
        if metadata.schema != SCHEMA:
            raise self._error(f"schema {metadata.schema}, this version reads {SCHEMA}")
        self._indexes = {text: index for index, text in enumerate(metadata.expressions)}
        if len(self._indexes) != len(metadata.expressions):
            raise self._error("an expression is listed twice")
        self._names = frozenset(self._file.keys())

    @property
    def expressions(self) -> tuple[str, ...]:
        """The expressions, in file order."""
        return tuple(self._indexes)

    def get(self, expression: str) -> TextEmbedding | None:
        """Return the embedding of a cleaned-up expression, or None if it is not in the file."""
        index = self._indexes.get(expression)
        if index is None:
            return None
        has_values = f"{index}.text_values" in self._names
        return TextEmbedding(
            self._tensor(f"{index}.words"),
            self._tensor(f"{index}.sentence"),
            self._tensor(f"{index}.text_values") if has_values else None,
        )

    def _tensor(self, name: str) -> np.ndarray:
        try:
            with self._lock:  # safetensors does not promise that threads may share an open file
                array: np.ndarray = self._file.get_tensor(name)
        except Exception as error:
            raise self._error(f"tensor {name!r} cannot be read: {error}") from error
        return array

    def _error(self, problem: str) -> BundleError:
        return BundleError(f"{self._path}: {problem}; export the bundle again")
