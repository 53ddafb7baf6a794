"""Frames in flight: the same results as one step after the other, and features that are shared."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from runtime_twin import assert_same_results, logits_by_id, random_frames

import refsam_trt
from refsam_trt import UsageError, VideoError
from refsam_trt.backends.base import Buffer
from refsam_trt.errors import BackendError
from refsam_trt.families.refsam.family import RefsamEncoder
from refsam_trt.result.result import FrameResults
from refsam_trt.session.engine import Engine
from refsam_trt.session.session import Session

TEXTS = ["dog", "the cat"]


def opened(engine: Engine, texts: list[str] = TEXTS) -> Session:
    video = engine.open_video()
    for text in texts:
        video.add_expression(text)
    return video


def stepped(engine: Engine, frames: np.ndarray) -> list[FrameResults]:
    with opened(engine) as video:
        return [video.step(frame) for frame in frames]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_results_are_those_of_steps_bit_for_bit(engine: Engine, ahead: int) -> None:
    frames = random_frames(9)
    with opened(engine) as video:
        results = list(video.run(iter(frames), ahead))
        assert video.num_frames == 9
        more = video.step(frames[0])
    expected = stepped(engine, np.concatenate([frames, frames[:1]]))
    for one, other in zip([*results, more], expected, strict=True):
        assert_same_results(one, other)


def test_expressions_may_change_between_two_results(engine: Engine) -> None:
    frames = random_frames(8)

    def change(video: Session, index: int) -> None:
        if index == 2:
            video.remove_expression(0)
        if index == 3:
            video.add_expression("a horse")
        if index == 5:
            video.reset_track(1)

    with opened(engine) as one, opened(engine) as other:
        for index, results in enumerate(one.run(frames)):
            assert_same_results(results, other.step(frames[index]))
            change(one, index)
            change(other, index)
        assert list(one.expressions) == list(other.expressions) == [1, 2]


def test_sessions_run_beside_each_other(engine: Engine) -> None:
    videos = [random_frames(6, seed=seed) for seed in range(3)]
    expected = [stepped(engine, frames) for frames in videos]
    sessions = [opened(engine) for _ in videos]
    runs = [video.run(frames) for video, frames in zip(sessions, videos, strict=True)]
    for row in zip(*expected, strict=True):
        for run, results in zip(runs, row, strict=True):
            assert_same_results(next(run), results)
    for run, video in zip(runs, sessions, strict=True):
        assert list(run) == []
        video.close()


def test_while_it_goes_on_no_other_call_takes_frames(engine: Engine, tmp_path: object) -> None:
    frames = random_frames(5)
    with opened(engine) as video:
        run = video.run(frames)
        next(run)
        for call in (
            lambda: video.step(frames[0]),
            lambda: video.encode(frames[0]),
            lambda: next(video.run(frames)),
            lambda: video.finish(),
            lambda: video.reset(),
            lambda: video.load_state("nowhere"),
        ):
            with pytest.raises(UsageError, match=r"run\(\) goes on and has taken later frames"):
                call()
        run.close()  # type: ignore[attr-defined]
        assert video.num_frames == 1
        assert_same_results(video.step(frames[1]), stepped(engine, frames)[1])


def test_a_frame_of_another_size_comes_behind_the_results_before_it(engine: Engine) -> None:
    frames = random_frames(4)
    mixed = [*frames[:3], *random_frames(1, (40, 24))]
    with opened(engine) as video:
        seen: list[int] = []
        with pytest.raises(VideoError, match=r"frame 3: found \(40, 24\) .* expected \(24, 40\)"):
            seen.extend(results.frame_index for results in video.run(mixed))
        assert seen == [0, 1, 2]
        assert_same_results(video.step(frames[3]), stepped(engine, frames)[3])


def test_an_error_of_the_source_leaves_the_session_usable(engine: Engine) -> None:
    frames = random_frames(3)

    def source() -> Iterator[np.ndarray]:
        yield from frames[:2]
        raise OSError("the disk is gone")

    with opened(engine) as video:
        seen = []
        with pytest.raises(OSError, match="the disk is gone"):
            seen += [results.frame_index for results in video.run(source())]
        assert video.num_frames == 2
        assert_same_results(video.step(frames[2]), stepped(engine, frames)[2])


def test_a_failing_encoder_leaves_the_session_usable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, encode, calls = random_frames(4), RefsamEncoder.encode, []

    def failing(encoder: RefsamEncoder, image: np.ndarray | Buffer) -> object:
        calls.append(threading.current_thread())
        if len(calls) == 3:
            raise BackendError("the device is gone")
        return encode(encoder, image)

    expected = stepped(engine, frames)
    with opened(engine) as video:
        monkeypatch.setattr(RefsamEncoder, "encode", failing)
        with pytest.raises(BackendError, match="the device is gone"):
            list(video.run(frames))
        assert threading.current_thread() not in calls
        assert video.num_frames == 2
        monkeypatch.setattr(RefsamEncoder, "encode", encode)
        assert_same_results(video.step(frames[2]), expected[2])


def test_one_frame_serves_several_sessions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, encode, calls = random_frames(4), RefsamEncoder.encode, []

    def counted(encoder: RefsamEncoder, image: np.ndarray | Buffer) -> object:
        calls.append(encoder)
        return encode(encoder, image)

    expected = [stepped(engine, frames), stepped(engine, frames)]
    monkeypatch.setattr(RefsamEncoder, "encode", counted)
    with opened(engine) as one, opened(engine) as other:
        for index, frame in enumerate(frames):
            with one.encode(frame) as encoded:
                assert encoded.frame_hw == (24, 40)
                for video, results in zip((one, other), expected, strict=True):
                    (shared,) = video.decode(encoded)
                    assert_same_results(shared, results[index])
    assert len(calls) == len(frames)


def test_encoded_frames_do_not_disturb_each_other(engine: Engine) -> None:
    """Three are in use at once: none of them may lie in another's memory."""
    frames = random_frames(6)
    with opened(engine) as video, opened(engine) as encoding:
        waiting = [encoding.encode(frame) for frame in frames[:3]]
        seen = []
        for frame in [*frames[3:], None, None, None]:
            first = waiting.pop(0)
            seen += video.decode(first)
            first.release()
            if frame is not None:
                waiting.append(encoding.encode(frame))
    for one, other in zip(seen, stepped(engine, frames), strict=True):
        assert logits_by_id(one).keys() == {0, 1}
        assert_same_results(one, other)


