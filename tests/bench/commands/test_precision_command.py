"""`refsam-bench precision`: three judges on a bundle with its PyTorch weights."""

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_in_process import Commands
from exported import exported
from short_synthetic import shorten

from refsam_bench.cli import main
from refsam_bench.precision import half as precision
from refsam_bench.precision.half import (
    HalfComparison,
    HalfFigures,
    HalfRequest,
    RoundedFigures,
    SmokeFigures,
    measure_half,
)
from refsam_bench.synthetic import generate
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_export.parity.compare import mask_iou
from refsam_export.precision.range_audit import Extent, RangeFigures
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import UsageError

NUM_FRAMES = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny", precisions=("fp16",))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", logger="refsam_trt")


@pytest.fixture(scope="module", autouse=True)
def _short_videos_of_a_model_traced_once() -> Iterator[None]:
    """Models that share their image encoder, so copies of other options, share their programs."""
    programs: dict[int, Any] = {}
    traced, kept = precision.trace_graphs, []

    def trace(model: Any, *form: Any) -> Any:
        encoder = model.image_encoder
        if id(encoder) not in programs:
            kept.append(encoder)  # no other one gets its id
            programs[id(encoder)] = traced(model, *form)
        return programs[id(encoder)]

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, NUM_FRAMES)
        patch.setattr(precision, "trace_graphs", trace)
        patch.setattr(precision, "load_source", lambda bundle, _: load_once(bundle.folder))
        yield


@functools.cache
def load_once(folder: Path) -> LoadedModel:
    return load_source(open_bundle(folder))


@pytest.fixture(scope="module")
def figures(bundle: Path) -> HalfFigures:
    request = HalfRequest(bundle, num_videos=2, num_smoke_videos=1)
    return measure_half(request, lambda: None, lambda line: None)


def test_figures_of_all_three(figures: HalfFigures, bundle: Path) -> None:
    assert figures.bundle_id == open_bundle(bundle).bundle_id
    assert figures.random_weights
    audit, rounded, smoke = figures.range_audit, figures.rounded, figures.onnxruntime_cpu
    assert audit is not None
    assert 1 < audit.max_abs <= audit.bound == 16384
    assert {extent.graph for extent in audit.largest} <= {"image_encoder", "decoder_step"}
    assert rounded.num_frames == 2 * NUM_FRAMES
    assert 0.9 < rounded.min_mask_iou <= rounded.mean_mask_iou < 1
    assert rounded.worst_frames[0].iou == rounded.min_mask_iou
    scores = rounded.scores
    assert rounded.jf_drop_points == pytest.approx(
        100 * (scores["fp32"]["j_and_f"] - scores["fp16"]["j_and_f"])
    )
    assert smoke.num_frames == NUM_FRAMES
    assert smoke.min_mask_iou is not None
    assert 0.9 < smoke.min_mask_iou <= 1
    assert figures.passed == (figures.failures == [])


def test_the_json_object_holds_everything(figures: HalfFigures) -> None:
    values = json.loads(json.dumps(figures.to_json()))
    assert list(values) == [
        *("bundle_id", "variant", "precision", "random_weights", "dataset", "seed", "num_videos"),
        *("rounded", "onnxruntime_cpu", "range_audit", "bounds", "failures", "passed"),
    ]
    assert set(values["rounded"]["worst_frames"][0]) == {"video", "frame", "iou"}
    assert values["bounds"]["min_mean_mask_iou"] == 0.998
    bf16 = dataclasses.replace(figures, range_audit=None).to_json()
    assert "range_audit" not in bf16
    assert (bf16["bounds"], bf16["failures"], bf16["passed"]) == ({}, [], True)


def test_the_fp32_side_is_the_reference(bundle: Path) -> None:
    """Its masks are those of the slow tracker, so that J&F of both can be compared."""
    opened = open_bundle(bundle)
    variant = next(iter(opened.manifest.variants))
    comparison = HalfComparison(opened, variant, HalfRequest(bundle))
    video = generate(900_000, 0, slice="attribute", num_frames=2)
    text = video.expressions[0].text
    found = EngineTracker(comparison.wide).track(iter(video.frames), [text])
    expected = ReferenceTracker(load_source(opened)).track(iter(video.frames), [text])
    for (a,), (b,) in zip(found, expected, strict=True):
        assert mask_iou(a, b) > 0.999


