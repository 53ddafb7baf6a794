"""Options of a calibration that cannot be met, alone or together."""

from pathlib import Path

import pytest
from calibration_model import LAYERS, options

from refsam_calibration.quantise.layers import Unit
from refsam_calibration.request import CalibrateRequest
from refsam_trt.errors import OutputError, UsageError

UNITS = [Unit("blocks.0.qkv", LAYERS[:1], 0.1), Unit("blocks.0.proj", LAYERS[1:2], 0.1)]


def request(**changes: object) -> CalibrateRequest:
    given = {"bundle": Path("b"), "clips": Path("c.toml"), "output": Path("out"), **changes}
    return CalibrateRequest(**given)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"output": None, "work": Path("w")}, "--output is needed, unless --stop-after names an"),
        ({"output": None, "stop_after": "search"}, "--work is needed without --output: ranges"),
        ({"percentile": 99.0}, "--percentile is of --method percentile; give both or none"),
        ({"percentile": 99.0, "method": "mse"}, "--percentile is of --method percentile"),
        ({"min_share": 1.5}, r"--min-share 1\.5: expected 0 to 1"),
        (
            {"max_drop_points": 0.5, "margin_points": 0.6},
            r"--margin-points 0\.6 is more than --max-jf-drop-points 0\.5, which leaves",
        ),
    ],
)
def test_options_that_cannot_be_met_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        request(**changes)


def test_the_search_may_lose_a_fifth_less_or_what_was_asked():
    assert request(max_drop_points=0.5).search_points == pytest.approx(0.4)
    assert request(max_drop_points=0.05).search_points == pytest.approx(0.04)
    assert request(max_drop_points=0.5, margin_points=0.0).search_points == 0.5


def test_results_are_kept_beside_the_output_or_where_asked():
    assert request(output=Path("a/out")).work_folder == Path("a/out-work")
    assert request(work=Path("w")).work_folder == Path("w")
    assert request(output=None, work=Path("w"), stop_after="ranges").work_folder == Path("w")


def test_an_output_that_could_not_be_written_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(OutputError, match="exists already; choose another name"):
        request(output=tmp_path).check_output()
    with pytest.raises(OutputError, match=r"the folder .*never does not exist; create it first"):
        request(output=tmp_path / "never" / "out").check_output()
    request(output=tmp_path, stop_after="search").check_output()


def test_defaults_are_filled_in():
    found = request().options(UNITS)
    assert found == options(layers=LAYERS[:2])
    assert (found.scheme, found.method, found.alpha) == ("int8", "mse", "auto")
    given = request(scheme="fp8", method="percentile", percentile=99.0, alpha=0.5).options(UNITS)
    assert (given.scheme, given.percentile, given.alpha) == ("fp8", 99.0, 0.5)


def test_ranges_from_a_file_must_be_as_asked_for():
    request(ranges=Path("r.json"), scheme="int8").check_ranges(options(), UNITS)
    told = r"r\.json: measured with scheme int8, but --scheme fp8 is asked for; leave --scheme out"
    with pytest.raises(UsageError, match=told):
        request(ranges=Path("r.json"), scheme="fp8").check_ranges(options(), UNITS)
    told = rf"r\.json: has no range for {LAYERS[1]} \(1 such layers\); name fewer with --layers"
    with pytest.raises(UsageError, match=told):
        request(ranges=Path("r.json")).check_ranges(options(layers=LAYERS[:1]), UNITS)