def test_frames_of_another_engine_are_refused(engine: Engine) -> None:
    frame = random_frames(1)[0]
    with (
        refsam_trt.load("nano") as other,
        other.open_video() as stranger,
        opened(engine) as video,
        stranger.encode(frame) as encoded,
        pytest.raises(UsageError, match="encoded by another engine"),
    ):
        video.decode(encoded)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_whoever_gives_frames_may_reuse_their_memory(engine: Engine, ahead: int) -> None:
    """As readers do that decode every frame into the same array."""
    frames = random_frames(9)

    def reused() -> Iterator[np.ndarray]:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[...] = frame
            yield buffer

    with opened(engine) as video:
        for one, other in zip(video.run(reused(), ahead), stepped(engine, frames), strict=True):
            assert_same_results(one, other)


class OnGpu:
    """An array that lies on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_frames_on_a_gpu_are_not_taken_ahead(engine: Engine) -> None:
    """They are read where they lie, so that whoever gives them must not be asked for the next."""
    taken: list[OnGpu] = []

    def frames() -> Iterator[OnGpu]:
        for _ in range(9):
            taken.append(OnGpu())
            yield taken[-1]

    with engine.open_video(original_hw=(24, 40)) as video:
        with pytest.raises(BackendError, match="an array on a GPU, but the backend runs on"):
            next(video.run(frames()))
        assert len(taken) == 1
        video.add_expression("dog")
        mixed = [*random_frames(1), OnGpu()]
        with pytest.raises(VideoError, match=r"behind frames on the host.*; use run\(frames, ahea"):
            list(video.run(mixed))


def test_a_session_that_is_closed_does_not_go_on(engine: Engine) -> None:
    video = opened(engine)
    run = video.run(random_frames(9))
    next(run)
    video.close()
    with pytest.raises(UsageError, match="the session is closed"):
        next(run)
