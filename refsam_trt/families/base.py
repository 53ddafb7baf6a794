"""What a model family does with its graphs between frames, behind one set of calls.

A session knows no family: it gives frames and expressions, and gets raw results, possibly late.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class VideoAdapter(Protocol):
    """One video of one session; used by one thread at a time. Ids are the session's.

    It has a stream of its own on the backend, so that sessions of one thread do not wait for each
    other, and a session that another thread goes on with finds everything done that was begun.
    """

    def add_expression(self, expression_id: int, text: str) -> None:
        """Decode this expression from the next frame on, as one that has not been tracked yet.

        Raises:
            ExpressionError: unusable text; nothing has changed then.
        """

    def remove_expression(self, expression_id: int) -> None:
        """Forget an expression that was added."""

    @property
    def expressions(self) -> dict[int, str]:
        """Cleaned-up text per id, in the order they were added."""

    def reset(self) -> None:
        """Forget the video; the expressions stay."""

    def reset_track(self, expression_id: int) -> None:
        """Forget what was tracked of one expression."""

    def step(self, image: np.ndarray | Buffer, frame_index: int) -> RawFrame | None:
        """Take one frame, float32 [1, 3, S, S]; return the results of one frame if any are due."""

    def finish(self) -> list[RawFrame]:
        """Return the results of every frame that `step` still owed, in order."""

    def save(self) -> dict[str, np.ndarray]:
        """Return what must be kept to go on later; the expressions are the session's to keep.

        Raises:
            StateError: this family cannot be interrupted.
        """

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        """Go on from what `save` returned, the same expressions having been added.

        Raises:
            StateError: tensors that `save` cannot have returned.
        """


class FamilyAdapter(Protocol):
    """One family's graphs, loaded once per engine and shared by its sessions and their threads."""

    def open_video(self) -> VideoAdapter:
        """Return a new, empty video with execution contexts of its own."""

    def close(self) -> None:
        """Give up the graphs; videos must not be used afterwards."""
