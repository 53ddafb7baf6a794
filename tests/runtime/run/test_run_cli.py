"""`refsam-run` on videos, folders and images: what it writes, and that it writes it twice alike."""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import fake_bundle
import fake_late_family
import numpy as np
import pytest
from commands_in_process import Commands, Ended
from PIL import Image
from small_videos import HW, moving_frames, write_images, write_video

import refsam_trt
import refsam_trt.media.frames as frames_module
from refsam_trt.contract.manifest import Weights
from refsam_trt.contract.registry import REGISTRY
from refsam_trt.errors import UsageError, VideoError
from refsam_trt.media.frames import open_frames
from refsam_trt.result.overlay import colors_for, draw
from refsam_trt.result.rle import mask_from_rle
from refsam_trt.result.writers import OverlayVideoWriter
from refsam_trt.run.cli import main
from refsam_trt.run.interruption import Interruption
from refsam_trt.run.outputs import RANDOM_CAPTION, draw_masks
from refsam_trt.run.stages import SelectedFrames, finished_frames

TEXTS = ("the dog on the left", "A red frisbee")
NUM_FRAMES = 7


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", split="optimised")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose weights all came from files."""
    weights = Weights(sources=(), random_init_seed=None, num_random_tensors=0)
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "t", weights=weights)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_frames(NUM_FRAMES))


@pytest.fixture
def run(monkeypatch, capfd):
    commands = Commands(monkeypatch, capfd)

    def call(*arguments: object) -> Ended:
        return commands(main, *arguments, "--threads", 1)

    return call


def expected_results(bundle: Path, source: Path, texts=TEXTS) -> list[refsam_trt.FrameResults]:
    """What a session gives, frame by frame."""
    with (
        refsam_trt.load(bundle, num_threads=1) as engine,
        engine.open_video() as video,
        open_frames(source) as frames,
    ):
        for text in texts:
            video.add_expression(text)
        return list(video.run(frames))


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_written_is_what_a_session_gives(run, bundle, clip, tmp_path):
    out = tmp_path / "out"
    ended = run(bundle, clip, *TEXTS, "--output", out, "--save", "masks,rle,overlay,json")
    assert ended.code == 0, ended.err
    expected = expected_results(bundle, clip)
    names = [f"{index:05d}" for index in range(NUM_FRAMES)]
    rle = json.loads((out / "rle.json").read_text())
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (rle["video"], rle["size"], rle["expressions"]) == ("clip", list(HW), list(TEXTS))
    assert list(rle["frames"]) == names == [line["frame"] for line in lines]
    for name, results, line in zip(names, expected, lines, strict=True):
        np.testing.assert_array_equal(read_png(out / f"masks/{name}.png"), results.label_map())
        for result, coded, said in zip(results, rle["frames"][name], line["results"], strict=True):
            np.testing.assert_array_equal(mask_from_rle(coded), result.mask)
            assert said == {
                "expression_id": result.expression_id,
                "expression": TEXTS[result.expression_id],
                "box_xyxy": list(result.box_xyxy),
                "mask_area_px": int(result.mask.sum()),
                "mask_confidence": result.mask_confidence,
                "predicted_iou": result.predicted_iou,
            }
    assert all(0 < results[0].mask.mean() < 1 for results in expected)
    with open_frames(out / "overlay.mp4") as overlay:
        assert (overlay.num_frames, overlay.original_hw, overlay.fps) == (NUM_FRAMES, HW, 10)


def test_default_outputs_and_what_is_printed(run, bundle, clip, tmp_path, caplog):
    out = tmp_path / "out"
    ended = run(bundle, clip, *TEXTS, "--output", out)
    assert ended.code == 0, ended.err
    masks = [f"masks/{index:05d}.png" for index in range(NUM_FRAMES)]
    assert list(files_of(out)) == [*masks, "overlay.mp4", "rle.json", "run.json"]
    assert ended.out.startswith("RANDOM WEIGHTS: masks of this bundle mean nothing\n7 frames, ")
    assert f"{out}/masks: 7 files\n" in ended.out
    assert f"{out}/overlay.mp4\n" in ended.out
    assert "weights are random (seed 0): masks mean nothing" in caplog.text
    assert "frames: 7/7" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_prints_one_object_and_nothing_else(run, bundle, clip, tmp_path):
    out = tmp_path / "out"
    ended = run(bundle, clip, *TEXTS, "--output", out, "--save", "rle", "--json")
    report = json.loads(ended.out)
    assert report.pop("fps") > 0
    assert report == {
        "output": str(out),
        "num_frames": NUM_FRAMES,
        "num_dropped": 0,
        "files": ["rle.json", "run.json"],
        "bundle_id": (bundle / "manifest.sha256").read_text().strip(),
        "variant": "fp32-plain-optimised",
        "precision": "fp32",
        "backend": "ort-cpu",
        "random_init": True,
        "unseen_words": {},
        "interrupted": None,
    }


