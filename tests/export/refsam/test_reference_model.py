"""The PyTorch reference against SAM's own modules, the paper's counts and the float64 twin."""

import copy
import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy_reference import decoder as twin_decoder
from numpy_reference import hda as twin_hda
from numpy_reference import run_frame
from numpy_reference import text as twin_text
from numpy_reference import vit as twin_vit
from reference_models import loaded, model, relative, with_all_masks
from torch import nn

from refsam_export.key_bias import key_bias
from refsam_export.refsam.model.config import PRESETS, preset
from refsam_export.refsam.model.hda import token_attention
from refsam_export.refsam.model.mask_decoder import decode, position_encoding
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.model.sam import ImageEncoderViT, PromptEncoder
from refsam_trt.errors import UsageError

SAM_TOLERANCE = 1e-5
# refsam-model 1.2, in the order of the columns vit_b, vit_l, vit_h.
COUNTS = {
    "image_encoder": (89_670_912, 308_278_272, 637_026_048),
    "adapters": (3_550_464, 12_613_632, 26_265_600),
    "fpn_conv": (590_592, 787_200, 983_808),
    "dense": (525_312,) * 3,
    "resizer": (656_128,) * 3,
    "mask_decoder": (4_058_340,) * 3,
    "track_token_mlp": (526_080,) * 3,
    "learnable": (9_906_916, 19_166_692, 33_015_268),
}
T5_3B_WIDTH = 1024


def counts(of: RefSam) -> dict[str, int]:
    sizes = {name: p.numel() for name, p in of.named_parameters() if "text_encoder" not in name}

    def total(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    found = {
        "adapters": total("_Adapter."),
        "fpn_conv": total("fpn_conv."),
        "dense": total("dense_conv.", "dense_conv2."),
        "resizer": total("resizer."),
        "mask_decoder": total("mask_decoder."),
        "track_token_mlp": total("track_token_mlp."),
    }
    learnable = sum(found.values())
    encoder = total("image_encoder.") - found["adapters"]
    return {**found, "learnable": learnable, "image_encoder": encoder}


@pytest.mark.parametrize("index", range(3))
def test_parameter_counts_are_the_papers(index: int) -> None:
    name = ("vitb", "vitl", "vith")[index]
    with torch.device("meta"):
        found = counts(RefSam(preset(name), None, T5_3B_WIDTH))
    assert found == {part: values[index] for part, values in COUNTS.items()}


def test_nano_stays_within_six_million_parameters() -> None:
    assert sum(p.numel() for p in model("nano").parameters()) <= 6_000_000


@pytest.mark.parametrize("name", ["vit_b", "ViT_H", "vitl"])
def test_presets_accept_sams_spelling(name: str) -> None:
    assert preset(name).preset == name.lower().replace("_", "")


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no preset named 'vitg'; choose one of vitb, vitl"):
        preset("vitg")


@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_encoder_without_adapters_equals_sams(name: str) -> None:
    config = PRESETS[name]
    encoder = copy.deepcopy(model(name).image_encoder)
    for key, value in encoder.named_parameters():
        if "_Adapter.D_fc2." in key:
            value.data.zero_()
    sam = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        out_chans=256,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )
    kept = {k: v for k, v in encoder.state_dict().items() if "_Adapter." not in k}
    sam.load_state_dict(kept, strict=True)
    image = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        assert relative(encoder(image)[0], sam(image)) <= SAM_TOLERANCE


def test_decoder_equals_sams_fed_the_same_prompts() -> None:
    of = model("tiny")
    size = of.config.grid_size
    image, dense = torch.randn(1, 256, size, size), torch.randn(3, 256, size, size)
    prompts = torch.randn(3, 7, 256)
    pe = position_encoding(of.pe.gaussian, size)
    with torch.no_grad():
        masks, iou = of.mask_decoder.predict_masks(image, pe, prompts, dense)
        bias = torch.zeros(3, 7)
        ours = decode(of.mask_decoder, image + dense, pe, prompts, bias, mask_select="all")
    assert relative(ours.logits, masks) <= SAM_TOLERANCE
    assert relative(ours.iou, iou) <= SAM_TOLERANCE


def test_position_encoding_equals_sams() -> None:
    prompt_encoder = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    gaussian = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert relative(position_encoding(gaussian, 64), prompt_encoder.get_dense_pe()) <= SAM_TOLERANCE


@pytest.mark.parametrize("torchvision", ["absent", "present"])
def test_sam_is_imported_without_its_package_file(torchvision: str, tmp_path) -> None:
    if torchvision == "present":
        # Enough of torchvision for `segment_anything/__init__.py`.
        transforms = tmp_path / "torchvision" / "transforms"
        transforms.mkdir(parents=True)
        (tmp_path / "torchvision" / "__init__.py").touch()
        (transforms / "__init__.py").touch()
        (transforms / "functional.py").write_text("resize = to_pil_image = None\n")
        operators = tmp_path / "torchvision" / "ops"
        operators.mkdir()
        (operators / "__init__.py").touch()
        (operators / "boxes.py").write_text("batched_nms = box_area = None\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from refsam_export.refsam.model.sam import ImageEncoderViT\n"
        "assert 'segment_anything' not in sys.modules\n"
        "try:\n"
        "    import segment_anything\n"
        "    print(segment_anything.modeling.ImageEncoderViT.__name__)\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("ImageEncoderViT" if torchvision == "present" else "torchvision")


@pytest.fixture(scope="module")
def double() -> RefSam:
    return copy.deepcopy(model("tiny")).double()


@pytest.fixture(scope="module")
def weights(double: RefSam) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in double.state_dict().items()}


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 3, 128, 128, generator=generator, dtype=torch.float64)


