"""Frames of clips: spread over sequences and time, the same every time."""

from pathlib import Path

import numpy as np
import pytest
from calibration_model import clips
from small_videos import moving_frames, write_video

from refsam_bench.synthetic import generate, write_ref_davis
from refsam_calibration.clips import Clips, OwnVideo, RefDavisClips
from refsam_calibration.ranges.videos import CalibrationVideo, digest_of, open_videos, spread
from refsam_trt.errors import CalibrationError, DatasetError


def are_spread(numbers: list[int], total: int) -> bool:
    """Whether every stretch of the video, which may begin within a frame, has one of them."""
    size = total / len(numbers)
    return all(int(k * size) <= n < (k + 1) * size for k, n in enumerate(numbers))


@pytest.mark.parametrize(("total", "wanted"), [(16, 4), (80, 5), (7, 3), (5, 5)])
@pytest.mark.parametrize("phase", [0.0, 0.4, 0.999])
def test_frames_are_one_of_each_stretch(total, wanted, phase):
    found = spread(total, wanted, phase)
    assert len(set(found)) == wanted
    assert found == sorted(found)
    assert are_spread(found, total)


def test_a_short_video_gives_all_it_has():
    assert spread(3, 8, 0.5) == [0, 1, 2]


def test_synthetic_videos_are_those_of_their_seed():
    videos = open_videos(clips(num_videos=4, frames_per_video=3), Path())
    assert len(videos) == 4
    for index, video in enumerate(videos):
        frames = np.stack(list(video.frames()))
        whole = generate(0, index, slice=("attribute", "size", "position")[index % 3])
        assert video.texts == (whole.expressions[0].text,)
        numbers = [
            next(n for n, f in enumerate(whole.frames) if np.array_equal(f, frame))
            for frame in frames
        ]
        assert len(numbers) == 3
        assert are_spread(numbers, 16)


def test_the_same_clips_have_the_same_hash_and_others_another():
    first = digest_of(open_videos(clips(), Path()))
    assert first == digest_of(open_videos(clips(), Path()))
    assert first[1] == 4
    assert first[0] != digest_of(open_videos(clips(frames_per_video=3), Path()))[0]
    video = open_videos(clips(), Path())[0]
    other = CalibrationVideo(video.name, ("another expression",), video.frames)
    assert digest_of([video])[0] != digest_of([other])[0]


def folder_clips(root: Path, **changes: object) -> Clips:
    source = RefDavisClips(**{"root": str(root), "split": "valid", "num_videos": 2, **changes})
    return Clips(schema=1, calibrate=(source,), seed=(changes and 1) or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_ref_davis(
        tmp_path / "set", seed=7, slice="attribute", num_videos=4, num_frames=6, size_hw=(64, 96)
    )
    return tmp_path / "set"


def test_videos_of_a_folder_are_drawn_with_their_expressions(folder):
    found = open_videos(folder_clips(folder, frames_per_video=3, expressions_per_video=2), Path())
    assert len({video.name for video in found}) == 2
    for video in found:
        assert len(video.texts) == 2
        assert [frame.shape for frame in video.frames()] == [(64, 96, 3)] * 3
    assert len(open_videos(folder_clips(folder, num_videos=0), Path())) == 4


def test_relative_folders_start_where_the_file_lies(folder):
    assert len(open_videos(folder_clips(Path("set")), folder.parent)) == 2


def test_a_folder_with_fewer_videos_than_asked_for_is_refused(folder):
    with pytest.raises(DatasetError, match=r"names 4 videos, but num_videos is 5; ask for fewer"):
        open_videos(folder_clips(folder, num_videos=5), Path())


def test_a_video_without_its_folder_is_refused(folder):
    path = next((folder / "valid" / "JPEGImages").iterdir())
    path.rename(path.with_name("other"))
    with pytest.raises(DatasetError, match=r"no such folder, though .* names the video; restore"):
        open_videos(folder_clips(folder, num_videos=0), Path())


def test_own_videos_are_read_at_frames_spread_over_them(tmp_path):
    write_video(tmp_path / "clip.mp4", moving_frames(9))
    source = OwnVideo(path="clip.mp4", expressions=("it", "that"), frames_per_video=3)
    (video,) = open_videos(Clips(schema=1, calibrate=(source,)), tmp_path)
    assert video.texts == ("it", "that")
    assert len(list(video.frames())) == 3
    assert digest_of([video]) == digest_of([video])


def test_clips_without_a_frame_are_refused():
    with pytest.raises(CalibrationError, match=r"^the clips hold no frame to calibrate with; name"):
        digest_of([CalibrationVideo("empty", ("it",), lambda: iter(()))])