def test_expressions_keep_their_case_where_the_model_does(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, loaded = open_bundle(bundle), load_once(bundle)
    cased = copy.copy(loaded.model)
    cased.config = dataclasses.replace(cased.config, lowercase=False)
    monkeypatch.setattr(
        precision, "load_source", lambda *_: dataclasses.replace(loaded, model=cased)
    )
    variant = next(iter(opened.manifest.variants))
    comparison = HalfComparison(opened, variant, HalfRequest(bundle))
    for model in (comparison.wide, comparison.half):
        with model.open_video() as video:
            video.add_expression("the Red  disc")
            assert list(video.expressions.values()) == ["the Red disc"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.mark.parametrize("passed", [True, False])
def test_output_and_exit_codes(
    passed: bool,
    call: Commands,
    figures: HalfFigures,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_failures", lambda *_: [] if passed else ["rounded: bad"])
    monkeypatch.setattr(precision, "measure_half", lambda *_: figures)
    audit = figures.range_audit
    assert audit is not None
    told = json.loads(json.dumps(figures.to_json()))
    assert told["passed"] is passed
    file = tmp_path / "figures.json"
    done = call(main, "precision", bundle, "--output", file)
    assert done.code == (0 if passed else 1)
    lines = done.out.splitlines()
    assert lines[0] == "RANDOM WEIGHTS: J&F means nothing"
    assert lines[1].startswith(f"range: {audit.num_tensors} fp16 tensors, ")
    assert lines[2].startswith(f"rounded, {2 * NUM_FRAMES} frames: mask IoU mean 0.9")
    assert lines[3].startswith(f"ONNX Runtime CPU, {NUM_FRAMES} frames: mask IoU at least 0.9")
    assert lines[4:] == ([] if passed else ["does not hold: rounded: bad"])
    assert json.loads(file.read_text()) == told
    done = call(main, "precision", bundle, "--json")
    assert json.loads(done.out) == told


ROUNDED = RoundedFigures(5, 0.998, 0.99, (), {}, 0.1)
GOOD = {
    "audit": RangeFigures(True, 16384.0, 0.0, 0, ()),
    "rounded": ROUNDED,
    "smoke": SmokeFigures(5, 0.99),
}
WORST = Extent("image_encoder", "conv2d", "conv2d", "neck.0", 70000.0)
BAD = {
    "range": (
        {"audit": RangeFigures(False, 16384.0, 70000.0, 1, (WORST,))},
        "range: conv2d of neck.0 reaches 70000, at most 16384 allowed",
    ),
    "mean": (
        {"rounded": dataclasses.replace(ROUNDED, mean_mask_iou=0.99799)},
        "rounded: mean_mask_iou 0.997990, at least 0.998 expected",
    ),
    "worst": (
        {"rounded": dataclasses.replace(ROUNDED, min_mask_iou=0.9899)},
        "rounded: min_mask_iou 0.989900, at least 0.99 expected",
    ),
    "drop": (
        {"rounded": dataclasses.replace(ROUNDED, jf_drop_points=0.101)},
        "rounded: J&F drops by 0.101 points, at most 0.1 allowed",
    ),
    "smoke": (
        {"smoke": SmokeFigures(1, 0.5)},
        "ONNX Runtime: min_mask_iou 0.500000, at least 0.99 expected",
    ),
}


def test_at_the_bounds_nothing_fails() -> None:
    assert precision._failures(**GOOD) == []
    assert precision._failures(**{**GOOD, "smoke": SmokeFigures(0, None)}) == []


@pytest.mark.parametrize("name", BAD)
def test_each_bound_fails_by_itself(name: str) -> None:
    changes, text = BAD[name]
    assert precision._failures(**{**GOOD, **changes}) == [text]


def test_overflow_gives_empty_masks_and_an_infinite_range(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neck's convolution, out of bounds: LayerNorm2d hides it from every fp32 output."""
    loaded = load_once(bundle)
    spoiled = copy.deepcopy(loaded.model)
    spoiled.image_encoder.neck[0].weight.data *= 1e6
    changed = dataclasses.replace(loaded, model=spoiled)
    monkeypatch.setattr(precision, "load_source", lambda *_: changed)
    request = HalfRequest(bundle, num_videos=1, num_smoke_videos=0)
    found = measure_half(request, lambda: None, lambda line: None)
    assert not found.passed
    assert found.range_audit is not None
    assert found.range_audit.largest[0].module == "encoder.neck.0"
    assert found.rounded.min_mask_iou == 0
    assert [failure.split(":")[0] for failure in found.failures][:2] == ["range", "rounded"]
    assert np.isfinite(found.range_audit.max_abs)


def test_unusable_requests(bundle: Path) -> None:
    with pytest.raises(UsageError, match="precision 'fp32': nothing to judge; choose fp16 or bf16"):
        HalfRequest(bundle, precision="fp32")
    with pytest.raises(UsageError, match=r"no bf16 variant; it has: fp16-augmented-optimised"):
        measure_half(HalfRequest(bundle, "bf16"), lambda: None, lambda line: None)