def test_the_record_says_what_was_run(run, trained, clip, tmp_path):
    out = tmp_path / "out"
    run(trained, clip, "a dog", "--output", out, "--save", "rle", "--end", 3, "--threshold", 0.5)
    record = json.loads((out / "run.json").read_text())
    assert record == {
        "tool": f"refsam-run {refsam_trt.__version__}",
        "bundle_id": (trained / "manifest.sha256").read_text().strip(),
        "variant": "fp32-plain-baseline",
        "precision": "fp32",
        "backend": "ort-cpu",
        "random_init": False,
        "source": str(clip),
        "dataset": None,
        "threshold": 0.5,
        "track_state_scope": "expression",
        "frames": {"start": 0, "end": 3, "stride": 1},
        "is_complete": True,
        "unseen_words": {},
        "videos": {
            "clip": {
                "expressions": ["a dog"],
                "num_frames": 3,
                "num_dropped": 0,
                "size": list(HW),
            }
        },
    }


def test_two_runs_give_identical_files(run, bundle, clip, tmp_path):
    for name in ("one", "two"):
        ended = run(
            *(bundle, clip, *TEXTS, "--output", tmp_path / name),
            *("--save", "masks,rle,overlay,json"),
        )
        assert ended.code == 0, ended.err
    first, second = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert len(first) == NUM_FRAMES + 4
    assert first == second


def test_selected_frames_keep_their_names_and_follow_each_other(run, bundle, tmp_path):
    frames = moving_frames(9)
    images = write_images(tmp_path / "images", frames)
    selected = write_images(tmp_path / "chosen", frames[2:8:3])
    out = tmp_path / "out"
    ended = run(
        *(bundle, images, *TEXTS, "--output", out, "--save", "masks"),
        *("--start", 2, "--end", 8, "--stride", 3),
    )
    assert ended.code == 0, ended.err
    assert [path.name for path in sorted((out / "masks").iterdir())] == ["00002.png", "00005.png"]
    for path, results in zip(
        sorted((out / "masks").iterdir()), expected_results(bundle, selected), strict=True
    ):
        np.testing.assert_array_equal(read_png(path), results.label_map())


def test_a_thinned_video_plays_at_the_speed_of_the_whole(run, bundle, clip, tmp_path):
    out = tmp_path / "out"
    assert run(bundle, clip, "a dog", "--output", out, "--stride", 3).code == 0
    with open_frames(out / "overlay.mp4") as overlay:
        assert overlay.num_frames == 3
        assert overlay.fps == pytest.approx(10 / 3)


def test_one_image_gives_one_picture(run, trained, tmp_path):
    (frame,) = moving_frames(1)
    Image.fromarray(frame).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert run(trained, tmp_path / "photo.png", *TEXTS, "--output", out).code == 0
    assert list(files_of(out)) == ["masks/photo.png", "overlay.png", "rle.json", "run.json"]
    (results,) = expected_results(trained, tmp_path / "photo.png")
    drawn = draw(frame, [result.mask for result in results], TEXTS, colors_for(2))
    np.testing.assert_array_equal(read_png(out / "overlay.png"), drawn)


def test_random_weights_are_written_across_the_overlay(run, bundle, tmp_path):
    (frame,) = moving_frames(1, (180, 320))
    Image.fromarray(frame).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    args = (bundle, tmp_path / "photo.png", "a dog", "--output", out, "--save", "overlay,json")
    assert run(*args).code == 0
    (results,) = expected_results(bundle, tmp_path / "photo.png", ("a dog",))
    drawn = draw(frame, [results[0].mask], ["a dog"], colors_for(1))
    picture = read_png(out / "overlay.png")
    changed = np.flatnonzero((picture != drawn).any(axis=(1, 2)))
    banner = picture[changed[0] :]
    assert len(changed) == len(banner) < 30  # only at the bottom
    assert (banner.max(axis=2) == banner.min(axis=2)).all()  # black, grey, white
    assert 0.02 < np.mean(banner > 128) < 0.5
    assert RANDOM_CAPTION == "RANDOM WEIGHTS: masks mean nothing"
    assert json.loads((out / "results.jsonl").read_text())["random_init"] is True


def test_the_threshold_moves_masks(run, bundle, clip, tmp_path):
    areas = {}
    for threshold in (-1.0, 1.0):
        out = tmp_path / str(threshold)
        args = (bundle, clip, "a dog", "--output", out, "--save", "json", "--threshold", threshold)
        assert run(*args).code == 0
        lines = (out / "results.jsonl").read_text().splitlines()
        areas[threshold] = [json.loads(line)["results"][0]["mask_area_px"] for line in lines]
    assert all(low > high for low, high in zip(areas[-1.0], areas[1.0], strict=True))


