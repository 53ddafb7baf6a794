"""From weight files to a model: every tensor from the file that should give it, or a refusal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    GAUSSIAN,
    LAYOUTS,
    T5_CONFIG,
    refsam_record,
    refsam_tensors,
    sam_tensors,
    save_refsam,
    save_sam,
    save_t5,
    t5_tensors,
)
from reference_models import loaded, model
from safetensors.torch import save_file
from torch import Tensor

import refsam_export.refsam.checkpoint as checkpoint
from refsam_export.files.tensor_files import read_metadata
from refsam_export.refsam.checkpoint import LoadedModel, canonical_tensors, load_model, save_source
from refsam_trt.errors import CheckpointError, UsageError

TEXT = "text_encoder."


def tensors_of(found: LoadedModel) -> dict[str, Tensor]:
    return canonical_tensors(found.model)


def expected_of_sam(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a SAM file gives: its own keys, the prompt encoder reduced to the Fourier matrix."""
    kept = {k: v for k, v in tensors.items() if not k.startswith("prompt_encoder.")}
    return kept | {"pe.gaussian": tensors[GAUSSIAN]}


def expected_of_t5() -> dict[str, Tensor]:
    return {
        TEXT + key: value
        for key, value in t5_tensors().items()
        if key == "shared.weight" or (key.startswith("encoder.") and "embed_tokens" not in key)
    }


def assert_holds(found: LoadedModel, *expected: dict[str, Tensor]) -> None:
    """Every tensor equals the last of `expected` that has it, and all of them are covered."""
    merged = {key: value for part in expected for key, value in part.items()}
    tensors = tensors_of(found)
    assert tensors.keys() == merged.keys()
    for key, value in merged.items():
        assert torch.equal(tensors[key], value), key


