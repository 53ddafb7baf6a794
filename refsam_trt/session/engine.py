"""A bundle loaded on a backend: what sessions share, and the ways in."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from refsam_trt.backends.base import Backend, TransferCounts
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.plans import Plans
from refsam_trt.contract.manifest import Manifest
from refsam_trt.contract.registry import runtime_of
from refsam_trt.errors import UsageError
from refsam_trt.families.base import Family, FamilyParts
from refsam_trt.result.result import Result
from refsam_trt.session.frame_input import Color
from refsam_trt.session.model import SessionModel
from refsam_trt.session.session import Session
from refsam_trt.text.encoder import TextMode


class Engine:
    """A loaded bundle; `load` makes it. A context manager. May be shared by threads.

    Args:
        bundle: the opened bundle.
        variant: name of the variant to run.
        backend: an open backend, which the engine closes.
        text: how the text encoder is kept (see `load`).
        text_cache: folder that keeps text embeddings for the next run, None for none.
        plans: that stand for the graphs; None for none.
        arithmetic: what the backend was opened to compute fp32 graphs in; None for fp32.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        backend: Backend,
        text: TextMode,
        text_cache: Path | None = None,
        plans: Plans | None = None,
        arithmetic: str | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._backend = backend
        self._lock = threading.Lock()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._is_closed = False
        bundle.check_variant(variant)
        graphs = manifest.variants[variant]
        parts = FamilyParts(bundle, graphs, backend, text, text_cache, plans)
        self._model = SessionModel(
            family=runtime_of(manifest.family).open_family(parts),
            preprocess=manifest.preprocess,
            bundle_id=bundle.bundle_id,
            variant=variant,
            precision=arithmetic or graphs.precision,
            adopt=backend.adopt,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:  # a complaint about open sessions would hide the first error
            for session in self._open_sessions():
                session.close()
        self.close()

    @property
    def backend(self) -> str:
        """Name of the backend that runs the graphs."""
        return self._backend.name

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._bundle.manifest

    @property
    def bundle_id(self) -> str:
        """SHA-256 of the canonical manifest, hexadecimal."""
        return self._bundle.bundle_id

    @property
    def variant(self) -> str:
        """Name of the variant that runs."""
        return self._model.variant

    @property
    def precision(self) -> str:
        """What it computes in: the variant's precision, or what fp32 graphs were asked to run in.

        `precision_notes` tells how exactly.
        """
        return self._model.precision

    @property
    def precision_notes(self) -> str:
        """One sentence of the backend: which precisions it runs, and how exactly."""
        return self._backend.precision_notes

    @property
    def is_random_init(self) -> bool:
        """Whether weights were made up at export, so that masks mean nothing."""
        return self.manifest.weights.random_init_seed is not None

    @property
    def family(self) -> Family:
        """The model family's adapter."""
        return self._model.family

    @property
    def transfers(self) -> TransferCounts:
        """What crossed between host and device since the engine was loaded."""
        return self._backend.transfers.counts()

    def open_video(
        self,
        *,
        color: Color = "rgb",
        original_hw: tuple[int, int] | None = None,
        threshold: float = 0.0,
    ) -> Session:
        """Open a session for one video.

        Args:
            color: channel order of the frames.
            original_hw: size of the frames in pixels; None takes that of the first frame.
            threshold: logits above it belong to a mask.

        Raises:
            UsageError: unknown colour order, or the engine is closed.
            VideoError: frames of that size cannot be used.
        """
        with self._lock:
            if self._is_closed:
                raise UsageError("the engine is closed; load the bundle again")
            session = Session(
                self._model,
                color=color,
                original_hw=original_hw,
                threshold=threshold,
                on_close=self._forget,
            )
            self._sessions.add(session)
        return session

    def track(
        self,
        source: str | Path | Iterable[np.ndarray],
        expressions: Sequence[str],
        *,
        color: Color = "rgb",
        threshold: float = 0.0,
    ) -> Iterator[Result]:
        """Yield one result per frame and expression of a whole video, in this order.

        Nothing is opened before the first result is asked for; a session of this engine is open
        until the last one, or until the iterator is closed. Results are the caller's for ever.

        Args:
            source: a video file, a folder of images (both give RGB), or frames as `step` takes.
            expressions: what to look for, all from the first frame on.
            color: channel order, for frames that are given.
            threshold: logits above it belong to a mask.

        Raises:
            UsageError: no expression, or one string instead of a sequence of them.
            VideoError: the video cannot be read, or frames are not as `step` takes them.
            MissingExtraError: a video file, and PyAV is not installed.
            BackendError: the device failed.
            ExpressionError: as `Session.add_expression`.
        """
        if isinstance(expressions, str) or not expressions:
            raise UsageError(
                f"expressions={expressions!r}: expected a sequence with at least one expression, "
                'such as ["the dog on the left"]'
            )
        if isinstance(source, str | Path):
            if color != "rgb":
                raise UsageError(f"color={color!r}: frames read from {source} are always RGB")
            return self._track_file(Path(source), expressions, threshold)
        return self._track(source, expressions, color, threshold)

    def close(self) -> None:
        """Give graphs and device back; closing twice is allowed.

        Raises:
            UsageError: sessions are still open.
        """
        with self._lock:
            if num_open := len(self._sessions):
                raise UsageError(
                    f"{num_open} session(s) of this engine are still open; close them first"
                )
            if self._is_closed:
                return
            self._is_closed = True
        self._model.family.close()
        self._backend.close()

    def _track_file(
        self, path: Path, expressions: Sequence[str], threshold: float
    ) -> Iterator[Result]:
        from refsam_trt.media.frames import open_frames  # Pillow, which arrays do without

        with open_frames(path) as frames:
            yield from self._track(frames, expressions, "rgb", threshold)

    def _track(
        self,
        frames: Iterable[np.ndarray],
        expressions: Sequence[str],
        color: Color,
        threshold: float,
    ) -> Iterator[Result]:
        with self.open_video(color=color, threshold=threshold) as video:
            for text in expressions:
                video.add_expression(text)
            for results in video.run(frames):
                yield from results
            for results in video.finish():
                yield from results

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)

    def _open_sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions)
