"""Steps of `make prove` that measure the model which ships: does it listen, segment and remember?

Evaluation videos of seed 900000, which neither training nor tuning has seen, and real clips. A
point is 0.01 J&F.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import refsam_trt
from refsam_bench.datasets.synthetic import (
    RANKED_SLICES,
    Probe,
    SyntheticRequest,
    score_blind,
    score_synthetic,
    to_json,
)
from refsam_bench.exchange.token_exchange import exchange_tokens
from refsam_bench.synthetic import EVALUATE_SEED, Slice
from refsam_bench.trackers.blind import Blind
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_export.source import load_source
from refsam_prove import Step
from refsam_prove.exports import say
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress

MODEL: Final = "nano"
NUM_RANKED: Final = 200
NUM_TRACK: Final = 100
REAL_CLIPS: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "ref-davis-mini"


def accuracy(
    slices: tuple[Slice, ...],
    num_videos: int,
    *,
    probe: Probe = "none",
    reference: bool = False,
) -> dict[str, Any]:
    """J&F of the shipped bundle, or of the PyTorch reference made from its own source."""
    request = SyntheticRequest(EVALUATE_SEED, num_videos, slices, probe)
    with refsam_trt.load(MODEL, text="resident") as engine, _progress(num_videos) as progress:
        tracker: Any = EngineTracker(engine)
        if reference:
            tracker = ReferenceTracker(load_source(open_bundle(bundle_folder(MODEL)), None))
        scores = score_synthetic(tracker, request, progress.update)
        return {
            "bundle_id": engine.bundle_id,
            "backend": "pytorch" if reference else engine.backend,
            "accuracy": _brief(to_json(scores, request)),
        }


def exchange() -> dict[str, Any]:
    """How often twins exchange their masks with their tokens."""
    with refsam_trt.load(MODEL, text="resident") as engine, _progress(NUM_TRACK) as progress:
        exchanges = exchange_tokens(engine, EVALUATE_SEED, NUM_TRACK, progress.update)
        return {"bundle_id": engine.bundle_id, "exchange": exchanges.to_json()}


def real() -> dict[str, Any]:
    """J&F on real clips, where a folder of them lies beside the project (`skipped` if not)."""
    bundle_id = open_bundle(bundle_folder(MODEL)).bundle_id
    if not REAL_CLIPS.is_dir():
        reason = "no real clips beside the project (shared/data/ref-davis-mini)"
        say(f"skipped: {reason}")
        return {"bundle_id": bundle_id, "skipped": reason}
    command = ["accuracy", "--bundle", MODEL, "--dataset", "ref-davis", "--root", str(REAL_CLIPS)]
    command = [sys.executable, "-m", "refsam_bench.cli", *command, "--json"]
    figures = json.loads(subprocess.check_output(command, text=True))
    return {"bundle_id": bundle_id, "accuracy": _brief(figures)}


def blind() -> dict[str, Any]:
    """J&F of answers that do not depend on the expression, with true masks."""
    request = SyntheticRequest(EVALUATE_SEED, NUM_RANKED)
    figures = {}
    for answer in get_args(Blind):
        with _progress(NUM_RANKED) as progress:
            scores = score_blind(answer, request, progress.update)
        figures[answer] = _brief(to_json(scores, request))
    return {"blind": figures}


def _brief(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with J&F alone for every sequence."""
    sequences = {name: row["j_and_f"] for name, row in figures["sequences"].items()}
    return {**figures, "sequences": sequences}


def _progress(total: int) -> Progress:
    say(f"{total} videos")
    return Progress("refsam-bench prove", total)


STEPS: dict[str, Step] = {
    "nano-accuracy": partial(accuracy, RANKED_SLICES, NUM_RANKED),
    "nano-reference": partial(accuracy, RANKED_SLICES, NUM_RANKED, reference=True),
    "nano-sibling": partial(accuracy, RANKED_SLICES, NUM_RANKED, probe="sibling"),
    "nano-track": partial(accuracy, ("track",), NUM_TRACK),
    "nano-forget": partial(accuracy, ("track",), NUM_TRACK, probe="forget"),
    "nano-exchange": exchange,
    "nano-others": partial(accuracy, ("relation", "motion"), NUM_TRACK),
    "nano-blind": blind,
    "nano-real": real,
}