class TestSam:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
    def test_random_weights_fill_exactly_what_it_lacks(self, zipped: bool, tmp_path: Path) -> None:
        path = save_sam(tmp_path / "sam.pth", _use_new_zipfile_serialization=zipped)
        restored = load_model("tiny", sam_checkpoint=path, random_init=7)
        given = expected_of_sam(sam_tensors())
        assert_holds(restored, tensors_of(loaded("tiny", 7)), given)
        assert set(restored.missing) == tensors_of(restored).keys() - given.keys()
        (report,) = restored.reports
        assert (report.name, report.kind) == (str(path), "SAM")
        assert (report.num_loaded, report.unexpected) == (len(given), ())
        assert restored.weights.random_init_seed == 7
        assert restored.weights.num_random_tensors == len(restored.missing)
        assert [source.role for source in restored.weights.sources] == ["sam_checkpoint"]
        assert restored.weights.sources[0].name == "sam.pth"

    def test_adapters_and_refsams_own_modules_are_what_it_lacks(self, tmp_path: Path) -> None:
        path = save_sam(tmp_path / "sam.pth")
        missing = load_model("tiny", sam_checkpoint=path, random_init=0).missing
        tops = {"_Adapter." if "_Adapter." in key else key.partition(".")[0] for key in missing}
        assert tops == {
            "_Adapter.",
            "dense_conv",
            "dense_conv2",
            "fpn_conv",
            "resizer",
            "text_encoder",
            "track_token_mlp",
        }

    def test_unexpected_keys_are_reported(self, tmp_path: Path) -> None:
        extra = {"image_encoder.extra.weight": torch.zeros(3), "optimizer.step": torch.zeros(1)}
        path = save_sam(tmp_path / "sam.pth", sam_tensors() | extra)
        (report,) = load_model("tiny", sam_checkpoint=path, random_init=0).reports
        assert report.unexpected == ("image_encoder.extra.weight", "optimizer.step")
        assert report.num_loaded == len(expected_of_sam(sam_tensors()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_floating_point_types_become_float32(
        self, dtype: torch.dtype, tmp_path: Path
    ) -> None:
        tensors = {key: value.to(dtype) for key, value in sam_tensors().items()}
        path = save_sam(tmp_path / "sam.pth", tensors)
        found = tensors_of(load_model("tiny", sam_checkpoint=path, random_init=0))
        for key, value in expected_of_sam(tensors).items():
            assert found[key].dtype == torch.float32
            assert torch.equal(found[key], value.float())

    @pytest.mark.parametrize(("backbone", "other"), [("nano", "tiny"), ("tiny", "nano")])
    def test_another_preset(self, backbone: str, other: str, tmp_path: Path) -> None:
        path = save_sam(tmp_path / "sam.pth", sam_tensors(other))
        with pytest.raises(CheckpointError) as error:
            load_model(backbone, sam_checkpoint=path, random_init=0)
        assert f"preset {backbone} expects" in str(error.value)
        assert f"{path}: image_encoder." in str(error.value)
        assert "a checkpoint of another preset, or another text encoder? See --backbone" in str(
            error.value
        )

    @pytest.mark.parametrize(
        "remove", ["image_encoder.", "prompt_encoder."], ids=["no encoder", "no prompt encoder"]
    )
    def test_what_is_no_sam_checkpoint(self, remove: str, tmp_path: Path) -> None:
        kept = {k: v for k, v in sam_tensors().items() if not k.startswith(remove)}
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", sam_checkpoint=save_sam(tmp_path / "sam.pth", kept), random_init=0)
        assert "sam.pth: not a SAM checkpoint; expected keys image_encoder.*, mask_decoder.*" in (
            str(error.value)
        )
        assert "found " in str(error.value)
        assert " more; weights of RefSAM go to --checkpoint" in str(error.value)

    def test_our_file_given_as_sams(self, tmp_path: Path) -> None:
        path = save_refsam(tmp_path / "refsam.safetensors")
        with pytest.raises(CheckpointError, match=r"not a SAM checkpoint.*go to --checkpoint"):
            load_model("tiny", sam_checkpoint=path, random_init=0)


class TestOwnFile:
    def test_whole_model_there_and_back(self, tmp_path: Path) -> None:
        before = loaded("tiny", 3)
        path = tmp_path / "refsam.safetensors"
        save_source(path, before)
        restored = load_model("tiny", checkpoint=path)
        assert_holds(restored, tensors_of(before))
        assert restored.missing == ()
        assert restored.weights.random_init_seed is None
        assert restored.weights.num_random_tensors == 0
        assert restored.model.config == before.model.config
        assert restored.text_config == before.text_config
        assert restored.tokenizer.to_str() == before.tokenizer.to_str()
        (report,) = restored.reports
        assert (report.kind, report.unexpected) == ("RefSAM", ())
        assert report.num_loaded == len(tensors_of(before))

    def test_a_whole_file_leaves_nothing_to_the_seed(self, tmp_path: Path) -> None:
        path = tmp_path / "refsam.safetensors"
        save_source(path, loaded("tiny", 3))
        restored = load_model("tiny", checkpoint=path, random_init=9)
        assert_holds(restored, tensors_of(loaded("tiny", 3)))
        assert restored.weights.random_init_seed is None

    def test_a_configuration_other_than_the_presets_is_kept(self, tmp_path: Path) -> None:
        record = refsam_record()
        record["configuration"]["adapter_act"] = "gelu"
        path = save_refsam(tmp_path / "refsam.safetensors", record=record)
        assert load_model("tiny", checkpoint=path, random_init=0).model.config.adapter_act == "gelu"

    def test_without_text_encoder_the_seed_fills_that_alone(self, tmp_path: Path) -> None:
        path = save_refsam(tmp_path / "refsam.safetensors")
        restored = load_model("tiny", checkpoint=path, random_init=4)
        assert_holds(restored, tensors_of(loaded("tiny", 4)), refsam_tensors())
        assert restored.missing
        assert all(key.startswith(TEXT) for key in restored.missing)
        assert restored.weights.random_init_seed == 4
        assert restored.weights.num_random_tensors == len(restored.missing)

    @pytest.mark.parametrize(("backbone", "other"), [("nano", "tiny"), ("tiny", "nano")])
    def test_another_preset(self, backbone: str, other: str, tmp_path: Path) -> None:
        path = save_refsam(
            tmp_path / "refsam.safetensors", refsam_tensors(other), refsam_record(other)
        )
        with pytest.raises(CheckpointError) as error:
            load_model(backbone, checkpoint=path, random_init=0)
        assert str(error.value) == (
            f"{path}: holds preset '{other}', asked for '{backbone}'; use --backbone {other}"
        )

    @pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors"])
    def test_sams_file_given_as_ours(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        if path.suffix == ".pth":
            save_sam(path)
        else:
            save_file(sam_tensors(), path)
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", checkpoint=path, random_init=0)
        assert str(error.value) == (
            f"{path}: not a RefSAM weights file of ours (no 'refsam' metadata); "
            "SAM's weights go to --sam-checkpoint, files of the official scripts to --part"
        )

    @pytest.mark.parametrize(
        ("record", "text"),
        [
            ("{", "damaged 'refsam' metadata: Expecting"),
            ("[]", "damaged 'refsam' metadata: list indices"),
            ("{}", "damaged 'refsam' metadata: 'schema'"),
            ({"schema": 2}, "schema 2, this version reads 1"),
            ({"schema": 1}, "damaged 'refsam' metadata: 'configuration'"),
            ({"schema": 1, "configuration": []}, "metadata: configuration is no object"),
        ],
    )
    def test_damaged_metadata(
        self, record: dict[str, Any] | str, text: str, tmp_path: Path
    ) -> None:
        path = save_refsam(tmp_path / "refsam.safetensors", record=record)
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", checkpoint=path, random_init=0)
        assert str(error.value).startswith(f"{path}: ")
        assert text in str(error.value)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"colour": "red"}, "unknown keys ['colour']; known: ['adapter_act'"),
            ({"width": "64"}, "Expected `int`, got `str` - at `$.width`"),
            ({"width": None}, "Expected `int`, got `null` - at `$.width`"),
            ({"itm": "rnn"}, "Invalid enum value 'rnn' - at `$.itm`"),
            ({"hda_levels": 3}, "Invalid enum value 3 - at `$.hda_levels`"),
            ({"global_blocks": [1, 3]}, "four global blocks are needed and the last must be"),
            ({"num_heads": 0}, "num_heads 0 is no size"),
            ({"num_heads": 7}, "width 64 must be a multiple of num_heads 7"),
        ],
    )
    def test_a_configuration_of_no_model(
        self, change: dict[str, Any], text: str, tmp_path: Path
    ) -> None:
        record = refsam_record()
        record["configuration"] |= change
        path = save_refsam(tmp_path / "refsam.safetensors", record=record)
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", checkpoint=path, random_init=0)
        assert str(error.value).startswith(f"{path}: ")
        assert text in str(error.value)

    def test_a_configuration_with_a_gap(self, tmp_path: Path) -> None:
        record = refsam_record()
        del record["configuration"]["depth"]
        path = save_refsam(tmp_path / "refsam.safetensors", record=record)
        with pytest.raises(CheckpointError, match=r"missing required field `depth`"):
            load_model("tiny", checkpoint=path, random_init=0)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"text_encoder": "t5-small"}, "damaged description of the text encoder"),
            ({"tokenizer": None}, "damaged description of the text encoder"),
            ({"tokenizer": "{}"}, "not a readable tokenizer"),
        ],
    )
    def test_a_damaged_text_encoder(
        self, change: dict[str, Any], text: str, tmp_path: Path
    ) -> None:
        record = refsam_record(with_text=True) | change
        path = save_refsam(tmp_path / "refsam.safetensors", record=record)
        with pytest.raises(CheckpointError, match=rf"refsam\.safetensors: {text}"):
            load_model("tiny", checkpoint=path, random_init=0)


