"""The file of clips: what is read, and what is refused by name."""

from pathlib import Path

import pytest

from refsam_calibration.clips import (
    OwnVideo,
    RefYoutubeVosClips,
    RefYoutubeVosSet,
    SyntheticClips,
    SyntheticSet,
    read_clips,
)
from refsam_trt.errors import UsageError

CLIPS = Path(__file__).parents[2] / "calibration" / "clips.toml"

GOOD = """
schema = 1

[[calibrate]]
kind = "synthetic"
num_videos = 3

[[calibrate]]
kind = "ref-youtube-vos"
root = "rvos"
num_videos = 5
frames_per_video = 2

[[calibrate]]
kind = "video"
path = "clip.mp4"
expressions = ["the dog"]

[search]
kind = "ref-youtube-vos"
root = "held-out"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "clips.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_that_comes_with_the_project_is_read():
    clips = read_clips(CLIPS)
    assert isinstance(clips.search, SyntheticSet)
    assert isinstance(clips.verify, SyntheticSet)
    assert (clips.search.seed, clips.verify.seed) == (890_000, 900_000)
    assert clips.verify.num_videos == 200
    assert {type(source) for source in clips.calibrate} == {SyntheticClips}


def test_all_kinds_of_clips_are_read(tmp_path):
    clips = read_clips(write(tmp_path, GOOD))
    synthetic, folder, video = clips.calibrate
    assert synthetic == SyntheticClips(num_videos=3)
    assert folder == RefYoutubeVosClips(root="rvos", num_videos=5, frames_per_video=2)
    assert video == OwnVideo(path="clip.mp4", expressions=("the dog",))
    assert clips.search == RefYoutubeVosSet(root="held-out", split="train")
    assert clips.verify == SyntheticSet(seed=900_000, num_videos=200)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("num_videos = 3", "num_vidoes = 3"), "unknown field `num_vidoes`"),
        (("schema = 1", "schema = 2"), "schema 2: this version reads 1"),
        (("schema = 1", ""), "missing required field `schema`"),
        (("num_videos = 3", "seed = 890000"), r"calibrate 0: seed 890000: expected below 890000"),
        (("num_videos = 3", "seed = 900000"), r"calibrate 0: seed 900000: expected below 890000"),
        (("num_videos = 3", "seed = -1"), r"calibrate 0: seed -1: expected below 890000"),
        (("num_videos = 3", "num_videos = 0"), "calibrate 0: num_videos 0: expected 1 or more"),
        (("num_videos = 3", "slices = []"), "calibrate 0: slices: name at least one of attribute"),
        (("num_videos = 5", "num_videos = -1"), "calibrate 1: num_videos -1: expected 0 or more"),
        (
            ("num_videos = 5", "expressions_per_video = 0"),
            "calibrate 1: expressions_per_video 0: expected 1 or more",
        ),
        (
            ("frames_per_video = 2", "frames_per_video = 0"),
            "calibrate 1: frames_per_video 0: expected 1 or more",
        ),
        (('["the dog"]', "[]"), "calibrate 2: expressions: give at least one"),
        (('kind = "video"', 'kind = "film"'), "'film'"),
        (
            ('root = "held-out"', 'root = "rvos"'),
            r"search: rvos: calibrate uses .*/rvos/train/JPEGImages too; name other videos",
        ),
        (
            ('root = "held-out"', 'root = "./other/../rvos"'),
            r"search: \./other/\.\./rvos: calibrate uses .*/rvos/train/JPEGImages too",
        ),
        (
            ('path = "clip.mp4"', 'path = "held-out/train/JPEGImages/video"'),
            r"search: held-out: calibrate uses .*/held-out/train/JPEGImages/video too",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path, change, told):
    old, new = change
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=told) as refused:
        read_clips(path)
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schema = 1", r"no clips: give at least one \[\[calibrate\]\] table"),
        ("schema =", "clips.toml: Invalid"),
        (
            '{g}[verify]\nkind = "synthetic"\nseed = 890000\nnum_videos = 2\n',
            "verify: seed 890000: expected 900000 or more",
        ),
        (
            '[[calibrate]]\nkind="synthetic"\n[search]\nkind="synthetic"\nseed=5\nnum_videos=2\n',
            "search: seed 5: expected 890000 to below 900000",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, text, told):
    head = "" if "schema" in text else "schema = 1\n"
    text = text.replace("{g}", GOOD.replace("schema = 1", "")) if "{g}" in text else text
    with pytest.raises(UsageError, match=told):
        read_clips(write(tmp_path, head + text))


def test_no_file_is_refused_with_an_example(tmp_path):
    with pytest.raises(UsageError, match=r"never\.toml: no readable file of clips .*clips\.toml"):
        read_clips(tmp_path / "never.toml")
