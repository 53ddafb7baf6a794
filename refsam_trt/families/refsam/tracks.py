"""What one video remembers from frame to frame: a track token per expression (refsam-model 7.3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from refsam_trt.backends.base import Backend, Buffer
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.errors import InternalError

_FIRST_CAPACITY = 4
"""Rows at first. They double when all are taken, so that few additions copy tokens."""


class TrackState:
    """The track tokens of one video, on the device; the host knows only which rows hold one.

    Invariant: the expressions have the rows 0 to `num_rows - 1`, in the order they were added,
    without gaps. `current` and `following` are two buffers of equal shape that share no memory and
    have at least one row per expression. Row r of `current` is the token of the last decoded frame
    where `has_track[r]`, and undefined otherwise. `following` is undefined between steps: a step
    writes all its rows, then `advance` swaps the two. A step that fails before `advance` changed
    nothing.

    Args:
        backend: owner of the buffers.
        token: the track token, dims `("B", C)`.
    """

    def __init__(self, backend: Backend, token: TensorSpec) -> None:
        self._backend = backend
        self._token = token
        self._rows: dict[int, int] = {}
        self._has_track: list[bool] = []
        self._has_track_buffer: Buffer | None = None
        self._current = self._new_buffer(_FIRST_CAPACITY)
        self._following = self._new_buffer(_FIRST_CAPACITY)

    @property
    def num_rows(self) -> int:
        """Number of expressions."""
        return len(self._rows)

    @property
    def ids(self) -> tuple[int, ...]:
        """The expressions, in the order of their rows."""
        return tuple(self._rows)

    @property
    def current(self) -> Buffer:
        """Tokens of the last decoded frame, [num_rows, C]; valid until the next change of rows."""
        return self._current.rows(0, self.num_rows)

    @property
    def following(self) -> Buffer:
        """Where the step puts the tokens of this frame, [num_rows, C]."""
        return self._following.rows(0, self.num_rows)

    @property
    def has_track(self) -> tuple[bool, ...]:
        """Which rows hold a token."""
        return tuple(self._has_track)

    def has_track_buffer(self) -> Buffer:
        """Return `has_track` on the device, bool [num_rows]; uploaded only if it has changed."""
        if self._has_track_buffer is None:
            self._has_track_buffer = self._backend.upload(np.array(self._has_track, np.bool_))
        return self._has_track_buffer

    def set_rows(self, ids: Sequence[int]) -> None:
        """Give these expressions the rows; those that had one keep their token and order."""
        kept = [id_ for id_ in self._rows if id_ in ids]
        if list(ids[: len(kept)]) != kept:
            raise InternalError(f"rows {list(self._rows)} cannot become {list(ids)}")
        if len(ids) > self._current.shape[0]:
            self._grow(max(len(ids), 2 * self._current.shape[0]))
        for expression_id in self._rows.keys() - kept:
            self._remove(expression_id)
        self._rows = {id_: row for row, id_ in enumerate(ids)}
        self._set_has_track([*self._has_track, *[False] * (len(ids) - len(kept))])

    def forget(self, ids: Collection[int]) -> None:
        """Drop the tokens of some expressions."""
        pairs = zip(self._rows, self._has_track, strict=True)
        self._set_has_track([has and id_ not in ids for id_, has in pairs])

    def forget_all(self) -> None:
        """Drop every token; the rows stay."""
        self._set_has_track([False] * self.num_rows)

    def advance(self) -> None:
        """Make `following`, now written in full, `current`: every row holds a token."""
        self._current, self._following = self._following, self._current
        self._set_has_track([True] * self.num_rows)

    def download(self) -> np.ndarray:
        """Return a host copy of the tokens [num_rows, C], zeros where there is none."""
        if not self.num_rows:
            return self._backend.download(self._current)[:0]
        tokens = self._backend.download(self.current)
        tokens[~np.array(self._has_track)] = 0
        return tokens

    def restore(self, tokens: np.ndarray, has_track: Sequence[bool]) -> None:
        """Replace the tokens of all rows by what `download` and `has_track` once gave."""
        if len(has_track) != self.num_rows or tokens.shape[0] != self.num_rows:
            raise InternalError(f"{len(has_track)} tokens restored into {self.num_rows} rows")
        if self.num_rows:
            self._backend.upload(tokens, self.current)
        self._set_has_track(list(has_track))

    def _remove(self, expression_id: int) -> None:
        """Take an expression's row away; the rows behind it move up, device to device."""
        row, last = self._rows.pop(expression_id), self.num_rows
        if row < last:
            for start, stop, target in ((0, row, 0), (row + 1, last + 1, row)):
                self._copy_rows(start, stop, target)
            self._current, self._following = self._following, self._current
        self._rows = {id_: r - (r > row) for id_, r in self._rows.items()}
        self._set_has_track(self._has_track[:row] + self._has_track[row + 1 :])

    def _set_has_track(self, has_track: list[bool]) -> None:
        if has_track != self._has_track:
            self._has_track = has_track
            self._has_track_buffer = None

    def _grow(self, capacity: int) -> None:
        # Both before either is used: whoever runs out of memory between them keeps what there was.
        current, following = self._new_buffer(capacity), self._new_buffer(capacity)
        self._following = current
        self._copy_rows(0, self.num_rows, 0)
        self._current, self._following = current, following

    def _copy_rows(self, start: int, stop: int, target: int) -> None:
        if start < stop:
            source = self._current.rows(start, stop)
            self._backend.copy(source, self._following.rows(target, target + stop - start))

    def _new_buffer(self, capacity: int) -> Buffer:
        return self._backend.empty(self._token.shape({"B": capacity}), self._token.dtype)