class TestTogether:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_three_files_and_no_seed(self, layout: str, tmp_path: Path) -> None:
        """Our file comes after SAM's, and the T5 folder gives the text encoder."""
        sam = save_sam(tmp_path / "sam.pth")
        own = {k: v for k, v in refsam_tensors().items() if not k.startswith("mask_decoder.")}
        checkpoint = save_refsam(tmp_path / "refsam.safetensors", own)
        folder = save_t5(tmp_path / "t5", LAYOUTS[layout])
        restored = load_model(
            "tiny", sam_checkpoint=sam, checkpoint=checkpoint, text_encoder=folder
        )
        assert_holds(restored, expected_of_sam(sam_tensors()), own, expected_of_t5())
        assert restored.missing == ()
        assert restored.weights.random_init_seed is None
        assert [report.kind for report in restored.reports] == ["SAM", "RefSAM", "T5"]
        assert all(not report.unexpected for report in restored.reports)
        assert restored.text_config == T5_CONFIG
        roles = [source.role for source in restored.weights.sources]
        assert roles[:2] == ["sam_checkpoint", "checkpoint"]
        assert set(roles[2:]) == {"text_encoder"}

    def test_the_loaded_model_computes_with_what_was_loaded(self, tmp_path: Path) -> None:
        """The tied embedding too: `shared` and the encoder's own table are one tensor."""
        folder = save_t5(tmp_path / "t5")
        encoder = load_model("tiny", text_encoder=folder, random_init=0).model.text_encoder
        assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
        assert torch.equal(encoder.shared.weight, t5_tensors()["shared.weight"])

    def test_a_text_encoder_of_another_width(self, tmp_path: Path) -> None:
        checkpoint = save_refsam(tmp_path / "refsam.safetensors")
        folder = save_t5(tmp_path / "t5", d_model=32)
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", checkpoint=checkpoint, text_encoder=folder, random_init=0)
        assert "resizer.0.bias has shape [32], preset tiny expects [16]" in str(error.value)
        assert "or another text encoder? See --backbone and --text-encoder" in str(error.value)

    def test_a_t5_with_a_gap(self, tmp_path: Path) -> None:
        lost = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
        tensors = {key: value for key, value in t5_tensors().items() if key != lost}
        checkpoint = save_refsam(tmp_path / "refsam.safetensors")
        folder = save_t5(tmp_path / "t5", tensors=tensors)
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", checkpoint=checkpoint, text_encoder=folder)
        assert f"1 tensors are in none of the given files: {TEXT}{lost}. Give" in str(error.value)

    def test_a_t5_with_more_than_it_should_have(self, tmp_path: Path) -> None:
        tensors = t5_tensors() | {"encoder.extra.weight": torch.zeros(2)}
        folder = save_t5(tmp_path / "t5", tensors=tensors)
        (report,) = load_model("tiny", text_encoder=folder, random_init=0).reports
        assert report.unexpected == (f"{TEXT}encoder.extra.weight",)