def test_expressions_come_from_a_file_too(run, bundle, clip, tmp_path):
    (tmp_path / "list.txt").write_text("a cat\n\nein grüner Hund\n", encoding="utf-8")
    out = tmp_path / "out"
    ended = run(
        *(bundle, clip, "a dog", "--expressions", tmp_path / "list.txt"),
        *("--output", out, "--save", "rle", "--end", 1),
    )
    assert ended.code == 0, ended.err
    rle = json.loads((out / "rle.json").read_text())
    assert rle["expressions"] == ["a dog", "a cat", "ein grüner Hund"]


def test_overwrite_replaces_the_whole_of_an_earlier_run(run, bundle, clip, tmp_path):
    out = tmp_path / "out"
    assert run(bundle, clip, "a dog", "--output", out).code == 0
    args = (bundle, clip, "a cat", "--output", out, "--save", "rle", "--overwrite")
    assert run(*args).code == 0
    assert list(files_of(out)) == ["rle.json", "run.json"]
    assert json.loads((out / "rle.json").read_text())["expressions"] == ["a cat"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_late_results_meet_their_frames(run, monkeypatch, tmp_path):
    monkeypatch.setitem(REGISTRY, fake_late_family.FAMILY, fake_late_family.MODULES)
    bundle = fake_late_family.make_late_bundle(tmp_path / "late")
    images = write_images(tmp_path / "images", moving_frames(4))
    out = tmp_path / "out"
    ended = run(bundle, images, *TEXTS, "--output", out, "--start", 1)
    assert ended.code == 0, ended.err
    with refsam_trt.load(bundle, num_threads=1) as engine, engine.open_video() as video:
        for text in TEXTS:
            video.add_expression(text)
        assert list(video.run(moving_frames(4)[1:])) == []
        expected = list(video.finish())
    for index, results in enumerate(expected, start=1):
        np.testing.assert_array_equal(read_png(out / f"masks/{index:05d}.png"), results.label_map())


def test_a_late_model_cannot_run_a_source_without_an_end():
    frames = SimpleNamespace(source=SimpleNamespace(name="camera:0", is_live=True))
    with pytest.raises(UsageError, match="camera:0: this model decides when a video ends, which a"):
        finished_frames(None, frames, draw_masks, is_late=True)


def test_a_source_that_is_shorter_when_read_again_is_refused():
    """Instead of leaving out the results of what is gone."""
    readings = iter([[(0, "a"), (1, "b")], [(0, "a")]])
    source = SimpleNamespace(name="clip", is_live=False, frame_name=str)
    selection = SimpleNamespace(of=lambda source: iter(next(readings)))
    frames = SelectedFrames(source, selection, Interruption(), is_dropping=False)
    session = SimpleNamespace(
        run=lambda frames: iter([]) if list(frames) else None, finish=lambda: iter([[], []])
    )
    with pytest.raises(VideoError, match="clip: ends sooner when it is read again; do not change"):
        list(finished_frames(session, frames, draw_masks, is_late=True))


def test_a_late_model_holds_few_frames_and_reads_twice(run, monkeypatch, tmp_path):
    """However long the video is: frames that wait for late results would not fit into memory."""
    monkeypatch.setitem(REGISTRY, fake_late_family.FAMILY, fake_late_family.MODULES)
    bundle = fake_late_family.make_late_bundle(tmp_path / "late")
    images = write_images(tmp_path / "images", moving_frames(120))
    alive, most_alive, read = weakref.WeakSet(), [], frames_module._image

    class Tracked(np.ndarray):
        """An array that can be in a WeakSet."""

        __hash__ = object.__hash__

    def counted(*args):
        frame = read(*args).view(Tracked)
        alive.add(frame)
        most_alive.append(len(alive))
        return frame

    monkeypatch.setattr(frames_module, "_image", counted)
    ended = run(bundle, images, *TEXTS, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert len(most_alive) == 2 * 120 + 1  # the first one tells the size, too
    assert max(most_alive) <= 64


def test_embeddings_are_kept_on_disk_when_asked_to(run, bundle, clip, tmp_path):
    cache = tmp_path / "cache"
    for name in ("first", "second"):
        args = (bundle, clip, "a bright square", "--output", tmp_path / name, "--end", 1)
        ended = run(*args, "--text-cache", cache)
        assert ended.code == 0, ended.err
    assert len(list(cache.rglob("*.safetensors"))) == 1


def test_the_overlay_shows_each_mask_on_its_own_frame(run, trained, tmp_path, monkeypatch):
    frames, shown, write = moving_frames(NUM_FRAMES), [], OverlayVideoWriter.write

    def spy(self, frame):
        shown.append(frame.copy())
        return write(self, frame)

    monkeypatch.setattr(OverlayVideoWriter, "write", spy)
    source = write_images(tmp_path / "images", frames)
    ended = run(trained, source, *TEXTS, "--output", tmp_path / "out", "--save", "overlay")
    assert ended.code == 0, ended.err
    expected = expected_results(trained, source)
    for picture, frame, results in zip(shown, frames, expected, strict=True):
        masks = [result.mask for result in results]
        np.testing.assert_array_equal(picture, draw(frame, masks, TEXTS, colors_for(2)))