class TestFloat64Twin:
    """The independent numpy implementation agrees to 1e-10 from T5's output onwards."""

    TOLERANCE = 1e-10
    # transformers computes T5's norms and softmax in fp32 even in a float64 model.
    T5_TOLERANCE = 1e-6

    @staticmethod
    def close(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
        error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
        assert error <= tolerance

    @staticmethod
    def text(of: RefSam) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = torch.tensor([loaded("tiny").tokenizer.encode("the red circle on the left").ids])
        hidden = of.text_encoder(input_ids=ids).last_hidden_state
        return (ids, *of.encode_text(ids, torch.ones_like(ids)), hidden)

    def test_t5(self, double: RefSam, weights: dict[str, np.ndarray]) -> None:
        ids, _, _, hidden = self.text(double)
        config = double.text_encoder.config
        expected = twin_text.t5(
            weights, ids[0].numpy(), num_heads=config.num_heads, d_kv=config.d_kv
        )
        self.close(hidden[0], expected, self.T5_TOLERANCE)

    def test_text_embedding(self, double: RefSam, weights: dict[str, np.ndarray]) -> None:
        _, words, sentence, hidden = self.text(double)
        expected_words, expected_sentence = twin_text.embed(
            weights, double.config, hidden[0].numpy()
        )
        self.close(words[0], expected_words, self.TOLERANCE)
        self.close(sentence[0], expected_sentence, self.TOLERANCE)

    def test_image_encoder(
        self, double: RefSam, weights: dict[str, np.ndarray], image: torch.Tensor
    ) -> None:
        embedding, features = double.encode_image(image)
        expected, expected_features = twin_vit.encode_image(
            weights, double.config, image[0].numpy()
        )
        self.close(embedding[0], expected, self.TOLERANCE)
        self.close(features[0], expected_features, self.TOLERANCE)

    def test_hda_attention_is_not_merely_the_mean(
        self, double: RefSam, image: torch.Tensor
    ) -> None:
        # Nearly uniform by design (5.1), so what it adds to the mean is compared by itself.
        _, words, sentence, _ = self.text(double)
        _, features = double.encode_image(image)
        text = torch.cat([words, sentence[:, None]], dim=1)
        bias = key_bias(torch.ones(text.shape[:2], dtype=torch.bool), torch.float64)
        found = token_attention(features[:, 0], text, bias)[0] - 1 / text.shape[1]
        expected = twin_hda.attention(features[0, 0].numpy(), words[0].numpy(), sentence[0].numpy())
        self.close(found, expected - 1 / text.shape[1], self.TOLERANCE)

    def test_dense_prompt(
        self, double: RefSam, weights: dict[str, np.ndarray], image: torch.Tensor
    ) -> None:
        _, words, sentence, _ = self.text(double)
        embedding, features = double.encode_image(image)
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        found = double.dense_prompt(embedding, features, words, mask, sentence)
        expected = twin_hda.dense_attention(
            weights,
            double.config,
            embedding[0].numpy(),
            features[0].numpy(),
            words[0].numpy(),
            sentence[0].numpy(),
        )
        self.close(found[0], expected, self.TOLERANCE)

    def test_all_four_masks_and_scores(
        self, double: RefSam, weights: dict[str, np.ndarray], image: torch.Tensor
    ) -> None:
        _, words, sentence, _ = self.text(double)
        embedding, features = double.encode_image(image)
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        dense = double.dense_prompt(embedding, features, words, mask, sentence)
        token = torch.randn(1, 256, generator=torch.Generator().manual_seed(1)).double()
        found = with_all_masks(double).decode(
            embedding,
            features,
            words,
            mask,
            sentence,
            token,
            torch.tensor([True]),
        )
        logits, iou, main = twin_decoder.decode(
            weights,
            double.config,
            embedding[0].numpy(),
            dense[0].numpy(),
            words[0].numpy(),
            token[0].numpy(),
        )
        self.close(found.logits[0], logits, self.TOLERANCE)
        self.close(found.iou[0], iou, self.TOLERANCE)
        self.close(found.main_mask_token[0], main, self.TOLERANCE)

    def test_three_frames_with_the_track_token(
        self, double: RefSam, weights: dict[str, np.ndarray], image: torch.Tensor
    ) -> None:
        _, words, sentence, _ = self.text(double)
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        token, has_track, twin_token = torch.zeros(1, 256).double(), torch.tensor([False]), None
        for shift in range(3):
            frame = image.roll(4 * shift, dims=-1)
            out = double.step(*double.encode_image(frame), words, mask, sentence, token, has_track)
            logits, iou, twin_token = run_frame(
                weights,
                double.config,
                frame[0].numpy(),
                words[0].numpy(),
                sentence[0].numpy(),
                twin_token,
            )
            self.close(out.low_res_logits[0], logits, self.TOLERANCE)
            self.close(out.iou[0], iou, self.TOLERANCE)
            self.close(out.next_track_token[0], twin_token, self.TOLERANCE)
            token, has_track = out.next_track_token, torch.tensor([True])
