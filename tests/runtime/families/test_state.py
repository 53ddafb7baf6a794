"""Track tokens stay in their rows, on the device, whatever comes and goes between frames."""

import numpy as np
import pytest

from refsam_trt.backends.fake import FakeBackend
from refsam_trt.contract.specs import DType, TensorSpec
from refsam_trt.errors import DeviceMemoryError, InternalError
from refsam_trt.families.refsam.tracks import TrackState

WIDTH = 3


def new_state(backend: FakeBackend, dtype: DType = "float32") -> TrackState:
    return TrackState(backend, TensorSpec("track_token", dtype, ("B", WIDTH), "video"))


def add(state: TrackState, id_: int) -> None:
    state.set_rows([*state.ids, id_])


def remove(state: TrackState, id_: int) -> None:
    state.set_rows([other for other in state.ids if other != id_])


def write_step(backend: FakeBackend, state: TrackState, tokens: list[float]) -> None:
    """Pretend that a step gave row r a token full of `tokens[r]`."""
    array = np.repeat(np.array(tokens, np.float32)[:, None], WIDTH, axis=1)
    backend.upload(array, state.following)
    state.advance()


def test_random_changes_agree_with_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    backend = FakeBackend()
    state = new_state(backend)
    twin: dict[int, float | None] = {}  # in row order, None: no token
    for change in range(300):
        kind = rng.choice(["add", "add", "remove", "forget", "forget_all", "step", "step"])
        victim = int(rng.choice(list(twin))) if twin else None
        if kind == "add":
            add(state, change)
            twin[change] = None
        elif kind == "remove" and victim is not None:
            remove(state, victim)
            del twin[victim]
        elif kind == "forget" and victim is not None:
            state.forget([victim])
            twin[victim] = None
        elif kind == "forget_all":
            state.forget_all()
            twin = dict.fromkeys(twin)
        elif kind == "step" and twin:
            tokens = rng.standard_normal(len(twin)).astype(np.float32).tolist()
            write_step(backend, state, tokens)
            twin = dict(zip(twin, tokens, strict=True))
        assert state.num_rows == len(twin)
        assert state.has_track == tuple(token is not None for token in twin.values())
        expected = [[token or 0.0] * WIDTH for token in twin.values()]
        np.testing.assert_array_equal(state.download(), np.reshape(expected, (-1, WIDTH)))


def test_rows_move_on_the_device_only() -> None:
    backend = FakeBackend()
    state = new_state(backend)
    for id_ in range(9):
        add(state, id_)
    write_step(backend, state, [float(i) for i in range(9)])
    before = backend.transfers.counts()
    remove(state, 4)
    remove(state, 8)
    add(state, 100)
    counts = backend.transfers.counts() - before
    assert (counts.num_uploads, counts.num_downloads, counts.num_copies) == (0, 0, 2)
    assert state.download()[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 0]


def test_has_track_is_uploaded_only_when_it_changes() -> None:
    backend = FakeBackend()
    state = new_state(backend)
    add(state, 0)
    add(state, 1)
    seen = []
    for _ in range(3):
        before = backend.transfers.counts()
        buffer = state.has_track_buffer()
        uploads = (backend.transfers.counts() - before).num_uploads
        seen.append((uploads, backend.download(buffer).tolist()))
        write_step(backend, state, [1.0, 2.0])
    assert seen == [(1, [False, False]), (1, [True, True]), (0, [True, True])]


def test_current_and_following_never_share_memory() -> None:
    backend = FakeBackend()
    state = new_state(backend)
    for id_ in range(6):
        add(state, id_)
        backend.copy(state.current, state.following)  # refuses shared memory
        state.advance()
        backend.copy(state.current, state.following)


def test_restore_takes_over_tokens_bit_for_bit() -> None:
    backend = FakeBackend()
    source, target = new_state(backend, "float16"), new_state(backend, "float16")
    for id_ in (1, 2, 3):
        add(source, id_)
        add(target, id_)
    tokens = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float16)
    source.restore(tokens, [True, False, True])
    target.restore(source.download(), source.has_track)
    np.testing.assert_array_equal(target.download(), tokens * np.array([[1], [0], [1]], np.float16))
    assert target.has_track == (True, False, True)


def test_broken_promises_are_internal_errors() -> None:
    state = new_state(FakeBackend())
    add(state, 7)
    add(state, 8)
    with pytest.raises(InternalError, match=r"rows \[7, 8\] cannot become \[8, 7\]"):
        state.set_rows([8, 7])
    with pytest.raises(InternalError, match="3 tokens restored into 2 rows"):
        state.restore(np.zeros((3, WIDTH), np.float32), [True] * 3)


def test_whoever_runs_out_of_memory_keeps_rows_that_fit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FakeBackend()
    state = new_state(backend)
    for id_ in range(4):
        add(state, id_)
    write_step(backend, state, [1.0] * 4)
    empty, calls = backend.empty, []

    def failing(shape: tuple[int, ...], dtype: DType) -> object:
        calls.append(shape)
        if len(calls) == 2:
            raise DeviceMemoryError("out of memory")
        return empty(shape, dtype)

    add(state, 4)
    while state.num_rows < state._current.shape[0]:
        add(state, state.num_rows)
    num = state.num_rows
    write_step(backend, state, [float(row) for row in range(num)])
    monkeypatch.setattr(backend, "empty", failing)
    with pytest.raises(DeviceMemoryError):
        add(state, num)
    assert state.num_rows == num
    write_step(backend, state, [float(row) for row in range(num)])
    add(state, num)
    assert state.following.shape[0] == state.current.shape[0] == num + 1
    assert state.download()[:num, 0].tolist() == list(range(num))
