"""What a model family does with its graphs, cut where frames can overlap.

A session knows no family. An encoder turns frames into features, which depend on nothing but the
frame; a track decodes them one after the other, remembers, and gives raw results, possibly late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from refsam_trt.backends.base import Backend, Buffer, Graph
from refsam_trt.backends.select import ON_CPUS
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.plans import Plans
from refsam_trt.contract.manifest import Limits, Variant
from refsam_trt.errors import BundleError
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.text.encoder import TextMode


@dataclass(frozen=True)
class FamilyParts:
    """What an engine hands to a family; all of it stays the engine's."""

    bundle: Bundle
    variant: Variant
    backend: Backend
    text_mode: TextMode
    text_cache: Path | None
    """Folder that keeps text embeddings from run to run, None for none."""
    plans: Plans | None = None
    """Plans that stand for the graphs; None runs the graphs themselves."""

    @property
    def limits(self) -> Limits:
        """The largest sizes that the graphs, or the plans that stand for them, take."""
        return (self.plans or self.bundle).manifest.limits

    def load_graphs(self, *names: str) -> list[Graph]:
        """Load graphs of the variant; on CPUs all at once, as most of a start goes into that."""
        if self.backend.name not in ON_CPUS:  # the context of a GPU belongs to a thread
            return [self.load_graph(name) for name in names]
        with ThreadPoolExecutor() as threads:
            return list(threads.map(self.load_graph, names))

    def load_graph(self, name: str) -> Graph:
        """Load the variant's graph of that name."""
        if name not in self.variant.graphs:
            raise BundleError(
                f"the bundle has no graph {name!r}, only {', '.join(sorted(self.variant.graphs))}; "
                "export it again"
            )
        entry = self.variant.graphs[name]
        path = self.plans.plan(name) if self.plans else self.bundle.verify_file(entry.file)
        return self.backend.load(path, entry.spec)


@dataclass(frozen=True)
class Row:
    """One expression of a session: its id there, its cleaned-up text, and `Family.embed`'s work."""

    id: int
    text: str
    embedding: Any


class Features(Protocol):
    """What an encoder made of one frame, on the device; any number of tracks may read it."""

    def release(self) -> None:
        """Give the memory back to the encoder, once every `Track.decode` on it has returned."""


class Encoder(Protocol):
    """Runs what depends on the frame alone; used by one thread at a time.

    It has a stream of its own, so the next frame is encoded while tracks decode this one.
    """

    def encode(self, image: np.ndarray | Buffer) -> Features:
        """Encode one frame, float32 [1, 3, S, S].

        Raises:
            BackendError: the device failed; the same frame may be tried again.
        """


class Track(Protocol):
    """What is remembered of one video; used by one thread at a time.

    It has a stream of its own, so a session that another thread goes on with finds everything done
    that was begun. A call that raises has changed nothing.
    """

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Decode these expressions from the next frame on.

        What is remembered of rows that were there before (by id) stays; new ones come behind them.
        """

    def decode(self, features: Any, frame_index: int) -> Sequence[RawFrame]:
        """Take one frame and return the results that are due: of none, one or several frames.

        `features` is what an encoder of the same family returned.
        """

    def finish(self) -> Iterator[RawFrame]:
        """Give the results of every frame that `decode` still owes, in order, one by one."""

    def forget(self, ids: Collection[int]) -> None:
        """Forget what was tracked of some expressions."""

    def reset(self) -> None:
        """Forget the video; the expressions stay."""

    def save(self) -> dict[str, np.ndarray]:
        """Return what must be kept to go on later; the expressions are the session's to keep.

        Raises:
            StateError: this family cannot be interrupted.
        """

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Go on from what `save` returned, the same rows having been set.

        Raises:
            StateError: tensors that `save` cannot have returned.
        """


class Family(Protocol):
    """One family's graphs, loaded once per engine and shared by its sessions and their threads."""

    @property
    def is_late(self) -> bool:
        """Whether results may come later than their frame."""

    @property
    def can_embed(self) -> bool:
        """Whether any expression can be embedded, and not only those of a cache."""

    def embed(self, text: str) -> tuple[str, Any]:
        """Return the cleaned-up text of an expression, and what tracks need of it.

        Raises:
            ExpressionError: unusable text.
        """

    def open_encoder(self) -> Encoder:
        """Return an encoder with an execution context of its own."""

    def open_track(self) -> Track:
        """Return the memory of a new video, with an execution context of its own."""

    def close(self) -> None:
        """Give up the graphs; encoders and tracks must not be used afterwards."""
