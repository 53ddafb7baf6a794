"""What is trained: the paper's groups, their sizes (refsam-model 1.2), and nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from tiny_training import fresh_model, read_tiny

from refsam_export.refsam.model.config import preset
from refsam_export.refsam.model.refsam import RefSam
from refsam_train.learn.forward import ClipTraining
from refsam_train.learn.groups import group_of, trained_parameters
from refsam_train.recipe import GROUPS, Loss, read_recipe
from refsam_trt.errors import UsageError

PAPER = Path(__file__).parents[3] / "train" / "recipes" / "paper-finetune.toml"


@pytest.mark.parametrize(
    ("name", "adapters", "hda", "total"),
    [
        ("vitb", 3_550_464, 590_592 + 525_312, 9_906_916),
        ("vitl", 12_613_632, 787_200 + 525_312, 19_166_692),
        ("vith", 26_265_600, 983_808 + 525_312, 33_015_268),
    ],
)
def test_groups_have_the_sizes_of_the_paper(name: str, adapters: int, hda: int, total: int) -> None:
    with torch.device("meta"):
        model = RefSam(preset(name), None, 1024)
    counts = dict.fromkeys(GROUPS, 0)
    for parameter_name, parameter in model.named_parameters():
        if group := group_of(parameter_name):
            counts[group] += parameter.numel()
    assert counts["adapters"] == adapters
    assert counts["hda"] == hda
    assert (counts["resizer"], counts["decoder"], counts["itm"]) == (656_128, 4_058_340, 526_080)
    assert sum(counts.values()) == total


def test_parameter_efficient_training_freezes_everything_else() -> None:
    with torch.device("meta"):
        model = RefSam(preset("tiny"), torch.nn.Linear(64, 64), 64)
    chosen = trained_parameters(ClipTraining(model, Loss(), bf16=False), read_recipe(PAPER))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in chosen)
        if name.startswith("text_encoder.") or "blocks.7.attn" in name:
            assert not parameter.requires_grad
    assert {rate for _, rate in chosen.values()} == {1e-4, 1e-5, 1e-6}
    assert chosen["image_encoder.blocks.4.MLP_Adapter.D_fc1.weight"][1] == 1e-5
    assert chosen["mask_decoder.mask_tokens.weight"][1] == 1e-6


def test_a_group_without_rate_is_frozen(tmp_path: Path) -> None:
    recipe = read_recipe(PAPER)
    optimiser = msgspec.structs.replace(recipe.optimiser, rates={"itm": 1e-4})
    with torch.device("meta"):
        model = RefSam(preset("tiny"), None, 64)
    chosen = trained_parameters(
        ClipTraining(model, Loss(), bf16=False),
        msgspec.structs.replace(recipe, optimiser=optimiser),
    )
    assert {group_of(name) for name in chosen} == {"itm"}


def test_full_training_leaves_out_only_what_gets_no_gradient(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = RefSam(preset("tiny"), None, 64)
    chosen = trained_parameters(ClipTraining(model, Loss(), bf16=False), read_tiny(tmp_path))
    left_out = {name for name, _ in model.named_parameters()} - set(chosen)
    assert left_out
    assert all("iou_prediction_head" in n or "hypernetworks_mlps" in n for n in left_out)
    assert not any("hypernetworks_mlps.0." in name for name in left_out)


def test_what_a_recipe_freezes_is_not_trained(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, mode='"full"\nfrozen = ["image_encoder.", "text_encoder."]')
    model = fresh_model(recipe).model
    trained = trained_parameters(ClipTraining(model, Loss(), bf16=False), recipe)
    frozen = ("image_encoder.", "text_encoder.")
    assert not [name for name in trained if name.startswith(frozen)]
    assert {"resizer.0.weight", "track_token_mlp.linear1.weight"} <= set(trained)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trained), name


def test_what_cannot_be_frozen_is_refused(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path, mode='"full"\nfrozen = ["image_encodr."]')
    training = ClipTraining(fresh_model(recipe).model, Loss(), bf16=False)
    with pytest.raises(UsageError, match=r"tiny: frozen: no tensor begins with image_encodr\."):
        trained_parameters(training, recipe)


def test_parameter_efficient_training_freezes_what_the_recipe_names_as_well() -> None:
    recipe = msgspec.structs.replace(read_recipe(PAPER), frozen=("resizer.", "mask_decoder."))
    with torch.device("meta"):
        model = RefSam(preset("tiny"), None, 64)
    chosen = trained_parameters(ClipTraining(model, Loss(), bf16=False), recipe)
    assert "track_token_mlp.linear1.weight" in chosen
    assert not [name for name in chosen if name.startswith(recipe.frozen)]
