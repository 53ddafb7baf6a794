"""A session equals the slow, obvious loop, whatever is padded, batched, chunked or joins late."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_twin import Twin, assert_close, assert_same_results, logits_by_id, random_frames

from refsam_trt import BackendError, ExpressionError, UsageError, VideoError
from refsam_trt.backends.ort import OrtContext, OrtCpuBackend
from refsam_trt.errors import DeviceMemoryError
from refsam_trt.session.engine import Engine
from refsam_trt.session.session import Session

TEXTS = ["dog", "the small red frisbee in the air", "a b", "x" * 63]


def test_batched_padded_and_late_expressions_equal_single_runs(
    folder: Path, video: Session
) -> None:
    frames = random_frames(6)
    first = {0: 0, 1: 0, 2: 2, 3: 4}  # expression -> the frame it joins at
    expected = {i: Twin(folder).track(frames, TEXTS[i], start) for i, start in first.items()}
    for index, frame in enumerate(frames):
        for expression, start in first.items():
            if start == index:
                assert video.add_expression(TEXTS[expression]) == expression
        results = video.step(frame)
        assert results.frame_index == index
        assert [r.text for r in results] == [
            TEXTS[i] for i, start in first.items() if start <= index
        ]
        for result in results:
            twin = expected[result.expression_id][index - first[result.expression_id]]
            assert_close(result.low_res_logits, twin["low_res_logits"][0, 0])
            assert result.predicted_iou == pytest.approx(twin["iou"].item(), rel=1e-5)
            assert result.frame_index == index


def test_expressions_that_leave_change_nothing_for_the_others(folder: Path, video: Session) -> None:
    frames = random_frames(5)
    expected = Twin(folder).track(frames, TEXTS[1])
    for text in TEXTS[:3]:
        video.add_expression(text)
    for index, frame in enumerate(frames):
        if index == 2:
            video.remove_expression(0)
        if index == 3:
            video.remove_expression(2)
        assert_close(logits_by_id(video.step(frame))[1], expected[index]["low_res_logits"][0, 0])
    assert video.expressions == {1: TEXTS[1]}


def test_the_track_token_matters(folder: Path, video: Session) -> None:
    frames = random_frames(2)
    video.add_expression("dog")
    video.step(frames[0])
    tracked = logits_by_id(video.step(frames[1]))[0]
    alone = Twin(folder).track(frames[1:], "dog")[0]["low_res_logits"][0, 0]
    assert float(np.abs(tracked - alone).max()) > 0.01 * float(np.abs(alone).max())


def test_reset_track_makes_the_next_frame_a_first_one(folder: Path, video: Session) -> None:
    frames = random_frames(4)
    for text in TEXTS[:2]:
        video.add_expression(text)
    for frame in frames[:2]:
        video.step(frame)
    video.reset_track(1)
    results = [logits_by_id(video.step(frame)) for frame in frames[2:]]
    kept = Twin(folder).track(frames, TEXTS[0])[2:]
    fresh = Twin(folder).track(frames, TEXTS[1], first=2)
    for step, a, b in zip(results, kept, fresh, strict=True):
        assert_close(step[0], a["low_res_logits"][0, 0])
        assert_close(step[1], b["low_res_logits"][0, 0])


def test_reset_forgets_the_video_but_not_the_expressions(video: Session) -> None:
    frames = random_frames(3)
    video.add_expression("dog")
    first = [video.step(frame) for frame in frames]
    assert (video.num_frames, video.frame_hw) == (3, (24, 40))
    video.reset()
    assert (video.num_frames, video.frame_hw, video.expressions) == (0, None, {0: "dog"})
    for again, before in zip(video.run(frames), first, strict=True):
        assert_same_results(again, before)
    video.reset()
    (other,) = video.step(random_frames(1, (10, 30))[0])
    assert other.frame_hw == other.mask.shape == (10, 30)


def test_one_text_twice_is_two_tracks(video: Session) -> None:
    frames = random_frames(3)
    a, b = video.add_expression("dog"), video.add_expression("Dog ")
    assert a != b
    video.step(frames[0])
    video.step(frames[1])
    video.reset_track(b)
    results = logits_by_id(video.step(frames[2]))
    assert not np.array_equal(results[a], results[b])


def test_bgr_frames_are_turned(engine: Engine) -> None:
    frames = random_frames(2)
    with engine.open_video() as rgb, engine.open_video(color="bgr") as bgr:
        rgb.add_expression("dog")
        bgr.add_expression("dog")
        for frame in frames:
            assert_same_results(bgr.step(frame[..., ::-1].copy()), rgb.step(frame))
            assert not np.array_equal(frame, frame[..., ::-1])


def test_results_outlive_the_steps_after_them(video: Session) -> None:
    frames = random_frames(4)
    video.add_expression("dog")
    first = video.step(frames[0])[0]
    kept = first.low_res_logits.copy()
    for frame in frames[1:]:
        video.step(frame)
    video.close()
    np.testing.assert_array_equal(first.low_res_logits, kept)
    assert first.mask.shape == (24, 40)


def test_run_yields_what_step_returns(engine: Engine) -> None:
    frames = random_frames(4)
    with engine.open_video() as one, engine.open_video() as other:
        one.add_expression("dog")
        other.add_expression("dog")
        steps = [one.step(frame) for frame in frames]
        for results, expected in zip(other.run(iter(frames)), steps, strict=True):
            assert_same_results(results, expected)
        assert list(other.finish()) == []


def test_without_expressions_there_is_nothing(video: Session) -> None:
    results = video.step(random_frames(1)[0])
    assert len(results) == 0
    assert results.label_map().tolist() == np.zeros((24, 40), np.uint8).tolist()
    video.add_expression("dog")
    assert video.step(random_frames(1)[0])[0].frame_index == 1


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((24, 40, 4), np.uint8), r"found ndarray \[24, 40, 4\], expected a numpy array"),
        (np.zeros((24, 40), np.uint8), r"found ndarray \[24, 40\], expected a numpy array, uint8"),
        ([1, 2], r"found list \[\], expected a numpy array, uint8 \[H, W, 3\]"),
        (np.zeros((24, 40, 3), np.float32), r"found float32 \[24 x 40 x 3\], expected uint8"),
        (np.zeros((0, 40, 3), np.uint8), "found 0 x 40 pixels"),
    ],
)
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_unusable_frames_are_refused(engine: Engine, frame: Any, message: str, color: Any) -> None:
    with engine.open_video(color=color) as video:
        with pytest.raises(VideoError, match=message):
            video.step(frame)
        assert video.num_frames == 0
        assert video.frame_hw is None


def test_frames_of_another_size_are_refused(engine: Engine, video: Session) -> None:
    video.step(random_frames(1)[0])
    message = r"frame 1: found \(40, 24\) \(height, width\), expected \(24, 40\).*call reset\(\)"
    with pytest.raises(VideoError, match=message):
        video.step(random_frames(1, (40, 24))[0])
    with (
        engine.open_video(original_hw=(30, 30)) as declared,
        pytest.raises(VideoError, match=r"frame 0: found \(24, 40\) .*expected \(30, 30\)"),
    ):
        declared.step(random_frames(1)[0])
    with pytest.raises(VideoError, match="found 0 x 30 pixels"):
        engine.open_video(original_hw=(0, 30))


def test_a_failed_frame_can_be_tried_again(video: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_frames(3)
    video.add_expression("dog")
    expected = [video.step(frame) for frame in frames]
    video.reset()
    video.step(frames[0])
    video.step(frames[1])

    def fail(*_: Any) -> None:
        raise BackendError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(OrtContext, "run", fail)
        with pytest.raises(BackendError, match="lost"):
            video.step(frames[2])
    assert_same_results(video.step(frames[2]), expected[2])


def test_a_frame_without_room_for_its_results_can_be_tried_again(
    video: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = random_frames(3)
    video.add_expression("dog")
    video.step(frames[0])
    video.add_expression("cat")
    empty = OrtCpuBackend.empty

    def failing(self: OrtCpuBackend, shape: tuple[int, ...], dtype: Any) -> Any:
        if len(shape) == 4:
            raise DeviceMemoryError("out of memory")
        return empty(self, shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(OrtCpuBackend, "empty", failing)
        with pytest.raises(DeviceMemoryError):
            video.step(frames[1])
    assert len(video.step(frames[1])) == 2


def test_wrong_calls_are_refused(engine: Engine, video: Session) -> None:
    video.add_expression("dog")
    video.add_expression("cat")
    for call in (video.remove_expression, video.reset_track):
        with pytest.raises(UsageError, match="no expression has the id 7; ids in use: 0, 1"):
            call(7)
    with pytest.raises(ExpressionError, match="the expression is empty"):
        video.add_expression(" ")
    assert video.add_expression("cow") == 2
    with pytest.raises(UsageError, match="color='gray' is not one of rgb, bgr"):
        engine.open_video(color="gray")  # type: ignore[arg-type]

    video.finish()
    frame = random_frames(1)[0]
    finished: list[Callable[[], object]] = [
        lambda: video.step(frame),
        lambda: video.add_expression("cow"),
        lambda: video.remove_expression(0),
        lambda: video.save_state("never"),
        video.finish,
    ]
    for closed_call in finished:
        with pytest.raises(UsageError, match=r"the video is finished; call reset\(\)"):
            closed_call()
    video.reset()
    assert len(video.step(frame)) == 3

    video.close()
    video.close()
    for closed_call in (*finished, video.reset, lambda: video.load_state("never")):
        with pytest.raises(UsageError, match=r"the session is closed; open another one"):
            closed_call()


def test_a_failed_first_frame_leaves_the_size_open(
    video: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    video.add_expression("dog")

    def fail(*_: Any) -> None:
        raise BackendError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(OrtContext, "run", fail)
        with pytest.raises(BackendError, match="lost"):
            video.step(random_frames(1)[0])
    assert (video.num_frames, video.frame_hw) == (0, None)
    assert len(video.step(random_frames(1, (9, 9))[0])) == 1
