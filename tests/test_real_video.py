"""The whole chain on real frames of several sizes, upright and turned: sizes, determinism."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import shared_data
from exported import exported
from PIL import Image

import refsam_trt
from refsam_trt.media.frames import open_frames
from refsam_trt.run.cli import command

EXPRESSIONS = ("the dog on the left", "a person wearing a hat")
SOURCES = {
    "clip, 960x540": ("clips", "bedroom.mp4"),
    "clip, 1280x720": ("clips", "01_dog.mp4"),
    "photo, 1800x1200": ("photos", "truck.jpg"),
    "photo, 800x534": ("photos", "groceries.jpg"),
    "frames, 854x480": ("ref-davis-mini", "valid", "JPEGImages", "blackswan"),
    "frames, 432x240": ("ref-davis-mini", "valid", "JPEGImages", "dogs-jump"),
}
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "nano")


def first_frames(source: Path) -> list[np.ndarray]:
    with open_frames(source) as frames:
        return [frame for _, frame in zip(range(NUM_FRAMES), frames, strict=False)]


@pytest.mark.parametrize("turned", [False, True], ids=["landscape", "portrait"])
@pytest.mark.parametrize("source", SOURCES)
def test_chain_gives_masks_of_the_frames_size(bundle: Path, source: str, turned: bool):
    frames = first_frames(shared_data.path(*SOURCES[source]))
    if turned:
        frames = [np.ascontiguousarray(np.rot90(frame)) for frame in frames]
    with refsam_trt.load(bundle) as engine:
        runs = [list(engine.track(frames, EXPRESSIONS)) for _ in range(2)]
    assert len(runs[0]) == len(frames) * len(EXPRESSIONS)
    for first, second in zip(*runs, strict=True):
        assert first.mask.shape == frames[0].shape[:2]
        assert 0.0 < first.mask.mean() < 0.95
        np.testing.assert_array_equal(first.low_res_logits, second.low_res_logits)
    assert not np.array_equal(runs[0][0].mask, runs[0][1].mask), "expressions must differ"


@pytest.mark.parametrize("source", ["clip, 960x540", "frames, 432x240"])
def test_two_runs_of_the_command_give_identical_files(bundle: Path, source: str, tmp_path: Path):
    path = shared_data.path(*SOURCES[source])
    digests = []
    for name in ("first", "second"):
        output = tmp_path / name
        arguments = [str(bundle), str(path), *EXPRESSIONS, "--output", str(output)]
        command.main([*arguments, "--end", str(NUM_FRAMES)], standalone_mode=False)
        files = sorted(p for p in output.rglob("*") if p.is_file())
        digests.append(
            {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        )
    assert digests[0] == digests[1]
    height, width = first_frames(path)[0].shape[:2]
    masks = [name for name in digests[0] if name.startswith("masks/")]
    assert len(masks) == NUM_FRAMES
    with Image.open(tmp_path / "first" / masks[0]) as mask:
        assert mask.mode == "P"
        assert mask.size == (width, height)
    record = json.loads((tmp_path / "first" / "rle.json").read_text())
    assert record["size"] == [height, width]
