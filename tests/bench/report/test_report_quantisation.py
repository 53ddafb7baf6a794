"""The part of a report about quantised bundles: table and drawing of what every unit costs."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from quantised import quantised_bundle
from reported import reported

from refsam_bench.report.measure import MeasuredReport
from refsam_bench.report.page import render_page
from refsam_bench.report.quantisation import (
    BAR_WIDTH,
    forms_entries,
    loss_width,
    quantisation_entry,
)
from refsam_bench.report.request import ReportRequest
from refsam_bench.report.sides import find_sides
from refsam_trt.errors import UsageError

RANKING = [
    {"unit": "blocks.7.lin1", "layers": ["a"], "share": 0.04, "mask_iou": 0.99, "drop_points": 0.1},
    {"unit": "blocks.0.<b>", "layers": ["b"], "share": 0.03, "mask_iou": 0.96, "drop_points": -0.2},
]
COST = {"reference_j_and_f": 0.8, "j_and_f": 0.796, "drop_points": 0.4, "mask_iou": 0.97}
RECORD = {
    "ranking": RANKING,
    "search": {"share": 0.93, "left_out": ["blocks.3.qkv"], **COST},
    "verified": {**COST, "worst": []},
}


def bundle(record: dict | None) -> SimpleNamespace:
    made = record is not None and SimpleNamespace(
        scheme="int8", base_bundle="its id", layers=("a", "b", "c"), record=record
    )
    return SimpleNamespace(manifest=SimpleNamespace(quantisation=made or None))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> MeasuredReport:
    return reported(tmp_path_factory)


def page_with(report: MeasuredReport, record: dict) -> str:
    changed = copy.deepcopy(report.record)
    changed["bundles"][0]["quantisation"] = quantisation_entry(bundle(record))
    return render_page(MeasuredReport(changed, report.pictures))


def test_a_bundle_that_is_not_quantised_has_no_entry_and_no_section(report: MeasuredReport):
    assert quantisation_entry(bundle(None)) is None
    assert [found["quantisation"] for found in report.record["bundles"]] == [None, None]
    assert "quantisation" not in render_page(report)


def test_an_entry_holds_figures_and_not_all_that_calibration_kept():
    found = quantisation_entry(bundle(RECORD))
    assert found == {
        "scheme": "int8",
        "base_bundle": "its id",
        "num_layers": 3,
        "share": 0.93,
        "left_out": ["blocks.3.qkv"],
        "verified": COST,
        "ranking": [{k: v for k, v in row.items() if k != "layers"} for row in RANKING],
    }


def test_bars_are_as_long_as_the_loss():
    assert loss_width(RANKING[1], RANKING) == BAR_WIDTH
    assert loss_width(RANKING[0], RANKING) == pytest.approx(BAR_WIDTH / 4)
    perfect = [{"mask_iou": 1.0}]
    assert loss_width(perfect[0], perfect) == 0.0


def test_every_unit_has_a_row_with_its_figures_and_its_bar(report: MeasuredReport):
    html = page_with(report, RECORD)
    assert '<a href="#quantisation">' in html
    section = html[html.index('<section id="quantisation">') : html.index('<section id="origin">')]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section)
    assert [name for name, _ in rows] == ["blocks.7.lin1", "blocks.0.&lt;b&gt;"]
    values = [[float(v) for v in re.findall(r'<data value="([^"]+)">', cells)] for _, cells in rows]
    assert values == [[0.04, 0.99, 0.1], [0.03, 0.96, -0.2]]
    bars = [float(width) for width in re.findall(r'<rect class="mark0" width="([\d.]+)"', section)]
    assert bars == [BAR_WIDTH / 4, BAR_WIDTH]
    assert "left out: blocks.3.qkv." in section
    assert '<data value="0.4">+0.40</data> points lost' in section
    assert "random weights" in section


def test_a_record_without_ranking_or_figures_is_shown_as_far_as_it_goes(report: MeasuredReport):
    html = page_with(report, {"ranges": {}})
    section = html[html.index('<section id="quantisation">') : html.index('<section id="origin">')]
    assert '<data value="3">3</data> layers in int8.' in section
    assert "<table>" not in section


FORMS = {
    "preset": "vitb",
    "num_frames": 6,
    "random_weights": True,
    "commit": "0123abc",
    "forms": {
        "minmax": {"relative_error": 0.5, "mean_mask_iou": 0.75, "min_mask_iou": 0.25},
        "mse, smoothed": {"relative_error": 0.125, "mean_mask_iou": 0.9375, "min_mask_iou": 0.875},
    },
}


def test_forms_of_quantisation_stand_side_by_side(report: MeasuredReport, tmp_path: Path):
    assert "Forms of quantisation" not in render_page(report)
    path = tmp_path / "calibration-forms-vitb.json"
    path.write_text(json.dumps({**FORMS, "step": "x", "failures": []}))
    changed = copy.deepcopy(report.record)
    changed["quantisation_forms"] = forms_entries([path])
    assert changed["quantisation_forms"] == [FORMS]
    html = render_page(MeasuredReport(changed, report.pictures))
    section = html[html.index('<section id="forms">') : html.index('<section id="origin">')]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section)
    values = {n: re.findall(r'<data value="([^"]+)">', cells) for n, cells in rows}
    assert values == {
        "minmax": ["0.5", "0.75", "0.25"],
        "mse, smoothed": ["0.125", "0.9375", "0.875"],
    }
    assert "random weights" in section
    assert '<a href="#forms">' in html


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "JSONDecodeError: "),
        ("[]", "TypeError: "),
        ('{"preset": "vitb"}', "KeyError: 'num_frames'"),
        (json.dumps({**FORMS, "forms": {"minmax": {"relative_error": "x"}}}), "ValueError: "),
    ],
)
def test_other_files_than_results_of_that_step_are_refused(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        forms_entries([path])
    start = f"{path}: no result of `python -m refsam_prove.steps calibration-forms-vitb` ({problem}"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("; give the file that it writes to bench/results")


def test_the_card_tells_how_much_of_the_encoder_is_in_eight_bits(report: MeasuredReport):
    words = "image encoder in eight bits, % of FLOPs"
    assert [side["quantised_share"] for side in report.record["candidates"]] == [None, None]
    assert words not in render_page(report)
    changed = copy.deepcopy(report.record)
    changed["candidates"][0]["quantised_share"] = 0.27
    html = render_page(MeasuredReport(changed, report.pictures))
    assert f'<dt>{words}</dt><dd><data value="0.27">27.0</data></dd>' in html
    assert "<dt>layers in eight bits</dt>" not in html


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ([], "all that were offered"),
        (["blocks.3.qkv", "blocks.<b>"], "mixed: all but blocks.3.qkv, blocks.&lt;b&gt;"),
    ],
)
def test_the_card_tells_int8_from_mixed_precision(
    report: MeasuredReport, left_out: list[str], told: str
):
    assert [side["left_out"] for side in report.record["candidates"]] == [None, None]
    changed = copy.deepcopy(report.record)
    changed["candidates"][0] |= {"quantised_share": 0.27, "left_out": left_out}
    html = render_page(MeasuredReport(changed, report.pictures))
    assert f"<dt>layers in eight bits</dt><dd>{told}</dd>" in html


def test_every_precision_is_a_side_but_one_int8_of_two_bases(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    made = quantised_bundle(tmp_path_factory).bundle
    _, sides = find_sides(ReportRequest((made.folder,), tmp_path / "r.html"))
    assert [side.variant for side in sides] == [
        "fp16-augmented-optimised",
        "fp32-augmented-optimised",
        "int8-fp32-augmented-optimised",
    ]
    assert [side.label for side in sides] == [f"bundle {p}" for p in ("fp16", "fp32", "int8")]
    flops = made.manifest.variants[sides[2].variant].graphs["image_encoder"].flops
    share = flops["int8"] / (flops["int8"] + flops["float32"])
    assert [side.quantised_share for side in sides] == [None, None, share]
    assert [side.left_out for side in sides] == [None, None, None]  # its record does not tell
    searched = {"share": 0.9, "left_out": ["blocks.3.qkv"]}
    quantisation = msgspec.structs.replace(made.manifest.quantisation, record={"search": searched})
    manifest = msgspec.structs.replace(made.manifest, quantisation=quantisation)
    mixed = replace(sides[2], bundle=replace(made, manifest=manifest))
    assert mixed.left_out == ["blocks.3.qkv"]
    _, sides = find_sides(ReportRequest((made.folder,), tmp_path / "r.html", backend="ort-cuda"))
    assert sides[2].variant == "int8-fp16-augmented-optimised"
