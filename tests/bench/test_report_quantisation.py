"""The part of a report about quantised bundles: table and drawing of what every unit costs."""

import copy
import re
from types import SimpleNamespace

import pytest
from reported import reported

from refsam_bench.report.measure import Report
from refsam_bench.report.page import render_page
from refsam_bench.report.quantisation import BAR_WIDTH, loss_width, quantisation_entry

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
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return reported(tmp_path_factory)


def page_with(report: Report, record: dict) -> str:
    changed = copy.deepcopy(report.record)
    changed["bundles"][0]["quantisation"] = quantisation_entry(bundle(record))
    return render_page(Report(changed, report.pictures))


def test_a_bundle_that_is_not_quantised_has_no_entry_and_no_section(report: Report):
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


def test_every_unit_has_a_row_with_its_figures_and_its_bar(report: Report):
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


def test_a_record_without_ranking_or_figures_is_shown_as_far_as_it_goes(report: Report):
    html = page_with(report, {"ranges": {}})
    section = html[html.index('<section id="quantisation">') : html.index('<section id="origin">')]
    assert '<data value="3">3</data> layers in int8.' in section
    assert "<table>" not in section
