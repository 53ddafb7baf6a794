"""Errors that tell where something lies."""

import pickle
from pathlib import Path

from refsam_trt.errors import BundleError, MissingExtraError


def test_the_path_stands_before_the_problem_and_can_be_another_one():
    error = BundleError("missing; copy it again", Path("/tmp/hidden/a/b"))
    assert str(error) == "/tmp/hidden/a/b: missing; copy it again"
    moved = error.moved(Path("/tmp/hidden"), Path("/out"))
    assert (type(moved), str(moved)) == (BundleError, "/out/a/b: missing; copy it again")
    assert error.moved(Path("/tmp/other"), Path("/out")) is error
    assert BundleError("no path").moved(Path("/"), Path("/out")).path is None
    missing = MissingExtraError("video", "reading", "no av")
    assert missing.moved(Path("/"), Path("/out")) is missing


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(BundleError("missing", Path("/a"))))
    assert (str(error), error.problem, error.path) == ("/a: missing", "missing", Path("/a"))
