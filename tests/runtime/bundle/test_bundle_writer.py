"""Writing a bundle: complete, repeatable, and nothing at all when anything goes wrong."""

import errno
import shutil
from pathlib import Path
from typing import Any

import fake_bundle
import msgspec
import pytest

from refsam_trt.bundle import write as bundle_writer
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.contract.manifest import Manifest
from refsam_trt.errors import InternalError, OutputError
from refsam_trt.onnx_file.reader import summarise_onnx


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Manifest, dict[str, Path]]:
    """A manifest without `files`, and the files, in a scratch folder."""
    folder = fake_bundle.make_bundle(tmp_path / "scratch", external_data=True)
    manifest = open_bundle(folder).manifest
    files = {name: folder / name for name in manifest.files}
    return msgspec.structs.replace(manifest, files={}), files


Parts = tuple[Manifest, dict[str, Path]]


def copied(files: dict[str, Path], folder: Path) -> dict[str, Path]:
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    return {name: folder / name for name in files}


def test_writes_what_the_tests_write_by_hand(parts: Parts, tmp_path: Path):
    manifest, files = parts
    by_hand = {
        path.relative_to(tmp_path / "scratch"): path.read_bytes()
        for path in (tmp_path / "scratch").rglob("*")
        if path.is_file()
    }
    bundle = write_bundle(tmp_path / "out", manifest=manifest, files=files)
    assert bundle == open_bundle(tmp_path / "out")
    assert bundle.folder == tmp_path / "out"
    assert bundle.verify_file("tokenizer.json") == tmp_path / "out" / "tokenizer.json"
    written = {
        path.relative_to(tmp_path / "out"): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert written == by_hand
    assert not any(source.exists() for source in files.values())
    for graph in bundle.manifest.variants["fp32-plain-baseline"].graphs.values():
        assert summarise_onnx(bundle.path(graph.file)).node_types == graph.node_types


def test_same_inputs_give_the_same_id_whatever_their_order(parts: Parts, tmp_path: Path):
    manifest, files = parts
    again = dict(reversed(copied(files, tmp_path / "copy").items()))
    first = write_bundle(tmp_path / "a", manifest=manifest, files=files)
    second = write_bundle(tmp_path / "b", manifest=manifest, files=again)
    assert first.bundle_id == second.bundle_id
    assert (tmp_path / "a/manifest.json").read_bytes() == (
        tmp_path / "b/manifest.json"
    ).read_bytes()


def test_existing_target_is_kept_unless_it_is_to_be_overwritten(parts: Parts, tmp_path: Path):
    manifest, files = parts
    again = copied(files, tmp_path / "copy")
    target = tmp_path / "out"
    first = write_bundle(target, manifest=manifest, files=files)
    with pytest.raises(OutputError) as caught:
        write_bundle(target, manifest=manifest, files=again)
    assert str(caught.value) == (
        f"{target}: exists already; choose another name, or ask to replace it (--overwrite)"
    )
    assert open_bundle(target).bundle_id == first.bundle_id
    other = msgspec.structs.replace(manifest, preset="other")
    second = write_bundle(target, manifest=other, files=again, overwrite=True)
    assert open_bundle(target) == second
    assert second.bundle_id != first.bundle_id


def test_overwrites_nothing_but_bundles(parts: Parts, tmp_path: Path):
    manifest, files = parts
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").touch()
    with pytest.raises(OutputError, match=r"holds no manifest\.json, so it is not overwritten"):
        write_bundle(home, manifest=manifest, files=files, overwrite=True)
    assert (home / "letters.txt").exists()
    (home / "letters.txt").unlink()
    assert write_bundle(home, manifest=manifest, files=files, overwrite=True).folder == home


def failing_move(
    monkeypatch: pytest.MonkeyPatch, problem: BaseException, num_moved: int
) -> list[str]:
    """Make the move after `num_moved` files fail; return the list of files moved so far."""
    done: list[str] = []

    def move(source: Path, destination: Path) -> None:
        if len(done) == num_moved:
            raise problem
        done.append(source.name)
        shutil.copyfile(source, destination)

    monkeypatch.setattr(bundle_writer.shutil, "move", move)
    return done


def test_full_disk_leaves_nothing(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest, files = parts
    done = failing_move(monkeypatch, OSError(errno.ENOSPC, "No space left"), 3)
    with pytest.raises(OutputError) as caught:
        write_bundle(tmp_path / "out", manifest=manifest, files=files)
    assert str(caught.value) == (
        f"{list(files.values())[3]}: cannot be moved into the bundle (No space left); check "
        "permissions and free space"
    )
    assert len(done) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]


def test_interruption_leaves_nothing(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest, files = parts
    done = failing_move(monkeypatch, KeyboardInterrupt(), 3)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "out", manifest=manifest, files=files)
    assert len(done) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]


def no_file(files: dict[str, Path]) -> None:
    files["tokenizer.json"] = Path("absent")


def link(files: dict[str, Path]) -> None:
    source = files["tokenizer.json"]
    (source.parent / "link").symlink_to(source)
    files["tokenizer.json"] = source.parent / "link"


def own_name(files: dict[str, Path]) -> None:
    files["manifest.json"] = files.pop("tokenizer.json")


def escaping_name(files: dict[str, Path]) -> None:
    files["../tokenizer.json"] = files.pop("tokenizer.json")


def forgotten(files: dict[str, Path]) -> None:
    del files["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (no_file, "'tokenizer.json' should come from absent, which is no file"),
        (link, "'tokenizer.json' should come from "),
        (own_name, "no file can be called 'manifest.json', a path that is the manifest's own"),
        (escaping_name, "no file can be called '../tokenizer.json', a path that leaves its folder"),
        (
            forgotten,
            "the bundle just made does not pass its own check: OUT/manifest.json: tokenizer.file "
            "is 'tokenizer.json', which is not among files",
        ),
    ],
)
def test_wrong_requests_are_our_own_bugs(parts: Parts, tmp_path: Path, change: Any, problem: str):
    manifest, files = parts
    change(files)
    with pytest.raises(InternalError) as caught:
        write_bundle(tmp_path / "out", manifest=manifest, files=files)
    assert problem in str(caught.value).replace(str(tmp_path / "out"), "OUT")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_refuses_numbers_that_json_does_not_have(parts: Parts, tmp_path: Path, number: float):
    manifest, files = parts
    wrong = msgspec.structs.replace(manifest, parity={"figures": [1.0, {"error": number}]})
    with pytest.raises(InternalError, match="the manifest holds a number that is not finite"):
        write_bundle(tmp_path / "out", manifest=wrong, files=files)
