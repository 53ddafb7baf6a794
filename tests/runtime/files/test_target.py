"""One refusal of a place for output, whoever writes and whatever is there."""

import errno
from pathlib import Path

import pytest

from refsam_trt.errors import OutputError
from refsam_trt.files.target import make_folder, output_errors, refuse_file, refuse_folder

REPLACEABLE = r"exists already; choose another name, or ask to replace it \(--overwrite\)$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with something in it."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "run.json").touch()
    return tmp_path / "ours"


@pytest.mark.parametrize("refuse", [refuse_file, refuse_folder])
def test_a_new_name_in_a_folder_is_good(tmp_path: Path, refuse) -> None:
    refuse(tmp_path / "new", overwrite=False)
    refuse(tmp_path / "new", overwrite=True)
    with pytest.raises(OutputError, match=r"a/new: the folder .*a does not exist; create it first"):
        refuse(tmp_path / "a" / "new", overwrite=True)
    with pytest.raises(OutputError, match=r"a{300}: cannot be written \(File name too long\)"):
        refuse(tmp_path / ("a" * 300), overwrite=True)


def test_a_folder_is_replaced_where_that_is_asked_for(folder: Path) -> None:
    refuse_folder(folder, overwrite=True)
    with pytest.raises(OutputError, match=REPLACEABLE):
        refuse_folder(folder, overwrite=False)
    with pytest.raises(OutputError, match=r"exists already; choose another name$"):
        refuse_folder(folder)


def test_a_folder_of_somebody_else_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    refuse_folder(folder, overwrite=True, marker="run.json")
    with pytest.raises(OutputError, match="ours: holds no x, so it is not overwritten; choose ano"):
        refuse_folder(folder, overwrite=True, marker="x")
    (tmp_path / "empty").mkdir()
    refuse_folder(tmp_path / "empty", overwrite=True, marker="x")
    with pytest.raises(OutputError, match=REPLACEABLE):
        refuse_folder(tmp_path / "empty", overwrite=False, marker="x")


def test_files_and_links_are_no_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for place in (folder / "run.json", tmp_path / "link", tmp_path / "dangling"):
        with pytest.raises(OutputError, match="found a file or a link, expected a folder or no"):
            refuse_folder(place, overwrite=True)


def test_a_file_is_replaced_unless_told_otherwise(folder: Path) -> None:
    refuse_file(folder / "run.json")
    with pytest.raises(OutputError, match=f"run.json: {REPLACEABLE}"):
        refuse_file(folder / "run.json", overwrite=False)
    with pytest.raises(OutputError, match="ours: found a folder or a device, expected a file or"):
        refuse_file(folder)


def test_a_folder_is_made_with_those_it_lies_in(folder: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(OutputError, match=r"b: cannot be written \(Not a directory\); choose ano"):
        make_folder(folder / "run.json" / "b")


def test_a_full_disk_has_another_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"[(]No space[)]; free some space"),
        output_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space")
