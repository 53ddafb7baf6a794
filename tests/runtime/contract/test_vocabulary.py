"""Words that a model never saw: found, told once per expression, and by refsam-run."""

import json
import logging
from pathlib import Path

import fake_bundle
import pytest
from commands_in_process import Commands
from small_videos import moving_frames, write_images

import refsam_trt
from refsam_trt.contract.manifest import Training, TrainingRun, Weights
from refsam_trt.contract.vocabulary import unseen_words, words_of
from refsam_trt.run.cli import main

WORDS = ("circle", "of", "on", "red", "the")
RUN = TrainingRun("some", "0" * 64, "synthetic", 3)


def make_trained(folder: Path, vocabulary: tuple[str, ...] | None) -> Path:
    weights = Weights(sources=(), training=Training((RUN,), vocabulary))
    return fake_bundle.make_bundle(folder, weights=weights)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained(tmp_path_factory.mktemp("trained") / "b", WORDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red, RED circle.", ("the", "red", "circle")),
        ("the dog's left-hand 'toy'", ("the", "dog's", "left-hand", "toy")),
        ("grüner Straße 7", ("grüner", "strasse", "7")),
        ("?!", ()),
    ],
)
def test_words_of_an_expression(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words
    assert unseen_words(words, text) == ()
    assert unseen_words((), text) == words
    assert unseen_words(None, text) == ()


def test_one_warning_per_expression(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    with refsam_trt.load(trained) as engine:
        assert engine.manifest.vocabulary == WORDS
        for _ in range(2):
            with engine.open_video() as video:
                for text in ("the red circle", "the zebra", "The  zebra", "a, b, c, d, e, f, g"):
                    video.add_expression(text)
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            "refsam_trt",
            logging.WARNING,
            f"expression {text}: never seen in training: {unseen}; do not rely on its masks, or "
            "say it in the 5 words of `engine.manifest.vocabulary`",
        )
        for text, unseen in (
            ("'the zebra'", "'zebra'"),
            ("'a, b, c, d, e, f, g'", "'a', 'b', 'c', 'd', 'e' and 2 more"),
        )
    ]


@pytest.mark.parametrize("has_training", [True, False])
def test_without_a_vocabulary_nothing_is_said(
    has_training: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Weights(sources=())
    folder = (
        make_trained(tmp_path / "b", None)
        if has_training
        else fake_bundle.make_bundle(tmp_path / "b", weights=plain)
    )
    with refsam_trt.load(folder) as engine, engine.open_video() as video:
        video.add_expression("the zebra")
    assert not caplog.records


def test_refsam_run_warns_and_records(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    images = write_images(tmp_path / "images", moving_frames(2))
    arguments = (trained, images, "the red circle", "the zebra", "--output", tmp_path / "out")
    done = Commands(monkeypatch, capfd)(main, *arguments, "--threads", 1, "--json")
    assert done.code == 0
    warnings = [line for line in done.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("refsam-run: warning: expression 'the zebra': never seen in")
    expected = {"the zebra": ["zebra"]}
    assert json.loads(done.out)["unseen_words"] == expected
    assert json.loads((tmp_path / "out" / "run.json").read_text())["unseen_words"] == expected
    assert not logging.getLogger("refsam_trt").handlers
