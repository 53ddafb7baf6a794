"""`refsam-run --dataset`: results where the evaluations look for them."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import fake_bundle
import numpy as np
import pytest
import shared_data
from commands_in_process import Commands, Ended
from PIL import Image
from runtime_twin import Twin, assert_close
from small_videos import HW, moving_frames

import refsam_trt
from refsam_bench.accuracy.ref_davis import load_ref_davis
from refsam_trt.contract.manifest import Limits
from refsam_trt.image.postprocess import label_map_from_logits
from refsam_trt.run import datasets
from refsam_trt.run import jobs as run_jobs
from refsam_trt.run.cli import main
from refsam_trt.run.meta_expressions import load_meta_expressions
from refsam_trt.session.session import Session

FRAMES = ["00000", "00005", "00010"]
NUM_ANNOTATORS = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def run(monkeypatch, capfd):
    commands = Commands(monkeypatch, capfd)

    def call(*arguments: object) -> Ended:
        return commands(main, *arguments, "--threads", 1)

    return call


def write_meta(root: Path, split: str, meta: object) -> Path:
    path = root / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(meta))
    return path


def make_dataset(root: Path, num_objects: dict[str, int]) -> dict:
    """Write videos of 12 images, of which `FRAMES` count, and four expressions per object."""
    videos = {}
    for name, count in num_objects.items():
        folder = root / "valid/JPEGImages" / name
        folder.mkdir(parents=True)
        for index, frame in enumerate(moving_frames(12)):
            Image.fromarray(frame).save(folder / f"{index:05d}.jpg", quality=90)
        texts = {
            str(4 * obj + k): {"exp": f"{name} {obj} as {k} says", "obj_id": str(obj + 1)}
            for obj in range(count)
            for k in range(4)
        }
        videos[name] = {"expressions": texts, "frames": FRAMES}
    meta = {"videos": videos}
    write_meta(root, "valid", meta)
    return meta


def logits_of(bundle: Path, folder: Path, text: str) -> list[np.ndarray]:
    """The slow twin: one expression alone in a session of its own."""
    frames = [np.array(Image.open(folder / f"{name}.jpg").convert("RGB")) for name in FRAMES]
    with refsam_trt.load(bundle, num_threads=1) as engine:
        return [result.logits for result in engine.track(frames, [text])]


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def names_in(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_ref_davis_gives_label_maps_per_annotator(run, bundle, tmp_path):
    root, out = tmp_path / "davis", tmp_path / "out"
    meta = make_dataset(root, {"bear": 2, "swan": 1})
    ended = run(bundle, root, "--dataset", "ref-davis", "--output", out)
    assert ended.code == 0, ended.err
    assert "frames: 6/6" in ended.err
    expected = [
        f"{k}/{video}/{frame}.png" for k in range(4) for video in meta["videos"] for frame in FRAMES
    ]
    assert names_in(out) == [*expected, "run.json"]
    for video, num_objects in (("bear", 2), ("swan", 1)):
        texts = {key: entry["exp"] for key, entry in meta["videos"][video]["expressions"].items()}
        folder = root / "valid/JPEGImages" / video
        for annotator in range(NUM_ANNOTATORS):
            said = [texts[str(4 * obj + annotator)] for obj in range(num_objects)]
            logits = [logits_of(bundle, folder, text) for text in said]
            for index, frame in enumerate(FRAMES):
                merged = label_map_from_logits(np.stack([one[index] for one in logits]))
                image = read_png(out / f"{annotator}/{video}/{frame}.png")
                assert image.max() > 0
                # Logits differ in the last bits: batched here, alone in the twin.
                assert np.mean(image != merged) < 0.005


def leaking_logits(bundle: Path, folder: Path, texts: list[str]) -> list[list[np.ndarray]]:
    """The loop of the released scripts: frame > annotator > object, one token per object.

    Returns low-resolution logits [frame][expression], in the order of `texts`.
    """
    twin = Twin(bundle)
    embedded = [twin.embed(text) for text in texts]
    num_objects = len(texts) // NUM_ANNOTATORS
    tokens: list[np.ndarray | None] = [None] * num_objects
    by_frame = []
    for name in FRAMES:
        frame = np.array(Image.open(folder / f"{name}.jpg").convert("RGB"))
        image = twin.run("image_encoder", {"image": twin.preprocess(frame)})
        row: dict[int, np.ndarray] = {}
        for annotator in range(NUM_ANNOTATORS):
            for obj in range(num_objects):
                token = tokens[obj]
                state = {
                    "track_token": np.zeros((1, 256), np.float32) if token is None else token,
                    "has_track": np.array([token is not None]),
                }
                number = NUM_ANNOTATORS * obj + annotator
                out = twin.run("decoder_step", image | embedded[number] | state)
                tokens[obj] = out["next_track_token"]
                row[number] = out["low_res_logits"][0, 0]
        by_frame.append([row[number] for number in range(len(texts))])
    return by_frame


def test_annotators_share_tokens_as_in_the_released_scripts(run, bundle, tmp_path, monkeypatch):
    root = tmp_path / "davis"
    texts = [
        entry["exp"]
        for entry in make_dataset(root, {"bear": 2})["videos"]["bear"]["expressions"].values()
    ]
    seen: dict[str, list[list[np.ndarray]]] = {"object": [], "expression": []}
    for scope, rows in seen.items():
        writer = datasets.open_dataset_outputs

        @contextmanager
        def spied(kind, folder, video, rows=rows, writer=writer):
            with writer(kind, folder, video) as write:
                yield lambda done: (
                    rows.append([result.low_res_logits for result in done.results]),
                    write(done),
                )

        monkeypatch.setattr(run_jobs, "open_dataset_outputs", spied)
        options = ("--dataset", "ref-davis", "--track-state-scope", scope)
        ended = run(bundle, root, *options, "--output", tmp_path / scope)
        assert ended.code == 0, ended.err
        record = json.loads((tmp_path / scope / "run.json").read_text())
        assert record["track_state_scope"] == scope
    expected = leaking_logits(bundle, root / "valid/JPEGImages/bear", texts)
    assert len(seen["object"]) == len(expected) == len(FRAMES)
    for ours, theirs in zip(seen["object"], expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)
    # Without the leak only the first annotator of the first frame hears the same.
    alike = [
        np.allclose(a, b, atol=1e-4)
        for a, b in zip(seen["expression"][0], expected[0], strict=True)
    ]
    assert alike == [True, False, False, False] * 2
    assert names_in(tmp_path / "object") == names_in(tmp_path / "expression")


def test_ref_youtube_vos_gives_masks_per_expression(run, bundle, tmp_path):
    root, out = tmp_path / "ytvos", tmp_path / "out"
    meta = make_dataset(root, {"bear": 1, "cat": 1, "held_out": 1})
    held_out = {"videos": {"held_out": meta["videos"]["held_out"]}}
    write_meta(root, "test", held_out)
    ended = run(bundle, root, "--dataset", "ref-youtube-vos", "--output", out)
    assert ended.code == 0, ended.err
    assert names_in(out) == [
        *(f"{v}/{k}/{frame}.png" for v in ("bear", "cat") for k in range(4) for frame in FRAMES),
        "run.json",
    ]
    assert json.loads((out / "run.json").read_text())["threshold"] == 0.01
    text = meta["videos"]["cat"]["expressions"]["2"]["exp"]
    for frame, logits in zip(
        FRAMES, logits_of(bundle, root / "valid/JPEGImages/cat", text), strict=True
    ):
        image = read_png(out / f"cat/2/{frame}.png")
        assert (image.shape, set(np.unique(image))) == (HW, {0, 255})
        assert np.mean((image == 255) != (logits > 0.01)) < 0.005
    for path in out.rglob("*.png"):
        with Image.open(path) as mask:
            assert (mask.mode, mask.size) == ("L", HW[::-1])


def test_real_ref_davis_folders_are_read(run, tmp_path):
    root = shared_data.path("ref-davis-mini")
    limits = Limits(max_frames=8, max_expressions=64, max_words=256)  # its words are bytes
    bundle, out = fake_bundle.make_bundle(tmp_path / "b", limits=limits), tmp_path / "out"
    args = (bundle, root, "--dataset", "ref-davis", "--output", out, "--stride", 30)
    ended = run(*args)
    assert ended.code == 0, ended.err
    for video in load_ref_davis(root):
        for annotator in range(NUM_ANNOTATORS):
            folder = out / str(annotator) / video.name
            assert names_in(folder) == [f"{frame}.png" for frame in video.frames[::30]]
            assert read_png(folder / f"{video.frames[0]}.png").shape == video.size_hw


def test_real_expressions_of_ref_youtube_vos_are_read():
    path = shared_data.path("ref-youtube-vos-meta/meta_expressions/valid/meta_expressions.json")
    videos = load_meta_expressions(path)
    assert len(videos) == 507
    assert sum(len(video.expressions) for video in videos.values()) == 2096


def test_an_overlong_expression_is_found_before_the_first_frame(run, bundle, tmp_path):
    root = tmp_path / "davis"
    meta = make_dataset(root, {"bear": 1, "swan": 1})
    meta["videos"]["swan"]["expressions"]["3"]["exp"] = "swan " * 20
    write_meta(root, "valid", meta)
    ended = run(bundle, root, "--dataset", "ref-davis", "--output", tmp_path / "out")
    assert ended.code == 2
    assert "swan: expression 'swan swan" in ended.message
    assert "frames:" not in ended.err


@pytest.mark.parametrize("dataset", ["ref-davis", "ref-youtube-vos"])
def test_an_interrupted_data_set_keeps_its_finished_videos(
    run, bundle, tmp_path, monkeypatch, dataset
):
    root, out = tmp_path / "root", tmp_path / "out"
    make_dataset(root, {"bear": 1, "swan": 1})
    add_expression = Session.add_expression

    def interrupted_add(self, text):
        if text == "swan 0 as 0 says":
            os.kill(os.getpid(), signal.SIGTERM)
        return add_expression(self, text)

    monkeypatch.setattr(Session, "add_expression", interrupted_add)
    ended = run(bundle, root, "--dataset", dataset, "--output", out)
    assert ended.code == 143
    assert ended.message.endswith(f"terminated; 3 of 6 frames are finished and lie in {out}")
    assert {path.stem for path in out.rglob("*.png")} == set(FRAMES)
    assert len(names_in(out)) == 1 + 4 * len(FRAMES)
    assert not list(out.rglob("swan"))
    record = json.loads((out / "run.json").read_text())
    assert (list(record["videos"]), record["is_complete"]) == (["bear"], False)


def changed(meta: dict, video: str = "bear", **changes: object) -> dict:
    return {"videos": {**meta["videos"], video: {**meta["videos"][video], **changes}}}


REFUSED = {
    "no data set": (lambda meta: None, "give the root of a data set, which holds"),
    "no JSON": (lambda meta: "{", "not an expression file (Input data was truncated)"),
    "another form": (lambda meta: {"videos": []}, "not an expression file (Expected `object`"),
    "no video": (lambda meta: {"videos": {}}, "names no video; expected at least one entry"),
    "no frame": (
        lambda meta: changed(meta, frames=[]),
        "video bear: found 0 frames and 4 expressions, expected at least one of each, and every",
    ),
    "a frame twice": (
        lambda meta: changed(meta, frames=["00000", "00000"]),
        "video bear: found 2 frames and 4 expressions, expected at least one of each, and every",
    ),
    "a missing frame": (
        lambda meta: changed(meta, frames=["00000", "00099"]),
        "bear/00099: no such image, though the expression file lists it; restore the frame",
    ),
    "frames out of order": (
        lambda meta: changed(meta, frames=["00005", "00000"]),
        "bear: the expression file lists its frames out of order; sort them",
    ),
    "a way out of the folder": (
        lambda meta: {"videos": {"../../etc": meta["videos"]["bear"]}},
        "'../../etc' cannot be the name of a file",
    ),
    "a missing video": (
        lambda meta: {"videos": {"wolf": meta["videos"]["bear"]}},
        "wolf: no such folder, though",
    ),
    "three expressions": (
        lambda meta: changed(meta, expressions={str(k): {"exp": "a bear"} for k in range(3)}),
        "video bear: found the expressions 0, 1, 2, expected 0, 1, ... with 4 per object; is this",
    ),
    "annotator by annotator": (
        lambda meta: changed(
            meta,
            expressions={str(k): {"exp": "a bear", "obj_id": str(k % 2 + 1)} for k in range(8)},
        ),
        "video bear: expression 1 is of object 2, expected 1: expressions stand object by object",
    ),
    "an empty expression": (
        lambda meta: changed(meta, expressions={str(k): {"exp": " "} for k in range(4)}),
        "video bear, expression 0: expected 'exp', a sentence, found ' '",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_unusable_data_sets_are_refused(run, bundle, tmp_path, what):
    root, out = tmp_path / "davis", tmp_path / "out"
    change, message = REFUSED[what]
    meta = change(make_dataset(root, {"bear": 1}))
    path = write_meta(root, "valid", meta)
    if meta is None:
        path.unlink()
    elif isinstance(meta, str):
        path.write_text(meta)
    ended = run(bundle, root, "--dataset", "ref-davis", "--output", out)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["davis"]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("ref-davis", ("a dog",), "found 1 expressions with a data set, whose own are used"),
        ("ref-davis", ("--save", "rle"), "--save does not go with --dataset"),
        ("ref-davis", ("--threshold", "1"), "--threshold does not go with --dataset ref-davis"),
        (
            "ref-youtube-vos",
            ("--track-state-scope", "object"),
            "between the annotators of Ref-DAVIS17; it goes with --dataset ref-davis only",
        ),
        ("mevis", (), "Invalid value for '--dataset': 'mevis' is not one of"),
    ],
)
def test_options_that_do_not_go_with_a_data_set(run, bundle, tmp_path, dataset, options, message):
    ended = run(bundle, tmp_path, *options, "--dataset", dataset, "--output", tmp_path / "out")
    assert ended.code == 2
    assert message in ended.err
    assert not list(tmp_path.iterdir())


def test_expressions_that_no_cache_knows_are_refused_before_any_video(
    run, bundle, tmp_path, monkeypatch
):
    root, out = tmp_path / "davis", tmp_path / "out"
    make_dataset(root, {"bear": 1, "swan": 1})
    monkeypatch.setattr(Session, "step", lambda *_: pytest.fail("a video was begun"))
    ended = run(*(bundle, root, "--dataset", "ref-davis", "--output", out, "--text", "cache-only"))
    assert ended.code == 2
    assert "bear: expression 'bear 0 as 0 says' is not among the 0 cached" in ended.message
    assert not out.exists()
