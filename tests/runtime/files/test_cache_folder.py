"""Where a user's caches lie on each system."""

import sys
from pathlib import Path

import pytest

from refsam_trt.errors import UsageError
from refsam_trt.files.cache_folder import user_cache_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", ".cache"),
        ("darwin", "Library/Caches"),
        ("win32", "AppData/Local"),
        ("freebsd14", ".cache"),
    ],
)
def test_each_system_has_its_custom(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert user_cache_folder() == home / expected / "refsam-trt"
    assert not any(home.iterdir())


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_xdg_cache_home_comes_first_if_it_is_absolute(
    home: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    by_custom = user_cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    assert user_cache_folder() == home / "elsewhere" / "refsam-trt"
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache_folder() == by_custom


def test_windows_says_itself_where_local_data_lie(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(home / "Local"))
    assert user_cache_folder() == home / "Local" / "refsam-trt"


def test_without_a_home_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UsageError, match=r"no home folder, .*; set XDG_CACHE_HOME to a folder, or"):
        user_cache_folder()
