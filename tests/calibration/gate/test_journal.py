"""The journal: what was measured stays, whatever interrupts the work."""

import pytest

from refsam_calibration.gate.journal import Journal
from refsam_trt.errors import CalibrationError, OutputError

ABOUT = {"ranges": "abc", "data_set": {"seed": 1}}


def test_results_are_there_again_in_another_run(tmp_path):
    path = tmp_path / "work" / "search.jsonl"
    journal = Journal(path, ABOUT)
    assert journal.get("a") is None
    journal.add("a", {"iou": 0.5})
    journal.add("b", {"iou": 0.25})
    again = Journal(path, ABOUT)
    assert (again.get("a"), again.get("b")) == ({"iou": 0.5}, {"iou": 0.25})
    assert len(path.read_text().splitlines()) == 3


def test_a_line_that_was_cut_off_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "search.jsonl"
    journal = Journal(path, ABOUT)
    journal.add("a", {"iou": 0.5})
    start = path.stat().st_size
    journal.add("b", {"iou": 0.25})
    content = path.read_bytes()
    for size in range(start, len(content)):
        path.write_bytes(content[:size])
        again = Journal(path, ABOUT)
        assert (again.get("a"), again.get("b")) == ({"iou": 0.5}, None)
        again.add("b", {"iou": 0.25})
        assert path.read_bytes() == content


def test_a_first_line_that_was_cut_off_is_written_again(tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text('{"ranges": "a')
    Journal(path, ABOUT).add("a", {"iou": 0.5})
    assert Journal(path, ABOUT).get("a") == {"iou": 0.5}


def test_results_that_depend_on_something_else_are_refused(tmp_path):
    path = tmp_path / "search.jsonl"
    Journal(path, ABOUT).add("a", {"iou": 0.5})
    told = r"search\.jsonl: results that depend on something else \(ranges differ\); remove it, or"
    with pytest.raises(CalibrationError, match=told):
        Journal(path, {**ABOUT, "ranges": "def"})


def test_another_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text("hello\nworld\n")
    with pytest.raises(CalibrationError, match="not a journal of refsam-calibrate"):
        Journal(path, ABOUT)
    assert path.read_text() == "hello\nworld\n"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"search\.jsonl: cannot be written .*; choose another"):
        Journal(tmp_path / "file" / "search.jsonl", ABOUT)
