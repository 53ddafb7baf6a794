"""The steps of `make prove` about the shipped model: who is asked what, on which videos."""

import contextlib
from types import SimpleNamespace

import pytest

from refsam_bench import prove_nano

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

    figures = {"j_and_f": 0.5, "sequences": {"size-00001": {"j_and_f": 0.25, "objects": {}}}}
    stubs = {
        "score_synthetic": score,
        "score_blind": score,
        "exchange_tokens": exchange,
        "exchange_json": lambda found, seed, num_videos: {"kept": 1.0},
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


@pytest.mark.parametrize("name", prove_nano.STEPS)
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
