"""One video: frames and expressions in, results out, a memory that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from refsam_trt.errors import StateError, UsageError, VideoError
from refsam_trt.families.base import Row, Track
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import Preprocessor
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.result.result import FrameResults, frame_results
from refsam_trt.session.encoding import EncodedFrame, FrameEncoder, check_size
from refsam_trt.session.expressions import Expressions
from refsam_trt.session.frame_input import Color
from refsam_trt.session.model import SessionModel
from refsam_trt.session.pipeline import DEPTH
from refsam_trt.session.state_file import described, read_state, refuse_other, write_state


class Session:
    """One video on an engine; `Engine.open_video` makes it. A context manager.

    Sessions are independent of each other; each is used by one thread at a time. Whatever it
    returns is the caller's and stays valid for ever. UsageError
    is raised by calls to a closed session, by all but `reset` and `load_state` to one whose video
    is finished, while `run` goes on by those that take frames or replace the memory, and for ids
    that no expression has.

    Invariant: `num_frames` frames have been decoded since the video began, all of `frame_hw`; a
    call that raises has changed neither these nor the tracks. The rows of `_track` are those of
    `_table`.
    """

    def __init__(
        self,
        model: SessionModel,
        *,
        color: Color,
        original_hw: tuple[int, int] | None,
        threshold: float,
        on_close: Callable[[Session], None],
    ) -> None:
        if not math.isfinite(threshold):
            raise UsageError(f"threshold={threshold}: expected a finite logit")
        self._model = model
        self._threshold = threshold
        self._on_close = on_close
        self._declared_hw = original_hw
        self._begin()
        self._frames = FrameEncoder(model, color, original_hw)
        self._track: Track | None = model.family.open_track()
        self._table = Expressions()
        self._is_running = False

    def _begin(self, frame_hw: tuple[int, int] | None = None, num_frames: int = 0) -> None:
        """Set what belongs to one video; refuses a size that cannot be used before it does so."""
        frame_hw = frame_hw or self._declared_hw
        self._preprocessor = Preprocessor(frame_hw, self._model.preprocess) if frame_hw else None
        self._postprocessor: Postprocessor | None = None
        self._num_frames = num_frames
        self._is_finished = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def expressions(self) -> dict[int, str]:
        """Id -> expression as it was understood, in the order they were added; a copy."""
        self._open_track()
        return self._table.texts

    @property
    def num_frames(self) -> int:
        """Frames decoded since the video was opened or reset: the next frame's index."""
        return self._num_frames

    @property
    def frame_hw(self) -> tuple[int, int] | None:
        """Size of the frames in pixels; None until it is known."""
        return self._preprocessor.geometry.original_hw if self._preprocessor else None

    def add_expression(self, text: str) -> int:
        """Look for an expression from the next frame on, and return its id.

        Ids are never used again. Adding a text again gives a second, independent track.

        Raises:
            ExpressionError: empty, too long, or unknown where only cached expressions work.
        """
        self._unfinished_track()
        self._set_table(self._table.with_added(*self._model.family.embed(text)))
        return self._table.rows[-1].id

    def remove_expression(self, expression_id: int) -> None:
        """Stop looking for an expression and forget its track."""
        self._set_table(self._table.without(expression_id))

    def reset_track(self, expression_id: int) -> None:
        """Forget one expression's track: its next frame is decoded like a first one."""
        track = self._unfinished_track()
        self._table.check_has(expression_id)
        track.forget([expression_id])

    def copy_tracks(self, other: Session) -> None:
        """Remember what another session remembers of its expressions, instead: first for first.

        Raises:
            StateError: the other one has more or fewer, or the family cannot be interrupted.
            UsageError: another engine's session.
        """
        if other._model is not self._model:
            raise UsageError("tracks are copied between sessions of one engine only")
        self._unfinished_track().restore(other._unfinished_track().save())

    def reset(self) -> None:
        """Forget the video: tracks, frame counter and frame size. The expressions stay."""
        self._refuse_running()
        self._open_track().reset()
        self._begin()

    def step(self, frame: Any) -> FrameResults:
        """Take the next frame and return its results, in the order the expressions were added.

        Args:
            frame: uint8 [H, W, 3], channels in the order of `color`, any strides; only read, and
                not needed after the call; all frames of a video have the same size. On CUDA
                backends also network inputs on the GPU (see `frame_input`).

        Raises:
            VideoError: not such an array, or another size than the video's.
            UsageError: the model gives results later than their frame.
            BackendError: the device failed; the same frame may be tried again.
        """
        track = self._idle_track()
        if self._model.family.is_late:
            raise UsageError(
                "this model gives results later than their frame; use run(frames) and then "
                "finish(), or decode(encode(frame))"
            )
        prepared = self._frames.prepare(frame, self._num_frames, self._preprocessor)
        if not self._table.rows:  # no graph needs to run
            return self._advance(prepared.preprocessor, [RawFrame.empty(self._num_frames)])[0]
        with self._frames.encode(prepared) as encoded:
            return self._decode(track, encoded)[0]

    def encode(self, frame: Any) -> EncodedFrame:
        """Do what depends on a frame alone, as `step` takes it: for `decode`, here or elsewhere."""
        self._idle_track()
        prepared = self._frames.prepare(frame, self._num_frames, self._preprocessor)
        return self._frames.encode(prepared)

    def decode(self, frame: EncodedFrame) -> list[FrameResults]:
        """Take the next frame, encoded, and return the results that are due.

        The frame may be of another session of this engine; it is not changed, and not released.
        RefSAM gives the results of this very frame; a late family those of none or earlier ones.

        Raises:
            VideoError: another size than the video's.
            UsageError: a frame of another engine.
            BackendError: as `step`.
        """
        track = self._idle_track()
        if frame.family is not self._model.family:
            raise UsageError("this frame was encoded by another engine; encode it with this one")
        return self._decode(track, frame)

    def run(self, frames: Iterable[Any], ahead: int = DEPTH) -> Iterator[FrameResults]:
        """Yield what is due for every frame, while the next ones are taken and encoded.

        The results are those of `decode(encode(frame))`, frame by frame; `finish` is left to the
        caller. Expressions may be added, removed and reset between two results, which holds for
        every frame that has not been yielded. Frames are taken by another thread, before they are
        needed, and copied; those on a GPU are not taken ahead.

        Args:
            frames: as `step` takes them.
            ahead: frames that may wait between taking, preprocessing, encoding and decoding; 0
                does all on the caller's thread, one after the other.

        Raises:
            VideoError, BackendError: as `step`.
        """
        self._idle_track()
        self._is_running = True
        try:
            for encoded in self._frames.encoded(
                frames, self._num_frames, self._preprocessor, ahead
            ):
                with encoded:
                    due = self._decode(self._open_track(), encoded)
                yield from due
        finally:
            self._is_running = False

    def finish(self) -> Iterator[FrameResults]:
        """End the video and give what is still owed, one item per frame; RefSAM owes nothing.

        Raises:
            BackendError: the device failed.
        """
        rest, preprocessor = self._idle_track().finish(), self._preprocessor
        self._is_finished = True
        return iter(()) if preprocessor is None else (self._wrap(raw, preprocessor) for raw in rest)

    def save_state(self, path: str | Path) -> None:
        """Write tracks, expressions and frame counter to one file, whole or not at all.

        Raises:
            StateError: the model family cannot be interrupted.
            OutputError: the file cannot be written.
        """
        tensors = self._unfinished_track().save()
        saved = described(self._model, self._table, self._num_frames, self.frame_hw)
        write_state(Path(path), saved, tensors)

    def load_state(self, path: str | Path) -> None:
        """Become the session that was saved, whatever this one was before.

        On the same machine and backend it goes on bit for bit as the saved one would have.

        Raises:
            StateError: damaged, or of another bundle, variant, precision or version.
            ExpressionError: an expression of the file is unknown where only cached ones work.
        """
        self._open_track()
        self._refuse_running()
        saved, tensors = read_state(Path(path))
        refuse_other(Path(path), saved, self._model, self._declared_hw)
        family = self._model.family
        rows = tuple(Row(e.id, *family.embed(e.text)) for e in saved.expressions)
        track = family.open_track()
        track.set_rows(rows)
        track.restore(tensors)
        try:
            self._begin(saved.frame_hw, saved.num_frames)
        except VideoError as error:
            raise StateError(f"{path}: {error}") from error
        self._track, self._table = track, Expressions(rows, saved.next_expression_id)

    def close(self) -> None:
        """Give the device memory back; closing twice is allowed."""
        if self._track is not None:
            self._track = None
            self._on_close(self)

    def _decode(self, track: Track, frame: EncodedFrame) -> list[FrameResults]:
        if self._preprocessor is not None:
            check_size(frame.frame_hw, self._num_frames, self._preprocessor)
        raw_frames = track.decode(frame.features, self._num_frames)
        return self._advance(self._preprocessor or frame.preprocessor, raw_frames)

    def _advance(
        self, preprocessor: Preprocessor, raw_frames: Iterable[RawFrame]
    ) -> list[FrameResults]:
        self._preprocessor = preprocessor
        self._num_frames += 1
        return [self._wrap(raw, preprocessor) for raw in raw_frames]

    def _wrap(self, raw: RawFrame, preprocessor: Preprocessor) -> FrameResults:
        geometry = preprocessor.geometry
        if not raw.expression_ids:
            return FrameResults(raw.frame_index, geometry.original_hw, ())
        if self._postprocessor is None:
            height, width = raw.low_res_logits.shape[1:]
            self._postprocessor = Postprocessor(geometry, (height, width))
        return frame_results(raw, self._postprocessor, geometry.original_hw, self._threshold)

    def _set_table(self, table: Expressions) -> None:
        self._unfinished_track().set_rows(table.rows)
        self._table = table

    def _open_track(self) -> Track:
        if self._track is None:
            raise UsageError("the session is closed; open another one with engine.open_video()")
        return self._track

    def _unfinished_track(self) -> Track:
        track = self._open_track()
        if self._is_finished:
            raise UsageError("the video is finished; call reset() to begin another one")
        return track

    def _idle_track(self) -> Track:
        track = self._unfinished_track()
        self._refuse_running()
        return track

    def _refuse_running(self) -> None:
        if self._is_running:
            raise UsageError(
                "run() goes on and has taken later frames already; use up its results, or close it"
            )
