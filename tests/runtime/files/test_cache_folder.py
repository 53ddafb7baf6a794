"""Where a user's caches lie."""

import os
from pathlib import Path

import pytest

from refsam_trt.errors import UsageError
from refsam_trt.files.cache_folder import user_cache_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the custom of Linux")


@pytest.mark.parametrize("xdg", [None, "", "relative/folder"])
def test_caches_lie_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert user_cache_folder() == tmp_path / ".cache" / "refsam-trt"
    assert not any(tmp_path.iterdir())


def test_xdg_cache_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert user_cache_folder() == tmp_path / "elsewhere" / "refsam-trt"


def test_without_a_home_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UsageError, match=r"no home folder, .*; set XDG_CACHE_HOME to an absolute"):
        user_cache_folder()
