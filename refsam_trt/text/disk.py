"""Text embeddings that outlive a process: one small file per expression, in a folder of the user.

A file is named after what it depends on: the cleaned-up expression, the tokenizer, the text graph
with its weights, and the backend that ran it. Processes share the folder without locks: files
appear by renaming, whole, and two that write the same one write the same. Whatever a file says is
checked before it is used, and a folder that cannot be read or written costs time, never a run.

Why our own and no cache library: those keep pickles, which run code when somebody else has written
to the folder, or a database, which needs locks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from refsam_trt.backends.base import numpy_dtype
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.errors import OutputError, UsageError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.cache_folder import user_cache_folder
from refsam_trt.limits import MAX_TEXT_HEADER_BYTES
from refsam_trt.text.cache import TextEmbedding

TextCacheChoice = Literal["off", "user"] | Path

METADATA_KEY = "refsam_text_embedding"
SCHEMA = 1
MAX_CACHE_BYTES = 256 * 2**20
"""Of all files together; one has 0.1 MiB for 10 words. The oldest go first."""

_ABANDONED_S = 3600
"""Age from which a half-written file is what a killed process left behind."""

# Nothing else in the folder is ours to remove. Half-written files have the hidden names that
# `files.atomic` gives them.
_FILE = re.compile(r"text-[0-9a-f]{64}\.safetensors")
_HALF_WRITTEN = re.compile(r"\.text-[0-9a-f]{27}\.[0-9a-f]{12}\.part")
_LOG = logging.getLogger("refsam_trt")


def text_cache_folder(choice: TextCacheChoice) -> Path | None:
    """Return the folder that `load(text_cache=...)` asks for, None for `off`.

    Raises:
        UsageError: neither a word we know nor a `Path`, a path that is no folder, or `user` on an
            account without home folder.
    """
    if choice == "off":
        return None
    if choice == "user":
        return user_cache_folder() / "text"
    if not isinstance(choice, Path):
        raise UsageError(
            f'text_cache={choice!r}: expected "off", "user", or a folder as pathlib.Path'
        )
    with suppress(OSError):  # what cannot be looked at is not worth ending a run for
        if choice.exists() and not choice.is_dir():
            raise UsageError(f"text_cache: {choice} is no folder; name another place")
    return choice.absolute()


class TextKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all embeddings of one engine depend on: hashes of tokenizer and text graph, backend."""

    tokenizer: str
    text_graph: str
    backend: str


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    key: TextKey
    expression: str
    sha256: str


class TextDiskCache:
    """Embeddings of one text graph in a folder on disk. May be shared by threads and processes.

    Nothing here raises: what goes wrong is logged, once for reading and once for writing.

    Args:
        folder: it is created, for this user alone, when the first embedding is kept.
        key: what the embeddings depend on.
        tensors: the expression-scope tensors that the step needs.
        max_bytes: of all files of the folder, those of other keys included.
    """

    def __init__(
        self,
        folder: Path,
        key: TextKey,
        tensors: tuple[TensorSpec, ...],
        *,
        max_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self.folder = folder
        self._key = key
        self._tensors = tensors
        self._max_bytes = max_bytes
        self._has_warned = False
        self._is_writable = True

    def get(self, expression: str, *, num_words: int) -> TextEmbedding | None:
        """Return the embedding of a cleaned-up expression, or None if there is no sound one.

        `num_words`: how many tokens the expression has.
        """
        path = self._path(expression)
        try:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                content = file.read(self._max_file_bytes(num_words) + 1)
            return self._decoded(content, expression, num_words)
        except FileNotFoundError:  # another process removed it a moment ago
            return None
        except Exception as error:  # whatever a file that anybody may have written leads to
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning("%s: not used as text embedding (%s)", path, error)
        return None

    def put(self, expression: str, embedding: TextEmbedding) -> None:
        """Keep the embedding of a cleaned-up expression; remove the oldest where room is short."""
        if not self._is_writable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_path(self._path(expression)) as temporary:
                temporary.write_bytes(self._encoded(expression, embedding))
            self._make_room()
        except (OSError, OutputError) as error:
            self._is_writable = False
            _LOG.warning("%s: text embeddings are not kept here (%s)", self.folder, error)

    def _path(self, expression: str) -> Path:
        identity = msgspec.json.encode((SCHEMA, self._key, expression))
        return self.folder / f"text-{hashlib.sha256(identity).hexdigest()}.safetensors"

    def _shapes(self, num_words: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return {
            t.name: (t.shape({"B": 1, "N": num_words})[1:], numpy_dtype(t.dtype, "numpy arrays"))
            for t in self._tensors
        }

    def _max_file_bytes(self, num_words: int) -> int:
        shapes = self._shapes(num_words).values()
        return MAX_TEXT_HEADER_BYTES + sum(
            int(np.prod(shape)) * dtype.itemsize for shape, dtype in shapes
        )

    def _encoded(self, expression: str, embedding: TextEmbedding) -> bytes:
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(a) for name, a in embedding.tensors().items()}
        record = _Record(SCHEMA, self._key, expression, _digest(arrays))
        return save(arrays, {METADATA_KEY: msgspec.json.encode(record).decode()})

    def _decoded(self, content: bytes, expression: str, num_words: int) -> TextEmbedding:
        from safetensors.numpy import load

        if len(content) > self._max_file_bytes(num_words):
            raise ValueError("larger than any embedding of this expression")
        arrays = load(content)
        shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if shapes != self._shapes(num_words):
            raise ValueError(f"holds {shapes}, expected {self._shapes(num_words)}")
        if _record(content) != _Record(SCHEMA, self._key, expression, _digest(arrays)):
            raise ValueError("damaged, or of another expression, graph or version")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("holds values that are not finite")
        return TextEmbedding(arrays["words"], arrays["sentence"], arrays.get("text_values"))

    def _make_room(self) -> None:
        kept = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat(follow_symlinks=False)
                    if _FILE.fullmatch(entry.name):
                        kept.append((status.st_mtime_ns, status.st_size, entry.name))
                    is_old = time.time() - status.st_mtime > _ABANDONED_S
                    if is_old and _HALF_WRITTEN.fullmatch(entry.name):
                        (self.folder / entry.name).unlink()
        excess_bytes = sum(size for _, size, _ in kept) - self._max_bytes
        for _, size, name in sorted(kept):
            if excess_bytes <= 0:
                break
            (self.folder / name).unlink(missing_ok=True)
            excess_bytes -= size


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _record(content: bytes) -> _Record:
    """Return what the file says of itself; `content` has passed safetensors' own checks."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = msgspec.json.decode(content[8:end], type=dict[str, Any])
    return msgspec.json.decode(header["__metadata__"][METADATA_KEY], type=_Record)
