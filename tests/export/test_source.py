"""The weights that a bundle was made from: inside it, from its seed, or in a folder by hash."""

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from checkpoint_files import save_refsam, save_sam, save_t5, t5_tensors, whole_bin
from exported import exported
from reference_models import loaded

from refsam_export.refsam.checkpoint import LoadedModel, canonical_tensors, load_model
from refsam_export.source import load_source
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract.manifest import Weights
from refsam_trt.errors import CheckpointError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(exported(tmp_path_factory, "tiny"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM's file, ours and a T5 folder, all in different places."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("sam", "ours"):
        (folder / name).mkdir()
    save_sam(folder / "sam" / "sam[1].pth")  # a name that is also a pattern
    save_refsam(folder / "ours" / "refsam.safetensors")
    save_t5(folder / "t5", whole_bin)
    return folder


@pytest.fixture(scope="module")
def exported_from(files: Path) -> LoadedModel:
    return load_model(
        "tiny",
        sam_checkpoint=files / "sam" / "sam[1].pth",
        checkpoint=files / "ours" / "refsam.safetensors",
        text_encoder=files / "t5",
    )


def without_source(bundle: Bundle, weights: Weights) -> Bundle:
    """The same bundle as `refsam-export --no-include-source` writes it."""
    manifest = msgspec.structs.replace(bundle.manifest, source=None, weights=weights)
    return dataclasses.replace(bundle, manifest=manifest)


def assert_same(found: LoadedModel, expected: LoadedModel) -> None:
    tensors = canonical_tensors(found.model)
    for key, value in canonical_tensors(expected.model).items():
        assert torch.equal(tensors[key], value), key
    assert found.tokenizer.to_str() == expected.tokenizer.to_str()


def refusal(bundle: Bundle, folder: Path | None) -> str:
    with pytest.raises(CheckpointError) as error:
        load_source(bundle, folder)
    return str(error.value)


def test_from_inside_the_bundle(bundle: Bundle) -> None:
    assert_same(load_source(bundle), loaded("tiny"))


def test_from_the_seed(bundle: Bundle) -> None:
    assert_same(load_source(without_source(bundle, bundle.manifest.weights)), loaded("tiny"))


def test_from_sub_folders(bundle: Bundle, exported_from: LoadedModel, files: Path) -> None:
    restored = load_source(without_source(bundle, exported_from.weights), files)
    assert_same(restored, exported_from)


def test_a_file_and_the_seed_for_the_rest(bundle: Bundle, files: Path) -> None:
    before = load_model("tiny", sam_checkpoint=files / "sam" / "sam[1].pth", random_init=4)
    assert_same(load_source(without_source(bundle, before.weights), files), before)


def test_files_of_the_same_name_are_told_apart_by_hash(
    bundle: Bundle, exported_from: LoadedModel, files: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(files, tmp_path / "z"))
    save_sam(tmp_path / "sam[1].pth")
    (tmp_path / "sam[1].pth").write_bytes(b"another")
    # Another T5, first by name, whose configuration and tokenizer are the same files.
    changed = {key: value + 1 for key, value in t5_tensors().items()}
    save_t5(tmp_path / "a", whole_bin, changed)
    restored = load_source(without_source(bundle, exported_from.weights), tmp_path)
    assert_same(restored, exported_from)
    shutil.rmtree(copy / "t5")
    weights = exported_from.weights
    assert "text_encoder config.json (" in refusal(without_source(bundle, weights), tmp_path)


def test_a_folder_for_a_bundle_made_from_no_file(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"made from no file .* leave --source out"):
        load_source(bundle, tmp_path)


def test_no_folder(bundle: Bundle, exported_from: LoadedModel) -> None:
    message = refusal(without_source(bundle, exported_from.weights), None)
    assert message == (
        f"{bundle.folder}: holds no PyTorch weights; give --source FOLDER with sam[1].pth, "
        "refsam.safetensors, config.json, tokenizer.json, pytorch_model.bin, or export with "
        "--include-source"
    )


@pytest.mark.parametrize("folder", [".", "missing"])
def test_nothing_of_that_name(
    folder: str, bundle: Bundle, exported_from: LoadedModel, tmp_path: Path
) -> None:
    weights = exported_from.weights
    message = refusal(without_source(bundle, weights), tmp_path / folder)
    digest = weights.sources[0].sha256[:16]
    assert message == (
        f"{tmp_path / folder}: sam_checkpoint sam[1].pth ({digest}...) not found by SHA-256 (none "
        "of that name); the bundle was made from other files"
    )


def test_a_changed_file(
    bundle: Bundle, exported_from: LoadedModel, files: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(files, tmp_path / "copy"))
    path = copy / "ours" / "refsam.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = refusal(without_source(bundle, exported_from.weights), copy)
    assert "checkpoint refsam.safetensors (" in message
    assert "not found by SHA-256 (1 of that name differ); the bundle was made from other" in message


def test_a_file_that_would_take_the_place_of_the_right_one(
    bundle: Bundle, exported_from: LoadedModel, files: Path, tmp_path: Path
) -> None:
    """Of a T5 folder, model.safetensors is read before pytorch_model.bin."""
    copy = Path(shutil.copytree(files, tmp_path / "copy"))
    save_t5(copy / "t5", tensors={key: value + 1 for key, value in t5_tensors().items()})
    message = refusal(without_source(bundle, exported_from.weights), copy)
    assert "beside the files that the bundle was made from lie others that take their place" in (
        message
    )
    assert "tokenizer.json, model.safetensors, expected sam[1].pth" in message
