"""Paths and manifests that nobody would write by hand: refused by us, or harmless."""

import contextlib
import os
from pathlib import Path
from typing import Any

import fake_bundle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refsam_trt.bundle.folder import path_problem
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import RefsamError

ODD_NAMES = ["", ".", "./a", "a//b", "a/", "a\0b", "a\n", "a b", "é", "aa:b", "a?"]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("./\\aMBN+1\0é[{", max_size=6),
    st.sampled_from([[], {}, [0, "N+x"], {"a": {"b": []}}, 2**70, -1, "../x", "optimised"]),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fake_bundle.make_bundle(tmp_path / "bundle", external_data=True)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/etc/passwd", "is absolute"),
        ("C:/x", "is absolute"),
        ("c:x", "is absolute"),
        ("a\\b", "has a backslash"),
        ("../x", "leaves its folder"),
        ("a/../../x", "leaves its folder"),
        ("a/..", "leaves its folder"),
        ("a" * 513, "is longer than 512 characters"),
        *((name, "has parts that are not of ASCII letters") for name in ODD_NAMES),
    ],
)
def test_refuses_paths_that_are_not_plain(path: str, problem: str):
    assert problem in (path_problem(path) or "")


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text() | st.text("./\\aC:~-_\0"))
def test_accepted_paths_stay_inside(path: str):
    if path_problem(path) is None:
        root = Path("/bundle")
        inside = Path(os.path.normpath(root / path))
        assert root in inside.parents
        assert inside.relative_to(root).as_posix() == path


def patched(content: bytes, patches: list[tuple[int, int, bytes]]) -> bytes:
    raw = bytearray(content)
    for position, num_removed, piece in patches:
        start = position % (len(raw) + 1)
        raw[start : start + num_removed] = piece
    return bytes(raw)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    if not isinstance(value, (dict, list)):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *places(value[key])]]


PIECES = st.sampled_from([b'"', b"{", b"}", b"[", b"0", b"-1", b"1e999", b"null", b"\\", b"\xff"])
PATCHES = st.tuples(st.integers(0, 2**16), st.integers(0, 9), PIECES | st.binary(max_size=4))


def test_manifests_with_changed_bytes_end_in_a_refsam_error(folder: Path):
    good = (folder / "manifest.json").read_bytes()

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(st.lists(PATCHES, min_size=1, max_size=4))
    def check(patches: list[tuple[int, int, bytes]]) -> None:
        raw = patched(good, patches)
        fake_bundle.write_manifest(folder, raw)
        with contextlib.suppress(RefsamError):
            assert open_bundle(folder).manifest.to_bytes() == raw

    check()


def test_manifests_with_changed_values_end_in_a_refsam_error(folder: Path):
    good = (folder / "manifest.json").read_bytes()
    num_opened = 0

    @settings(max_examples=400, derandomize=True, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2**16), JUNK), min_size=1, max_size=2))
    def check(changes: list[tuple[int, Any]]) -> None:
        nonlocal num_opened
        fake_bundle.write_manifest(folder, good)
        manifest = fake_bundle.read_manifest(folder)
        for index, junk in changes:
            found = places(manifest)
            container, key = found[index % len(found)]
            container[key] = junk
        fake_bundle.rewrite_manifest(folder, manifest)
        with contextlib.suppress(RefsamError):
            open_bundle(folder)
            num_opened += 1

    check()
    assert num_opened > 0  # names and notes may change: not every change is an error
