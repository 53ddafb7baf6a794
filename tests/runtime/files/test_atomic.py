"""Files and folders that are whole or absent, whatever interrupts their writing."""

import errno
import os
import stat

import pytest

from refsam_trt.errors import InternalError, OutputError
from refsam_trt.files.atomic import atomic_folder, atomic_path

INTERRUPTS = [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)]


def enter(context):
    """Enter a context whose block must not be reached."""
    with context:
        pytest.fail("the block must not run")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "result.json"
    with atomic_path(target) as path:
        path.write_text("new")
        assert path.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["result.json"]


def test_an_existing_file_is_replaced_only_at_the_end(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")
    with atomic_path(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def write_half(target, interrupt):
    with atomic_path(target) as path:
        path.write_text("half")
        raise interrupt


@pytest.mark.parametrize("interrupt", INTERRUPTS, ids=repr)
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path, interrupt):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(type(interrupt)):
        write_half(target, interrupt)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_files_get_the_permissions_of_any_new_file(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    with atomic_path(tmp_path / "ours") as path:
        path.write_text("")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_full_disk_is_an_output_error_that_names_the_target(tmp_path):
    for context in (atomic_path, atomic_folder):
        target = tmp_path / "target"
        with pytest.raises(OutputError) as error, context(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert str(error.value) == (
            f"{target}: cannot be written (No space left on device); free some space"
        )
        assert names(tmp_path) == []


def test_a_file_system_that_refuses_is_an_output_error(tmp_path):
    target = tmp_path / "target"
    refused = pytest.raises(OutputError, match=r"target: cannot be written \(Permission denied\)")
    with refused, atomic_path(target) as path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    with pytest.raises(OutputError, match="choose another place"), atomic_folder(target) as folder:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder / "00000.png")


def test_errors_about_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "target"):
        (tmp_path / "input").read_bytes()
    assert names(tmp_path) == []


def test_a_file_needs_its_folder_and_no_folder_or_device_in_its_place(tmp_path):
    with pytest.raises(OutputError, match="missing does not exist; create it first"):
        enter(atomic_path(tmp_path / "missing" / "file"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OutputError, match="found a folder or a device, expected a file"):
            enter(atomic_path(tmp_path / name))


def test_a_block_that_writes_nothing_is_our_bug(tmp_path):
    with pytest.raises(InternalError, match="wrote no file"), atomic_path(tmp_path / "file"):
        pass


def test_long_and_foreign_names_work(tmp_path):
    target = tmp_path / ("é" * 120)
    with atomic_path(target) as path:
        path.write_text("x")
    assert names(tmp_path) == [target.name]


def fill(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("new")


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "bundle"
    with atomic_folder(target) as folder:
        fill(folder)
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputError, match=r"bundle: exists already; choose another name$"):
        enter(atomic_folder(tmp_path / "bundle"))


def test_overwriting_replaces_the_whole_folder_at_the_end(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target, overwrite=True) as folder:
        fill(folder)
        assert names(target) == ["old"]
    assert names(target) == ["sub"]
    assert names(tmp_path) == ["bundle"]


def fill_and_raise(target, interrupt):
    with atomic_folder(target, overwrite=True) as folder:
        fill(folder)
        raise interrupt


@pytest.mark.parametrize("interrupt", INTERRUPTS, ids=repr)
def test_an_interrupted_folder_leaves_the_old_one_and_nothing_else(tmp_path, interrupt):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(type(interrupt)):
        fill_and_raise(target, interrupt)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_the_old_folder_returns_when_the_new_one_cannot_take_its_place(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")

    class Blocked(type(target)):
        """Refuses the second rename: the new folder's."""

        def rename(self, other):
            if self.name.endswith(".part"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().rename(other)

    failing = pytest.raises(OutputError, match="Input/output error")
    with failing, atomic_folder(Blocked(target), overwrite=True) as folder:
        fill(folder)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "bundle"
    with pytest.raises(OutputError, match="exists already"), atomic_folder(target):
        target.mkdir()
    assert names(target) == []
    assert names(tmp_path) == ["bundle"]


def test_files_and_links_are_never_overwritten_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="found a file or a link, expected a folder"):
            enter(atomic_folder(tmp_path / name, overwrite=True))


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_a_name_too_long_for_the_disk_is_an_output_error(tmp_path, write):
    with pytest.raises(OutputError, match=r"a{300}: cannot be written \(File name too long\)"):
        enter(write(tmp_path / ("a" * 300)))
