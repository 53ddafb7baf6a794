"""The steps of `make prove` about the shipped model: who is asked what, on which videos."""

import contextlib
import json
from types import SimpleNamespace

import pytest

from refsam_bench.commands.accuracy import accuracy
from refsam_prove import nano as prove_nano

RANKED = ("attribute", "size", "position")
EXPECTED = {
    "nano-accuracy": ("engine", 200, RANKED, "none"),
    "nano-reference": ("reference", 200, RANKED, "none"),
    "nano-sibling": ("engine", 200, RANKED, "sibling"),
    "nano-track": ("engine", 100, ("track",), "none"),
    "nano-forget": ("engine", 100, ("track",), "forget"),
    "nano-others": ("engine", 100, ("relation", "motion"), "none"),
    "nano-exchange": ("exchange", 100),
    "nano-blind": tuple((blind, 200, RANKED, "none") for blind in ("largest", "centre", "all")),
}


@pytest.fixture
def asked(monkeypatch) -> list[tuple[object, ...]]:
    """What the steps ask for, in their order; nothing is loaded or run."""
    noted: list[tuple[object, ...]] = []

    def load(name, **options):
        assert (name, options) == ("nano", {"text": "resident"})
        return contextlib.nullcontext(SimpleNamespace(bundle_id="its id", backend="ort"))

    def score(who, request, progress):
        assert request.seed == 900_000
        noted.append((who, request.num_videos, request.slices, request.probe))

    def exchange(engine, seed, num_videos, progress):
        assert (engine.bundle_id, seed) == ("its id", 900_000)
        noted.append(("exchange", num_videos))
        return SimpleNamespace(to_json=lambda: {"kept": 1.0})

    figures = {"j_and_f": 0.5, "sequences": {"size-00001": {"j_and_f": 0.25, "objects": {}}}}
    stubs = {
        "score_synthetic": score,
        "score_blind": score,
        "exchange_tokens": exchange,
        "to_json": lambda scores, request: figures,
        "EngineTracker": lambda engine: "engine",
        "ReferenceTracker": lambda loaded: "reference",
        "load_source": lambda bundle, folder: None,
        "open_bundle": lambda folder: None,
        "bundle_folder": lambda name: name,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(prove_nano, name, stub)
    monkeypatch.setattr(prove_nano.refsam_trt, "load", load)
    return noted


@pytest.mark.parametrize("has_clips", [True, False])
def test_real_clips_are_scored_by_the_command_where_they_are(monkeypatch, tmp_path, has_clips):
    lines = []

    def run(line, text):
        lines.append(line[3:])
        return json.dumps({"j_and_f": 0.1, "sequences": {"dog": {"j_and_f": 0.2, "j": 0.3}}})

    monkeypatch.setattr(prove_nano, "open_bundle", lambda _: SimpleNamespace(bundle_id="its id"))
    monkeypatch.setattr(prove_nano.subprocess, "check_output", run)
    clips = tmp_path if has_clips else tmp_path / "absent"
    monkeypatch.setattr(prove_nano, "REAL_CLIPS", clips)
    record = prove_nano.STEPS["nano-real"]()
    if has_clips:
        assert record["accuracy"] == {"j_and_f": 0.1, "sequences": {"dog": 0.2}}
        (line,) = lines
        accuracy.make_context("accuracy", line[1:])
        assert str(clips) in line
    else:
        assert (lines, record["skipped"][:13]) == ([], "no real clips")


@pytest.mark.parametrize("name", [name for name in prove_nano.STEPS if name != "nano-real"])
def test_each_step_asks_what_its_name_says(name, asked):
    record = prove_nano.STEPS[name]()
    expected = EXPECTED[name]
    assert asked == (list(expected) if name == "nano-blind" else [expected])
    brief = {"j_and_f": 0.5, "sequences": {"size-00001": 0.25}}
    if name == "nano-blind":
        assert record == {"blind": dict.fromkeys(("largest", "centre", "all"), brief)}
    elif name == "nano-exchange":
        assert record == {"bundle_id": "its id", "exchange": {"kept": 1.0}}
    else:
        backend = "pytorch" if name == "nano-reference" else "ort"
        assert record == {"bundle_id": "its id", "backend": backend, "accuracy": brief}
