"""One video: frames and expressions in, results out, a memory that can be saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from refsam_trt.errors import StateError, UsageError, VideoError
from refsam_trt.families.base import FamilyAdapter, VideoAdapter
from refsam_trt.image.postprocess import Postprocessor
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.result.raw_frame import RawFrame
from refsam_trt.result.result import FrameResults, frame_results
from refsam_trt.session.frame_input import Adopt, Color, frame_size, network_image
from refsam_trt.session.state_file import (
    SCHEMA,
    SavedExpression,
    SavedSession,
    read_state,
    refuse_other,
    write_state,
)


@dataclass(frozen=True)
class SessionModel:
    """What a session runs: the engine's, shared by all its sessions."""

    family: FamilyAdapter
    preprocess: PreprocessConfig
    bundle_id: str
    variant: str
    precision: str
    adopt: Adopt | None = None


class Session:
    """One video on an engine; `Engine.open_video` makes it. A context manager.

    Sessions are independent of each other and may run in different threads; one session is used by
    one thread at a time. Whatever it returns is the caller's and stays valid for ever.

    Invariant: `num_frames` frames have been decoded since the video began, all of `frame_hw`; a
    call that raises has changed neither these nor the tracks.
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
        if color not in get_args(Color):
            raise UsageError(f"color={color!r} is not one of {', '.join(get_args(Color))}")
        if not math.isfinite(threshold):
            raise UsageError(f"threshold={threshold}: expected a finite logit")
        self._model = model
        self._color = color
        self._threshold = threshold
        self._on_close = on_close
        self._declared_hw = original_hw
        self._video: VideoAdapter | None = model.family.open_video()
        self._next_id = 0
        self._begin()

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
        """Id -> expression as it was understood, in the order they were added; a copy.

        Raises:
            UsageError: the session is closed.
        """
        return self._open_video().expressions

    @property
    def num_frames(self) -> int:
        """Frames decoded since the video was opened or reset: the next frame's index."""
        return self._num_frames

    @property
    def frame_hw(self) -> tuple[int, int] | None:
        """Size of the frames in pixels; None until it is known."""
        return self._preprocessor.geometry.original_hw if self._preprocessor else None

    def add_expression(self, text: str) -> int:
        """Look for an expression from the next frame on; allowed at any time.

        Returns:
            Its id, which the session never uses again. Adding a text again gives a second,
            independent track.

        Raises:
            ExpressionError: empty, too long, or unknown where only cached expressions work.
            UsageError: the session is closed or the video finished.
        """
        video = self._running_video()
        expression_id = self._next_id
        video.add_expression(expression_id, text)
        self._next_id += 1
        return expression_id

    def remove_expression(self, expression_id: int) -> None:
        """Stop looking for an expression and forget its track.

        Raises:
            UsageError: no such expression, or the session is closed or the video finished.
        """
        self._video_with(expression_id).remove_expression(expression_id)

    def reset_track(self, expression_id: int) -> None:
        """Forget one expression's track: its next frame is decoded like a first one.

        Raises:
            UsageError: no such expression, or the session is closed or the video finished.
        """
        self._video_with(expression_id).reset_track(expression_id)

    def copy_tracks(self, other: Session) -> None:
        """Remember what another session remembers of its expressions, instead: first for first.

        Raises:
            StateError: the other one has more or fewer, or the family cannot be interrupted.
            UsageError: one of the two is closed, its video finished, or they run different models.
        """
        if other._model is not self._model:
            raise UsageError("tracks are copied between sessions of one engine only")
        self._running_video().restore(other._running_video().save())

    def reset(self) -> None:
        """Forget the video: tracks, frame counter and frame size. The expressions stay.

        Raises:
            UsageError: the session is closed.
        """
        self._open_video().reset()
        self._begin()

    def step(self, frame: Any) -> FrameResults:
        """Take the next frame and return the results that are due.

        Args:
            frame: uint8 [H, W, 3], channels in the order of `color`, any strides; only read, and
                not needed after the call; all frames of a video have the same size. On CUDA
                backends also network inputs on the GPU (see `frame_input`).

        Returns:
            The results of one frame, in the order the expressions were added. RefSAM gives those
            of this very frame; a family that decides late gives none yet, or an earlier frame's.

        Raises:
            VideoError: not such an array, or another size than the video's.
            UsageError: the session is closed or the video finished.
            BackendError: the device failed; the same frame may be tried again.
        """
        video = self._running_video()
        preprocessor = self._preprocessor_for(frame)
        image = network_image(frame, preprocessor, self._color, self._model.adopt)
        raw = video.step(image, self._num_frames)
        self._preprocessor = preprocessor
        self._num_frames += 1
        if raw is None:
            return FrameResults(self._num_frames - 1, preprocessor.geometry.original_hw, ())
        return self._wrap(raw, preprocessor)

    def finish(self) -> list[FrameResults]:
        """End the video and return what `step` still owed, one item per frame, in order.

        RefSAM never owes anything. Afterwards only `reset`, `load_state` and `close` are allowed.

        Raises:
            UsageError: the session is closed or the video finished already.
            BackendError: the device failed.
        """
        rest = self._running_video().finish()
        self._is_finished = True
        preprocessor = self._preprocessor
        return [self._wrap(raw, preprocessor) for raw in rest] if preprocessor else []

    def run(self, frames: Iterable[np.ndarray]) -> Iterator[FrameResults]:
        """Yield for every frame what `step` returns, errors too; `finish` is left to the caller."""
        for frame in frames:
            yield self.step(frame)

    def save_state(self, path: str | Path) -> None:
        """Write tracks, expressions and frame counter to one file, whole or not at all.

        Raises:
            StateError: the model family cannot be interrupted.
            UsageError: the session is closed or the video finished.
            OutputError: the file cannot be written.
        """
        tensors = self._running_video().save()
        write_state(Path(path), self._described(), tensors)

    def load_state(self, path: str | Path) -> None:
        """Become the session that was saved, whatever this one was before.

        On the same machine and backend it goes on bit for bit as the saved one would have.

        Raises:
            StateError: damaged, or of another bundle, variant, precision or version; this session
                is as it was then.
            ExpressionError: an expression of the file is unknown where only cached ones work.
            UsageError: the session is closed.
        """
        self._open_video()
        saved, tensors = read_state(Path(path))
        refuse_other(Path(path), saved, self._described(), self._declared_hw)
        video = self._model.family.open_video()
        for expression in saved.expressions:
            video.add_expression(expression.id, expression.text)
        video.restore(tensors)
        try:
            self._begin(saved.frame_hw, saved.num_frames)
        except VideoError as error:
            raise StateError(f"{path}: {error}") from error
        self._video = video
        self._next_id = saved.next_expression_id

    def close(self) -> None:
        """Give the device memory back; closing twice is allowed."""
        if self._video is not None:
            self._video = None
            self._on_close(self)

    def _described(self) -> SavedSession:
        """Return what a state file says of this session besides its tensors."""
        model = self._model
        return SavedSession(
            schema=SCHEMA,
            bundle_id=model.bundle_id,
            variant=model.variant,
            precision=model.precision,
            expressions=tuple(SavedExpression(i, t) for i, t in self.expressions.items()),
            next_expression_id=self._next_id,
            num_frames=self._num_frames,
            frame_hw=self.frame_hw,
        )

    def _preprocessor_for(self, frame: Any) -> Preprocessor:
        frame_hw = frame_size(frame, self._declared_hw)
        if self._preprocessor is None:
            return Preprocessor(frame_hw, self._model.preprocess)
        expected_hw = self._preprocessor.geometry.original_hw
        if frame_hw != expected_hw:
            raise VideoError(
                f"frame {self._num_frames}: found {frame_hw} (height, width), expected "
                f"{expected_hw} like the rest of the video; call reset() to begin another video"
            )
        return self._preprocessor

    def _wrap(self, raw: RawFrame, preprocessor: Preprocessor) -> FrameResults:
        geometry = preprocessor.geometry
        if not raw.expression_ids:
            return FrameResults(raw.frame_index, geometry.original_hw, ())
        if self._postprocessor is None:
            height, width = raw.low_res_logits.shape[1:]
            self._postprocessor = Postprocessor(geometry, (height, width))
        return frame_results(raw, self._postprocessor, geometry.original_hw, self._threshold)

    def _open_video(self) -> VideoAdapter:
        if self._video is None:
            raise UsageError("the session is closed; open another one with engine.open_video()")
        return self._video

    def _running_video(self) -> VideoAdapter:
        video = self._open_video()
        if self._is_finished:
            raise UsageError("the video is finished; call reset() to begin another one")
        return video

    def _video_with(self, expression_id: int) -> VideoAdapter:
        video = self._running_video()
        if expression_id not in video.expressions:
            known = ", ".join(map(str, video.expressions)) or "none"
            raise UsageError(f"no expression has the id {expression_id!r}; ids in use: {known}")
        return video
