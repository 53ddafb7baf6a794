"""Opening a bundle: a good one opens from a read-only place, and each defect has its own text."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_bundle
import pytest

from refsam_trt import limits
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract import refsam
from refsam_trt.errors import BundleError, UsageError

GRAPHS = "graphs/fp32-plain-baseline"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "b", external_data=True)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(folder: Path, **options: str) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert str(folder) in text
    return text.replace(str(folder), "BUNDLE")


@pytest.mark.parametrize("split", ["baseline", "optimised"])
@pytest.mark.parametrize("verify", ["full", "deferred"])
def test_opens_a_good_bundle(tmp_path: Path, split: refsam.Split, verify: str):
    folder = fake_bundle.make_bundle(tmp_path / "b", split=split, external_data=True)
    manifest_bytes = (folder / "manifest.json").read_bytes()
    bundle = open_bundle(folder, verify=verify)  # type: ignore[arg-type]
    assert bundle.bundle_id == hashlib.sha256(manifest_bytes).hexdigest()
    assert bundle.manifest.to_bytes() == manifest_bytes
    assert bundle.path("tokenizer.json") == folder / "tokenizer.json"
    image_encoder = f"graphs/fp32-plain-{split}/image_encoder.onnx"
    assert bundle.external_data(image_encoder) == (f"{image_encoder}.data",)
    assert bundle.verify_file(image_encoder) == folder / image_encoder
    assert open_bundle(folder, expect_id=bundle.bundle_id) == bundle


def test_opens_through_a_link_to_the_folder(folder: Path, tmp_path: Path):
    link = tmp_path / "current"
    link.symlink_to(folder)
    assert open_bundle(link).folder == link


def test_opens_without_text_encoder_when_there_is_a_text_cache(tmp_path: Path):
    folder = fake_bundle.make_bundle(tmp_path / "b", text_encoder=False)
    assert "no graph text_encoder; refsam needs it (the text encoder unless" in refusal(folder)
    (folder / "text_cache.safetensors").write_bytes(b"checked by its reader")
    fake_bundle.refresh_files(folder)
    manifest = fake_bundle.read_manifest(folder)
    fake_bundle.rewrite_manifest(folder, manifest | {"text_cache": "text_cache.safetensors"})
    assert refsam.TEXT_ENCODER not in first_graphs(open_bundle(folder))


def first_graphs(bundle: Bundle) -> set[str]:
    return set(next(iter(bundle.manifest.variants.values())).graphs)


def test_reads_only(folder: Path):
    def snapshot() -> dict[str, tuple[int, int]]:
        found = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
        return {name: (info.st_mtime_ns, info.st_size) for name, info in found.items()}

    before = snapshot()
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    open_bundle(folder)
    assert snapshot() == before
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_refuses_another_bundle_than_expected(folder: Path):
    found = (folder / "manifest.sha256").read_text().strip()
    assert refusal(folder, expect_id="0" * 64) == (
        f"BUNDLE: this is bundle {found}, expected was {'0' * 64}; give the right bundle, or do "
        "not expect a certain one"
    )
    with pytest.raises(UsageError, match="expect_id 'ABC' is no bundle id: 64 lower-case hexa"):
        open_bundle(folder, expect_id="ABC")


def test_refuses_what_is_no_bundle(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, problem in {
        "absent": "BUNDLE: no such folder; give the folder of a bundle",
        "file": "BUNDLE: not a folder; give the folder of a bundle",
        "empty": "BUNDLE: no manifest.json in this folder, so it is no bundle; give the folder "
        "that refsam-export wrote",
    }.items():
        assert refusal(tmp_path / name) == problem


def test_full_verification_hashes_and_deferred_leaves_it_to_verify_file(folder: Path):
    data = f"{GRAPHS}/image_encoder.onnx.data"
    content = bytearray((folder / data).read_bytes())
    content[5] ^= 1
    (folder / data).write_bytes(content)
    assert f"BUNDLE/{data}: SHA-256 " in refusal(folder)
    assert "the file was damaged or changed; copy the bundle again" in refusal(folder)
    bundle = open_bundle(folder, verify="deferred")
    bundle.verify_file("tokenizer.json")
    with pytest.raises(BundleError, match=r"image_encoder\.onnx\.data: SHA-256"):
        bundle.verify_file(f"{GRAPHS}/image_encoder.onnx")


def test_each_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    hashed: list[str] = []

    def sha256_of_file(path: Path) -> str:
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("refsam_trt.bundle.sealed.sha256_of_file", sha256_of_file)
    full = open_bundle(folder)
    assert len(hashed) == len(full.manifest.files) == 6
    full.verify_file("tokenizer.json")
    assert len(hashed) == 6
    hashed.clear()
    deferred = open_bundle(folder, verify="deferred")
    assert hashed == []
    for _ in range(2):
        deferred.verify_file(f"{GRAPHS}/text_encoder.onnx")
    assert hashed == ["text_encoder.onnx", "text_encoder.onnx.data"]


def test_knows_only_listed_files(folder: Path):
    bundle = open_bundle(folder)
    for ask in (bundle.path, bundle.verify_file):
        for name in ("../secret", "manifest.json", str(folder / "tokenizer.json")):
            with pytest.raises(BundleError, match="the manifest lists no file"):
                ask(name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda f: (f / "tokenizer.json").unlink(),
        "BUNDLE/tokenizer.json: missing, but listed in the manifest; copy the bundle again, or "
        "export it anew with refsam-export",
    ),
    "truncated": (
        lambda f: os.truncate(f / "tokenizer.json", 10),
        "BUNDLE/tokenizer.json: 10 bytes, the manifest says 5487; copy the bundle again",
    ),
    "added": (
        lambda f: (f / "graphs" / "notes.txt").touch(),
        "BUNDLE: 'graphs/notes.txt' is not listed in the manifest (1 such files); a bundle is "
        "never changed: remove what was added",
    ),
    "file link": (
        lambda f: (f / "link").symlink_to("/etc/passwd"),
        "BUNDLE: 'link' is a symbolic link; a bundle holds files and folders only: copy the "
        "bundle with links resolved (cp -rL)",
    ),
    "folder link": (lambda f: (f / "graphs/l").symlink_to(f), "'graphs/l' is a symbolic link"),
    "manifest link": (
        lambda f: (
            (f / "manifest.json").rename(f.parent / "m.json"),
            (f / "manifest.json").symlink_to(f.parent / "m.json"),
        ),
        "'manifest.json' is a symbolic link",
    ),
    "fifo": (lambda f: os.mkfifo(f / "pipe"), "BUNDLE: 'pipe' is no regular file"),
    "no hash": (
        lambda f: (f / "manifest.sha256").unlink(),
        "BUNDLE/manifest.sha256: missing; copy",
    ),
    "bad hash": (
        lambda f: (f / "manifest.sha256").write_text("feed\n"),
        "BUNDLE/manifest.sha256: holds 'feed\\n', 64 lower-case hexadecimal digits expected",
    ),
    "other hash": (
        lambda f: (f / "manifest.sha256").write_text("0" * 64 + "\n"),
        f"written down is {'0' * 64}: one of the two files was altered; copy the bundle again",
    ),
    "altered manifest": (
        lambda f: (f / "manifest.json").write_bytes(
            (f / "manifest.json").read_bytes().replace(b'"fake"', b'"fuke"')
        ),
        "BUNDLE/manifest.sha256: the SHA-256 of manifest.json is ",
    ),
    "huge manifest": (
        lambda f: (f / "manifest.json").write_bytes(b" " * (limits.MAX_MANIFEST_BYTES + 1)),
        "BUNDLE/manifest.json: more than 8388608 bytes; copy the bundle again",
    ),
    "not JSON": (
        lambda f: fake_bundle.write_manifest(f, b"{]"),
        "BUNDLE/manifest.json: not JSON (JSON is malformed",
    ),
    "not UTF-8": (
        lambda f: fake_bundle.write_manifest(
            f, (f / "manifest.json").read_bytes().replace(b"fake", b"fak\xff")
        ),
        "BUNDLE/manifest.json: not JSON ('utf-8' codec can't decode",
    ),
    "bottomless": (
        lambda f: fake_bundle.write_manifest(f, b'{"a":' + b"[" * 100_000),
        "BUNDLE/manifest.json: values nested more than 32 deep; export the bundle anew",
    ),
    "not canonical": (
        lambda f: fake_bundle.write_manifest(f, (f / "manifest.json").read_bytes() + b"\n"),
        "BUNDLE/manifest.json: not in canonical form (see docs/format/bundle.md)",
    ),
    "same key twice": (
        lambda f: fake_bundle.write_manifest(
            f, (f / "manifest.json").read_bytes().replace(b"{", b'{\n  "family": "refsam",', 1)
        ),
        "not in canonical form",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_refuses_a_damaged_bundle(folder: Path, case: str):
    change, problem = DAMAGES[case]
    change(folder)
    assert problem in refusal(folder)


def test_bounds_the_number_of_files(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_FILES", 9)
    assert "more than 9 files and folders, more than a bundle has" in refusal(folder)


def test_refuses_what_it_may_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    original_open = Path.open

    def guarded_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "tokenizer.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded_open)
    assert "BUNDLE/tokenizer.json: cannot be read (Permission denied)" in refusal(folder)