class TestRandomInit:
    def test_gaps_are_refused_with_the_ways_out(self, tmp_path: Path) -> None:
        path = save_sam(tmp_path / "sam.pth")
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", sam_checkpoint=path)
        num = len(load_model("tiny", sam_checkpoint=path, random_init=0).missing)
        assert f"{num} tensors are in none of the given files: dense_conv.bias, " in str(
            error.value
        )
        assert f" and {num - 6} more. Give --sam-checkpoint, --checkpoint, --part" in str(
            error.value
        )
        assert "fill them with --random-init SEED (for tests of speed and parity" in str(
            error.value
        )

    def test_seeds_differ_and_repeat(self) -> None:
        first, again = (tensors_of(load_model("tiny", random_init=5)) for _ in "12")
        other = tensors_of(loaded("tiny", 6))
        for key, value in first.items():
            assert torch.equal(value, again[key])
            assert not torch.equal(value, other[key])

    def test_everything_is_missing_without_files(self) -> None:
        found = loaded("tiny")
        assert set(found.missing) == tensors_of(found).keys()
        assert found.weights.num_random_tensors == len(found.missing)
        assert found.reports == ()

    def test_an_unknown_preset(self) -> None:
        with pytest.raises(UsageError, match="no preset named 'huge'; choose one of vitb"):
            load_model("huge", random_init=0)


