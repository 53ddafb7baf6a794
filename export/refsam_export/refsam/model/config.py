"""What a RefSAM is made of: the frozen configuration and the presets (refsam-model 1.1).

`refsam_export.refsam.configuration` derives one from what checkpoints hold and users ask for.

The text encoder describes itself (its own `config.json`) and is not part of a preset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from refsam_trt.errors import UsageError
from refsam_trt.image.preprocess import FirstResize, PreprocessConfig

EMBED_DIM = 256
NUM_MASK_TOKENS = 4
TEXT_SCALE = 1.0 / 16.0
_SIZES = (
    "image_size",
    "width",
    "depth",
    "num_heads",
    "window_size",
    "patch_size",
    "decoder_mlp_dim",
    "itm_dim",
    "max_words",
)


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of one RefSAM; the defaults are the paper's.

    `image_size` is the side of the square network input in pixels, `width` the ViT width D,
    `mlp_ratio` the hidden width of a ViT block over D, `decoder_mlp_dim` the hidden width of the
    mask decoder's token MLP, `itm_dim` that of the Implicit Tracking Module.

    `hda_levels`: maps with Dense Attention, 4, or 1 (the final one); 0 is the ablation of 5.1,
    where the dense prompt is SAM's `no_mask_embed` or, with `dense_origin`, the image embedding
    plus the sentence. `word_tokens` False: the decoder gets zeros for words. `itm`: 7.1 or 7.2.
    `resizer_hidden`: hidden widths of the Cross-Modal MLP; None: one, half the text encoder's.
    `mask_select`: which mask is returned (6.6); the track token always follows the main one.
    `lowercase`: of expressions. `downscale_short_side`: pixels that frames are brought to first.
    """

    preset: str
    image_size: int
    width: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window_size: int = 14
    patch_size: int = 16
    mlp_ratio: float = 4.0
    decoder_mlp_dim: int = 2048
    itm_dim: int = 1024
    hda_levels: Literal[4, 1, 0] = 4
    dense_origin: bool = False
    word_tokens: bool = True
    itm: Literal["ffn", "qim"] = "ffn"
    adapter_act: Literal["relu", "gelu"] = "relu"
    adapter_ratio: float = 0.25
    adapter_scale: float = 0.5
    l2norm_image: bool = True
    l2norm_text: bool = True
    l2norm_intermediate: bool = True
    resizer_hidden: tuple[int, ...] | None = None
    mask_select: Literal["main", "best_iou"] = "main"
    lowercase: bool = True
    downscale_short_side: int | None = 360
    first_resize: FirstResize = "rounded"
    max_words: int = 64

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise UsageError(f"preset {self.preset}: {name} {getattr(self, name)} is no size")
        if self.width % self.num_heads or self.image_size % self.patch_size:
            raise UsageError(
                f"preset {self.preset}: width {self.width} must be a multiple of num_heads "
                f"{self.num_heads}, image_size {self.image_size} of patch_size {self.patch_size}"
            )
        if len(self.global_blocks) != 4 or self.global_blocks[-1] != self.depth - 1:
            raise UsageError(
                f"preset {self.preset}: four global blocks are needed and the last must be block "
                f"{self.depth - 1}, found {self.global_blocks}"
            )
        if self.dense_origin and self.hda_levels:
            raise UsageError(
                f"preset {self.preset}: dense_origin replaces Dense Attention, so hda_levels must "
                f"be 0, found {self.hda_levels}"
            )

    @property
    def grid_size(self) -> int:
        """Side of the feature grid, h = w."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the ViT."""
        return self.width // self.num_heads

    @property
    def adapter_blocks(self) -> range:
        """Blocks with adapters: the latter half (refsam-model 1.1)."""
        return range(self.depth // 2, self.depth)

    @property
    def adapter_dim(self) -> int:
        """Hidden width of an adapter."""
        return round(self.width * self.adapter_ratio)

    @property
    def intermediate_blocks(self) -> tuple[int, ...]:
        """Blocks whose outputs feed HDA levels 1 to 3: the first three global blocks, or none."""
        return self.global_blocks[:3] if self.hda_levels == 4 else ()

    @property
    def preprocess(self) -> PreprocessConfig:
        """What is done to a frame before the image encoder."""
        return PreprocessConfig(
            self.image_size, self.downscale_short_side, first_resize=self.first_resize
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal configuration."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Make a configuration from `to_json`'s object.

        Raises:
            UsageError: an unknown or missing key, or a value of the wrong type.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise UsageError(f"model configuration: unknown keys {unknown}; known: {sorted(names)}")
        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"model configuration: {error}") from error


PRESETS: Mapping[str, ModelConfig] = {
    config.preset: config
    for config in (
        ModelConfig("vitb", 1024, width=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
        ModelConfig(
            "vitl", 1024, width=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)
        ),
        ModelConfig(
            "vith", 1024, width=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)
        ),
        ModelConfig(
            "nano",
            256,
            width=128,
            depth=8,
            num_heads=4,
            global_blocks=(1, 3, 5, 7),
            window_size=8,
            decoder_mlp_dim=256,
            itm_dim=256,
            downscale_short_side=None,
        ),
        ModelConfig(
            "tiny",
            128,
            width=64,
            depth=8,
            num_heads=4,
            global_blocks=(1, 3, 5, 7),
            window_size=3,
            downscale_short_side=None,
        ),
    )
}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a preset; `vit_b`, `vit_l` and `vit_h` are accepted too.

    Raises:
        UsageError: no such preset.
    """
    config = PRESETS.get(name.replace("_", "").lower())
    if config is None:
        raise UsageError(f"no preset named {name!r}; choose one of {', '.join(PRESETS)}")
    return config
