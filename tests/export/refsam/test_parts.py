"""Part files of the official scripts: told apart, renamed, merged, warned of, refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import sam_tensors, save_refsam, save_sam, save_t5
from numpy_reference import vit
from part_files import PAPER, RELEASED, part_tensors, save_part, with_lora
from reference_models import image_of, loaded, variant
from torch import Tensor

from refsam_export.refsam.checkpoint import LoadedModel, canonical_tensors, load_model
from refsam_export.refsam.configuration import asked_for
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.parts import read_part
from refsam_trt.errors import CheckpointError, UsageError

Tensors = dict[str, Tensor]
GELU = (
    "part files do not tell the activation of the adapters; GELU is taken, as in the official "
    "code, where the paper says ReLU (--adapter-act relu)"
)


def released() -> RefSam:
    return variant(hda_levels=1, itm="qim", adapter_act="gelu")


def paper() -> RefSam:
    return variant(seed=2)


def save_parts(folder: Path, of: RefSam, kinds: tuple[str, ...]) -> list[Path]:
    return [save_part(folder, kind, part_tensors(of, kind)) for kind in kinds]


def of_parts(found: LoadedModel, of: RefSam, kinds: tuple[str, ...]) -> None:
    """Assert that every tensor of these parts is the one of the model they were made from."""
    tensors, prefixes = canonical_tensors(found.model), tuple(f"{kind}." for kind in kinds)
    expected = {k: v for k, v in canonical_tensors(of).items() if k.startswith(prefixes)}
    assert expected
    for key, value in expected.items():
        assert torch.equal(tensors[key], value), key
    assert not set(found.missing) & expected.keys()


class TestPresenceDecides:
    def test_the_released_model(self, tmp_path: Path) -> None:
        of, paths = released(), save_parts(tmp_path, released(), RELEASED)
        restored = load_model("tiny", parts=paths, random_init=0)
        config = restored.model.config
        assert (config.hda_levels, config.itm, config.adapter_act) == (1, "qim", "gelu")
        prefixes = ("resizer", "dense_conv", "mask_decoder", "temporal_aggregation_network")
        of_parts(restored, of, (*prefixes, "image_encoder.blocks"))
        assert [report.kind for report in restored.reports] == list(RELEASED)
        assert all(not report.unexpected for report in restored.reports)
        assert {(s.role, s.name) for s in restored.weights.sources} == {
            ("part", path.name) for path in paths
        }
        assert restored.warnings == (
            f"{paths[-1]}: its adapters are noise: the released training scripts never train them "
            "and save them as they were drawn. They are loaded, because the rest was trained "
            "beside them",
            GELU,
        )

    def test_the_papers_model(self, tmp_path: Path) -> None:
        restored = load_model("tiny", parts=save_parts(tmp_path, paper(), PAPER), random_init=0)
        config = restored.model.config
        assert (config.hda_levels, config.itm, config.adapter_act) == (4, "ffn", "gelu")
        of_parts(restored, paper(), PAPER)
        assert restored.warnings == (GELU,)

    def test_a_whole_encoder_comes_after_sams(self, tmp_path: Path) -> None:
        path = save_part(tmp_path, "adapter", part_tensors(paper(), "image_encoder"))
        sam = save_sam(tmp_path / "sam.pth", sam_tensors())
        restored = load_model("tiny", sam_checkpoint=sam, parts=[path], random_init=0)
        of_parts(restored, paper(), ("image_encoder",))
        assert [report.kind for report in restored.reports] == ["SAM", "image_encoder"]
        assert restored.warnings == (GELU,)

    def test_no_hda_part_leaves_the_choice_to_the_user(self, tmp_path: Path) -> None:
        paths = save_parts(tmp_path, paper(), ("mask_decoder",))
        assert load_model("tiny", parts=paths, random_init=0).model.config.hda_levels == 4
        asked = asked_for("released")
        found = load_model("tiny", parts=paths, random_init=0, asked=asked).model.config
        assert (found.hda_levels, found.itm, found.first_resize) == (1, "qim", "truncated")

    def test_the_activation_may_be_told(self, tmp_path: Path) -> None:
        paths = save_parts(tmp_path, paper(), ("dense_conv",))
        restored = load_model(
            "tiny", parts=paths, random_init=0, asked=asked_for("released", adapter_act="relu")
        )
        assert restored.model.config.adapter_act == "relu"
        assert restored.warnings == ()

    @pytest.mark.parametrize(
        ("kind", "options", "field"),
        [
            ("dense_conv", {"configuration": "paper"}, "hda_levels = 1, but 4"),
            ("dense_conv", {"ablations": ["no-dense-attention"]}, "hda_levels = 1, but 0"),
            ("track_token_mlp", {"configuration": "released"}, "itm = 'ffn', but 'qim'"),
        ],
    )
    def test_a_contradiction(self, kind: str, options: dict, field: str, tmp_path: Path) -> None:
        (path,) = save_parts(tmp_path, paper(), (kind,))
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", parts=[path], random_init=0, asked=asked_for(**options))
        assert str(error.value) == (
            f"{path}: is for {field} is asked for; leave out the option or the file that says "
            "otherwise (--configuration, --adapter-act, --ablation)"
        )

    def test_our_own_file_against_an_option(self, tmp_path: Path) -> None:
        path = save_refsam(tmp_path / "refsam.safetensors")
        with pytest.raises(CheckpointError, match="is for hda_levels = 4, but 1 is asked for"):
            load_model("tiny", checkpoint=path, random_init=0, asked=asked_for("released"))
        free = asked_for("paper", mask_select="best_iou", casing="keep", short_side=200)
        restored = load_model("tiny", checkpoint=path, random_init=0, asked=free)
        config = restored.model.config
        assert (config.mask_select, config.lowercase) == ("best_iou", False)
        assert config.downscale_short_side == config.preprocess.downscale_short_side == 200
        assert asked_for(short_side="none") == {"downscale_short_side": None}
        assert asked_for(casing="lower") == {"lowercase": True}

    def test_two_tracking_modules(self, tmp_path: Path) -> None:
        first = save_part(tmp_path, "track_net", part_tensors(released(), "track_net"))
        second = save_part(tmp_path, "track_token_mlp", part_tensors(paper(), "track_token_mlp"))
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", parts=[first, second], random_init=0)
        assert str(error.value).startswith(
            f"{second}: is for itm = 'ffn', but 'qim' is what {first} is for; leave out"
        )

    @pytest.mark.parametrize(
        ("kind", "lacks"), [("fpn_conv", "dense_conv2"), ("dense_conv2", "fpn_conv")]
    )
    def test_half_of_the_levels(self, kind: str, lacks: str, tmp_path: Path) -> None:
        paths = save_parts(tmp_path, paper(), (kind, "dense_conv"))
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", parts=paths, random_init=0)
        assert str(error.value) == (
            f"{paths[0]}: {kind} without {lacks}; a model with four levels of dense attention has "
            "both, one with a single level neither: give both files or leave this one out"
        )

    def test_the_same_part_twice(self, tmp_path: Path) -> None:
        tensors = part_tensors(paper(), "resizer")
        one, two = (save_part(tmp_path, "resizer", tensors, epoch) for epoch in ("0", "1"))
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", parts=[one, two], random_init=0)
        assert str(error.value) == (
            f"{two}: holds resizer.0.weight, as {one} does; give one of the two files"
        )

    def test_parts_beside_our_own_file(self, tmp_path: Path) -> None:
        own = save_refsam(tmp_path / "refsam.safetensors")
        (part,) = save_parts(tmp_path, paper(), ("resizer",))
        with pytest.raises(UsageError) as error:
            load_model("tiny", checkpoint=own, parts=[part])
        assert str(error.value) == (
            f"--checkpoint {own} and --part {part} hold the same tensors; give one kind"
        )

    def test_adapters_that_nobody_saved(self, tmp_path: Path) -> None:
        parts = save_parts(tmp_path, paper(), PAPER)
        sam, text = save_sam(tmp_path / "sam.pth", sam_tensors()), save_t5(tmp_path / "t5")
        with pytest.raises(CheckpointError) as error:
            load_model("tiny", sam_checkpoint=sam, parts=parts, text_encoder=text)
        assert (
            " more. They are the adapters: the released training scripts save them with LoRA only, "
            "in image_encoder_blocks_*; a model whose adapters were not saved cannot be restored. "
            "Give"
        ) in str(error.value)


class TestLora:
    def test_merged_equals_the_twin_that_computes_both(self, tmp_path: Path) -> None:
        """In float64, where merging itself must not show."""
        double = copy.deepcopy(released()).double()
        blocks = with_lora(part_tensors(double, "image_encoder_blocks"))
        part = read_part(save_part(tmp_path, "image_encoder_blocks", blocks))
        assert part.kind == "image_encoder_blocks (LoRA of rank 4 merged)"
        double.load_state_dict(part.tensors, strict=False)
        plain = {k: v.double().numpy() for k, v in released().state_dict().items()}
        rest = {k: v for k, v in plain.items() if not k.startswith("image_encoder.blocks.")}
        weights = rest | {f"image_encoder.blocks.{k}": v.numpy() for k, v in blocks.items()}
        image = image_of(released()).double()
        expected, _ = vit.encode_image(weights, double.config, image[0].numpy())
        unmerged, _ = vit.encode_image(plain, double.config, image[0].numpy())
        found = double.encode_image(image)[0][0].numpy()
        assert np.abs(found - expected).max() <= 1e-10 * np.abs(expected).max()
        assert np.abs(found - unmerged).max() > 1e-3 * np.abs(expected).max()

    def test_every_block_is_merged_and_nothing_is_left(self, tmp_path: Path) -> None:
        tensors = part_tensors(released(), "image_encoder_blocks")
        path = save_part(tmp_path, "image_encoder_blocks", with_lora(tensors))
        restored = load_model("tiny", parts=[path], random_init=0)
        (report,) = restored.reports
        assert (report.num_loaded, report.unexpected) == (len(tensors), ())
        state = restored.model.state_dict()
        for block in range(8):
            key = f"image_encoder.blocks.{block}.attn.proj"
            assert torch.equal(state[f"{key}.bias"], tensors[f"{block}.attn.proj.bias"])
            assert not torch.allclose(state[f"{key}.weight"], tensors[f"{block}.attn.proj.weight"])

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensors: tensors.pop("3.attn.proj.w_b.weight"),
            lambda tensors: tensors.update({"3.attn.proj.w_b.weight": torch.zeros(64, 3)}),
        ],
    )
    def test_half_a_lora(self, change: Callable[[Tensors], object], tmp_path: Path) -> None:
        tensors = with_lora(part_tensors(released(), "image_encoder_blocks"))
        change(tensors)
        path = save_part(tmp_path, "image_encoder_blocks", tensors)
        with pytest.raises(CheckpointError) as error:
            read_part(path)
        assert f"{path}: 3.attn.proj: LoRA needs w.weight [D, D], w.bias [D], w_a.weight" in (
            str(error.value)
        )


def linear(outputs: int, inputs: int, *more: int) -> Tensor:
    return torch.randn(outputs, inputs, *more, generator=torch.Generator().manual_seed(outputs))


def named(layers: dict[str, tuple[int, ...]]) -> Tensors:
    """Weights of these shapes and their biases."""
    found = {f"{name}.weight".lstrip("."): torch.ones(shape) for name, shape in layers.items()}
    return found | {
        f"{name}.bias".lstrip("."): torch.ones(shape[0]) for name, shape in layers.items()
    }


class TestLayouts:
    @pytest.mark.parametrize(
        ("layers", "hidden", "places"),
        [
            ({"0": (32, 64), "2": (256, 32)}, None, {0: 0, 2: 2}),
            ({"0": (32, 64), "3": (256, 32)}, None, {0: 0, 2: 3}),
            ({"0": (32, 64), "2": (32, 32), "4": (256, 32)}, (32, 32), {0: 0, 2: 2, 4: 4}),
            ({"0": (256, 64)}, (), {0: 0}),
            ({"0": (48, 64), "2": (256, 48)}, (48,), {0: 0, 2: 2}),
        ],
        ids=["default", "drop-out", "one more layer", "one layer", "other width"],
    )
    def test_cross_modal_mlp(
        self, layers: dict, hidden: tuple[int, ...] | None, places: dict, tmp_path: Path
    ) -> None:
        path = save_part(tmp_path, "resizer", named(layers))
        part = read_part(path)
        assert (part.kind, part.facts) == ("resizer", {"resizer_hidden": hidden})
        keys = {f"resizer.{place}.{kind}" for place in places for kind in ("weight", "bias")}
        assert part.tensors.keys() == keys
        restored = load_model("tiny", parts=[path], random_init=0)
        assert restored.model.config.resizer_hidden == hidden
        for place, index in places.items():
            weight = canonical_tensors(restored.model)[f"resizer.{place}.weight"]
            assert tuple(weight.shape) == layers[str(index)]
            assert bool((weight == 1).all())

    @pytest.mark.parametrize(
        "names",
        [
            ("linear1", "linear2", "norm"),
            ("layers.0", "layers.1", "norm"),
            ("0", "2", "3"),
            ("0", "2", "norm"),
            ("linear_feat1", "linear_feat2", "norm_feat"),
        ],
    )
    def test_tracking_module_of_the_paper(self, names: tuple[str, ...], tmp_path: Path) -> None:
        tensors = part_tensors(paper(), "track_token_mlp")
        renamed = {
            f"{new}.{kind}": tensors[f"{old}.{kind}"]
            for old, new in zip(("linear1", "linear2", "norm"), names, strict=True)
            for kind in ("weight", "bias")
        }
        restored = load_model("tiny", parts=[save_part(tmp_path, "any", renamed)], random_init=0)
        of_parts(restored, paper(), ("track_token_mlp",))
        assert restored.model.config.itm_dim == 1024

    @pytest.mark.parametrize("form", ["indexed", "shared", "linear", "shared linear"])
    @pytest.mark.parametrize("kind", ["fpn_conv", "dense_conv2"])
    def test_convolutions_of_the_levels(self, kind: str, form: str, tmp_path: Path) -> None:
        width = 64 if kind == "fpn_conv" else 512
        shape = (256, width) if "linear" in form else (256, width, 1, 1)
        places = [""] if "shared" in form else ["0", "1", "2"]
        tensors = {
            f"{place}.weight".lstrip("."): linear(*shape) + i for i, place in enumerate(places)
        }
        tensors |= {f"{place}.bias".lstrip("."): torch.zeros(256) for place in places}
        part = read_part(save_part(tmp_path, kind, tensors))
        assert part.kind == kind
        for level in range(3):
            key = ".weight".lstrip(".") if "shared" in form else f"{level}.weight"
            found = part.tensors[f"{kind}.{level}.weight"]
            assert torch.equal(found, tensors[key].reshape(256, width, 1, 1))

    def test_a_file_name_decides_between_dense_convolutions(self, tmp_path: Path) -> None:
        tensors = named({"": (256, 512, 1, 1)})
        for name in ("dense_conv", "dense_conv2"):
            assert read_part(save_part(tmp_path, name, tensors)).kind == name
        path = save_part(tmp_path, "conv", tensors)
        with pytest.raises(CheckpointError) as error:
            read_part(path)
        assert str(error.value) == (
            f"{path}: a 512 -> 256 convolution, which may be dense_conv (final map) or dense_conv2 "
            "(shared by the intermediate maps); name the file dense_conv_*.pth or "
            "dense_conv2_*.pth, as the training scripts do"
        )

    @pytest.mark.parametrize(
        ("option", "shape"),
        [
            ("sparse_fc", (256, 512)),
            ("memory_key", (32, 256, 3, 3)),
            ("memory_value", (128, 256, 3, 3)),
            ("mask_conv", (256, 1, 7, 7)),
        ],
    )
    def test_experimental_parts(self, option: str, shape: tuple[int, ...], tmp_path: Path) -> None:
        name = f"{option}t5-3b_last" if option == "sparse_fc" else f"{option}_t5-3b_last"
        path = tmp_path / f"{name}.pth"
        torch.save({"weight": torch.zeros(shape), "bias": torch.zeros(shape[0])}, path)
        with pytest.raises(CheckpointError) as error:
            read_part(path)
        assert str(error.value) == (
            f"{path}: an experimental part of the released scripts ({option}), which RefSAM does "
            "not have; a model that was trained with it cannot be exported"
        )

    @pytest.mark.parametrize(
        ("tensors", "listed"),
        [
            ({"conv.weight": torch.ones(256, 64, 3, 3)}, "conv.weight [256, 64, 3, 3]"),
            (
                named({"0": (256, 512, 1, 1), "1": (256, 64, 1, 1), "2": (256, 512, 1, 1)}),
                "0.bias [256], 0.weight [256, 512, 1, 1], 1.bias [256], 1.weight [256, 64, 1, 1],",
            ),
            (named({"0": (32, 64), "2": (256, 16)}), "0.bias [32], 0.weight [32, 64], 2.bias [256"),
            (named({"0": (256, 512, 1, 1), "1": (256, 512, 1, 1)}), "1.weight [256, 512, 1, 1];"),
            (named({"0": (128, 64)}), "0.bias [128], 0.weight [128, 64];"),
            ({}, "layout: ;"),
        ],
        ids=["other name", "mixed widths", "broken chain", "two levels", "other output", "empty"],
    )
    def test_unknown_layouts(self, tensors: Tensors, listed: str, tmp_path: Path) -> None:
        path = save_part(tmp_path, "dense_conv2", tensors)
        with pytest.raises(CheckpointError) as error:
            read_part(path)
        text = str(error.value)
        assert text.startswith(f"{path}: no part of RefSAM has this layout: ")
        assert listed in text
        assert text.endswith("SAM's weights go to --sam-checkpoint, ours to --checkpoint")

    def test_another_adapter_width_is_inferred(self, tmp_path: Path) -> None:
        of = variant(adapter_ratio=0.125)
        path = save_part(tmp_path, "image_encoder", part_tensors(of, "image_encoder"))
        found = load_model("tiny", parts=[path], random_init=0).model
        assert found.config.adapter_ratio == 0.125
        assert found.image_encoder.blocks[4].MLP_Adapter.D_fc1.out_features == 8

    def test_a_part_of_another_preset(self, tmp_path: Path) -> None:
        other = loaded("nano").model
        path = save_part(tmp_path, "image_encoder", part_tensors(other, "image_encoder"))
        with pytest.raises(CheckpointError, match=r"preset tiny expects .*See --backbone"):
            load_model("tiny", parts=[path], random_init=0)


def test_ablations_take_what_they_need_from_sam(tmp_path: Path) -> None:
    tensors = sam_tensors()
    no_mask = torch.full_like(tensors["prompt_encoder.no_mask_embed.weight"], 0.25)
    tensors["prompt_encoder.no_mask_embed.weight"] = no_mask
    path = save_sam(tmp_path / "sam.pth", tensors)
    asked = asked_for(ablations=["no-dense-attention", "no-word-tokens"])
    restored = load_model("tiny", sam_checkpoint=path, random_init=0, asked=asked)
    assert torch.equal(restored.model.no_mask_embed.weight, no_mask)
    assert not restored.model.config.word_tokens
    assert not [key for key in canonical_tensors(restored.model) if "dense_conv" in key]
    (report,) = load_model(
        "tiny", sam_checkpoint=path, random_init=0, asked=asked_for(ablations=["dense-origin"])
    ).reports
    assert report.unexpected == ()