def spoil(
    tensors: dict[str, Tensor], key: str, change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    return tensors | {key: change(tensors[key])}


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.to(dtype).clone()
        changed.view(-1)[-1] = value
        return changed

    return change


BAD_VALUES = {
    "nan": (with_one(math.nan), "holds values that are not finite in float32"),
    "infinity": (with_one(-math.inf), "holds values that are not finite in float32"),
    "too large": (with_one(1e300, torch.float64), "holds values that are not finite in float32"),
    "int8": (lambda t: t.to(torch.int8), "is int8; expected floating-point numbers of 16, 32"),
    "fp8": (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn; expected floating-point"),
}


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_values_that_cannot_be_used(bad: str, tmp_path: Path) -> None:
    change, text = BAD_VALUES[bad]
    sam_key, t5_key = "mask_decoder.iou_token.weight", "encoder.final_layer_norm.weight"
    sam = save_sam(tmp_path / "sam.pth", spoil(sam_tensors(), sam_key, change))
    with pytest.raises(CheckpointError) as error:
        load_model("tiny", sam_checkpoint=sam, random_init=0)
    assert f"{sam}: {sam_key} {text}" in str(error.value)
    folder = save_t5(tmp_path / "t5", tensors=spoil(t5_tensors(), t5_key, change))
    with pytest.raises(CheckpointError) as error:
        load_model("tiny", text_encoder=folder, random_init=0)
    assert f"{folder}: {TEXT}{t5_key} {text}" in str(error.value)


@pytest.mark.parametrize("option", ["sam_checkpoint", "checkpoint"])
def test_a_missing_file(option: str, tmp_path: Path) -> None:
    for name in ("absent.pth", "absent.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name}: no such file"):
            load_model("tiny", random_init=0, **{option: tmp_path / name})


def test_a_t5_folder_given_as_a_file(tmp_path: Path) -> None:
    folder = save_t5(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="t5: no such file"):
        load_model("tiny", sam_checkpoint=folder, random_init=0)


def test_reading_changes_no_file(tmp_path: Path) -> None:
    """Tensors may be mapped from the file: what is done to the model must not reach it."""
    path = save_sam(tmp_path / "sam.pth")
    before = path.read_bytes()
    restored = load_model("tiny", sam_checkpoint=path, random_init=0)
    for tensor in tensors_of(restored).values():
        tensor.data.zero_()
    assert path.read_bytes() == before


def test_the_source_file_names_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "refsam.safetensors"
    save_source(path, loaded("tiny"))
    record = json.loads(read_metadata(path)["refsam"])
    assert record["schema"] == 1
    assert record["configuration"] == model("tiny").config.to_json()


class TestMappedWeights:
    """Large tensors stay in their files; here every tensor counts as large."""

    def test_they_are_the_same_and_the_file_stays_as_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sam = save_sam(tmp_path / "sam.pth")
        copied = load_model("tiny", sam_checkpoint=sam, random_init=0)
        before = sam.read_bytes()
        monkeypatch.setattr(checkpoint, "_MAPPED_BYTES", 1)
        mapped = load_model("tiny", sam_checkpoint=sam, random_init=0)
        ours, theirs = canonical_tensors(mapped.model), canonical_tensors(copied.model)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        for tensor in ours.values():
            tensor.data.add_(1.0)  # as training does
        assert sam.read_bytes() == before

    def test_half_weights_are_widened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensors = {key: value.half() for key, value in sam_tensors("tiny", seed=0).items()}
        sam = save_sam(tmp_path / "sam.pth", tensors)
        monkeypatch.setattr(checkpoint, "_MAPPED_BYTES", 1)
        model = load_model("tiny", sam_checkpoint=sam, random_init=0).model
        assert {tensor.dtype for tensor in canonical_tensors(model).values()} == {torch.float32}
