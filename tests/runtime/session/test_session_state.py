"""A saved session goes on bit for bit; a state that does not belong here is refused."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from runtime_twin import assert_same_results, logits_by_id, random_frames
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import refsam_trt
from refsam_trt import ExpressionError, OutputError, StateError, UsageError
from refsam_trt.result.result import FrameResults
from refsam_trt.session.engine import Engine
from refsam_trt.session.session import Session

TEXTS = ["dog", "the small red frisbee in the air", "a b", "x" * 63]


def saved_after(engine: Engine, path: Path, frames: np.ndarray) -> list[FrameResults]:
    """Save a session in the middle of a video; return what it gives for the rest."""
    with engine.open_video() as video:
        video.add_expression("gone")
        for text in TEXTS[:2]:
            video.add_expression(text)
        for frame in frames[:2]:
            video.step(frame)
        video.remove_expression(0)
        video.add_expression(TEXTS[2])  # saved without a track token
        video.save_state(path)
        return [video.step(frame) for frame in frames[2:]]


def test_a_restored_session_continues_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    frames = random_frames(5)
    path = tmp_path / "state.safetensors"
    with refsam_trt.load(folder, num_threads=1) as engine:
        expected = saved_after(engine, path, frames)
    with refsam_trt.load(folder, num_threads=1) as engine, engine.open_video() as video:
        video.add_expression("something else")
        video.step(random_frames(1, (9, 9))[0])
        video.load_state(path)
        assert video.expressions == {1: TEXTS[0], 2: TEXTS[1], 3: TEXTS[2]}
        assert (video.num_frames, video.frame_hw) == (2, (24, 40))
        for frame, before in zip(frames[2:], expected, strict=True):
            assert_same_results(video.step(frame), before)
        assert video.add_expression("new") == 4, "ids are never given twice"


def test_a_state_before_the_first_frame_is_restored(engine: Engine, tmp_path: Path) -> None:
    with engine.open_video() as empty, engine.open_video(original_hw=(24, 40)) as video:
        empty.save_state(tmp_path / "empty")
        empty.add_expression("dog")
        empty.save_state(tmp_path / "fresh")
        video.add_expression("cat")
        video.load_state(tmp_path / "empty")
        assert (video.expressions, video.num_frames, video.frame_hw) == ({}, 0, (24, 40))
        video.load_state(tmp_path / "fresh")
        frame = random_frames(1)[0]
        assert_same_results(video.step(frame), empty.step(frame))


def test_a_state_that_cannot_be_written_leaves_nothing(video: Session, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*absent does not exist; create it first"):
        video.save_state(tmp_path / "absent" / "state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder: found a folder .*expected a file"):
        video.save_state(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_exchanged_tokens_exchange_the_memory(engine: Engine, tmp_path: Path) -> None:
    frames = random_frames(4)
    path = tmp_path / "state.safetensors"
    with engine.open_video() as video:
        # The same words twice: only the tokens tell the two apart.
        a, b = video.add_expression("dog"), video.add_expression("dog")
        for frame in frames[:2]:
            video.step(frame)
        video.reset_track(b)
        video.step(frames[2])
        video.save_state(path)
        expected = logits_by_id(video.step(frames[3]))
        assert not np.array_equal(expected[a], expected[b])

        tensors = load_file(path)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        tensors["track_token"] = tensors["track_token"][::-1].copy()
        save_file(tensors, path, metadata)
        video.load_state(path)
        results = logits_by_id(video.step(frames[3]))
    np.testing.assert_array_equal(results[a], expected[b])
    np.testing.assert_array_equal(results[b], expected[a])


@pytest.fixture
def state(engine: Engine, tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    saved_after(engine, path, random_frames(3))
    return path


def rewrite(path: Path, tensors: dict[str, np.ndarray] | None = None, **changes: Any) -> None:
    """Change JSON fields, or the tensors, of a state file."""
    kept = load_file(path) if tensors is None else tensors
    with safe_open(path, "numpy") as file:
        saved = msgspec.json.decode(file.metadata()["refsam_state"])
    save_file(kept, path, {"refsam_state": msgspec.json.encode(saved | changes).decode()})


def refusal(video: Session, path: Path, error: type[Exception] = StateError) -> str:
    """Return why `path` is refused, having made sure that the session went on unharmed."""
    frames = random_frames(3, seed=5)
    video.reset()
    video.add_expression("dog")
    video.step(frames[0])
    with pytest.raises(error) as caught:
        video.load_state(path)
    results = [video.step(frame) for frame in frames[1:]]
    video.reset()
    expected = [video.step(frame) for frame in frames]
    for a, b in zip(results, expected[1:], strict=True):
        assert_same_results(a, b)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle_id": "0" * 64}, "saved with bundle 000"),
        ({"variant": "fp16-x"}, "saved with variant fp16-x, this engine has fp32-plain-"),
        ({"precision": "fp16"}, "saved with precision fp16, this engine has fp32; load the preci"),
        ({"schema": 2}, "not a session state (schema 2, this version reads 1); save it again"),
        ({"schema": "1"}, "not a session state (ValidationError"),
        ({"extra": 1}, "not a session state (ValidationError: Object contains unknown field"),
        ({"num_frames": -1}, "ids, frame counter or frame size make no sense; save it again"),
        ({"frame_hw": (0, 3)}, "ids, frame counter or frame size make no sense"),
        ({"next_expression_id": 2}, "ids, frame counter or frame size make no sense"),
        ({"expressions": []}, "expected a row for each of 0 expressions; save it again"),
        ({"frame_hw": (100_000, 100_000)}, "100000"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    video: Session, state: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(state, **changes)
    assert message in refusal(video, state)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "state tensor 'track_token': missing, expected float32 [3, 256]"),
        (
            {"track_token": np.zeros((3, 256), np.float16)},
            "'track_token': float16 [3, 256], expected float32 [3, 256]",
        ),
        (
            {"track_token": np.zeros((3, 256), np.float32), "has_track": np.ones(2, bool)},
            "'has_track' [2], expected a row for each of 3 expressions",
        ),
        (
            {"track_token": np.zeros((3, 8), np.float32), "has_track": np.ones(3, bool)},
            "'track_token': float32 [3, 8], expected float32 [3, 256]",
        ),
        (
            {
                "track_token": np.full((3, 256), np.nan, np.float32),
                "has_track": np.ones(3, bool),
            },
            "state tensor 'track_token': holds values that are not finite",
        ),
    ],
)
def test_state_tensors_that_do_not_fit_are_refused(
    video: Session, state: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    rewrite(state, tensors)
    assert message in refusal(video, state)


def test_damaged_state_files_are_refused(
    video: Session, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not a session state (FileNotFoundError" in refusal(video, state.with_name("absent"))
    raw = state.read_bytes()
    state.write_bytes(raw[: len(raw) // 2])
    assert f"{state}: not a session state (SafetensorError" in refusal(video, state)
    save_file({}, state)
    assert "not a session state (KeyError" in refusal(video, state)
    monkeypatch.setattr("refsam_trt.session.state_file.MAX_STATE_BYTES", 10)
    assert "not a session state (over 10 bytes); save it again" in refusal(video, state)


def test_a_state_for_other_frames_or_unknown_expressions_is_refused(
    engine: Engine, folder: Path, state: Path
) -> None:
    with (
        engine.open_video(original_hw=(9, 9)) as video,
        pytest.raises(StateError, match=r"saved from frames of \(24, 40\), .*opened for \(9, 9\)"),
    ):
        video.load_state(state)
    with refsam_trt.load(folder, text="cache-only") as cached, cached.open_video() as video:
        with pytest.raises(ExpressionError, match="not among the 0 cached in the bundle"):
            video.load_state(state)
        assert video.expressions == {}


def test_copied_tracks_are_gone_on_from(engine: Engine) -> None:
    frames = random_frames(3)
    with engine.open_video() as first, engine.open_video() as second:
        for video in (first, second):
            video.add_expression("dog")
        first.step(frames[0])
        second.copy_tracks(first)
        second.step(frames[1])
        first.step(frames[1])
        first.reset_track(0)
        ours, theirs = second.step(frames[2])[0], first.step(frames[2])[0]
        assert not np.array_equal(ours.low_res_logits, theirs.low_res_logits)
        second.copy_tracks(first)
        ours, theirs = second.step(frames[0])[0], first.step(frames[0])[0]
        np.testing.assert_array_equal(ours.low_res_logits, theirs.low_res_logits)


def test_tracks_that_do_not_fit_are_not_copied(engine: Engine, folder: Path) -> None:
    with engine.open_video() as first, engine.open_video() as second:
        first.add_expression("dog")
        with pytest.raises(
            StateError, match=r"track_token': float32 \[0, 256\], expected float32 \["
        ):
            first.copy_tracks(second)
        with refsam_trt.load(folder) as other, other.open_video() as third:
            third.add_expression("dog")
            with pytest.raises(UsageError, match="copied between sessions of one engine only"):
                first.copy_tracks(third)


def test_a_restored_state_saves_the_same_again(engine: Engine, tmp_path: Path) -> None:
    saved_after(engine, tmp_path / "a", random_frames(2))
    with engine.open_video() as video:
        video.load_state(tmp_path / "a")
        video.save_state(tmp_path / "b")
    a, b = (load_file(tmp_path / name) for name in "ab")
    assert a["has_track"].tolist() == [True, True, False]
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
