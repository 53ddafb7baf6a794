"""What a ReferDINO is made of: the frozen configuration and the presets (referdino-model 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from refsam_trt.errors import UsageError

NUM_LEVELS = 4
"""Maps that the grounding transformer sees: strides 8, 16, 32 and 64."""

_WIDTH_UNIT = 128
"""The pixel decoder ends at width / 16, in 8 groups."""


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of one ReferDINO; the defaults are those of all released checkpoints.

    `window` is the side of Swin's windows in cells. `width` is d, `ffn_dim` the hidden width of the
    encoder and decoder layers; fusion and text layers have half of it, and half the heads.
    `num_points`: samples per head and level. `temporal`: whether the temporal blocks were trained;
    where they were not they are left out, and the tracked embeddings stay as they are.
    `tracker_momentum`: how much of an embedding the tracker's memory takes at most.
    """

    preset: str
    swin_width: int
    swin_depths: tuple[int, ...]
    swin_heads: tuple[int, ...]
    window: int
    bert_width: int = 768
    bert_layers: int = 12
    bert_heads: int = 12
    bert_ffn: int = 3072
    bert_positions: int = 512
    vocabulary: int = 30522
    width: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_points: int = 4
    num_queries: int = 900
    mask_layers: int = 3
    mask_ffn: int = 1024
    mask_points: int = 16
    temporal_layers: int = 3
    temporal_ffn: int = 2048
    temporal: bool = True
    tracker_momentum: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            sizes = value if isinstance(value, tuple) else (value,)
            if any(type(size) is int and size < 1 for size in sizes):
                raise UsageError(f"preset {self.preset}: {field.name} {value} is no size")
        if self.width % _WIDTH_UNIT:
            raise UsageError(
                f"preset {self.preset}: width {self.width} must be a multiple of {_WIDTH_UNIT}"
            )
        if len(self.swin_depths) != NUM_LEVELS or len(self.swin_heads) != NUM_LEVELS:
            raise UsageError(
                f"preset {self.preset}: Swin has {NUM_LEVELS} stages, found depths "
                f"{self.swin_depths} and heads {self.swin_heads}"
            )

    @property
    def swin_channels(self) -> tuple[int, ...]:
        """Channels of Swin's four stages."""
        return tuple(self.swin_width * 2**stage for stage in range(NUM_LEVELS))

    @property
    def num_kept(self) -> tuple[int, ...]:
        """Queries that are left after each decoder layer: half of them, rounded up (4.6)."""
        counts = [self.num_queries]
        for _ in range(self.decoder_layers):
            counts.append((counts[-1] + 1) // 2)
        return tuple(counts[1:])

    @property
    def num_slots(self) -> int:
        """Objects that a frame gives: the queries that the last decoder layer keeps."""
        return self.num_kept[-1]


PRESETS: Mapping[str, ModelConfig] = {
    config.preset: config
    for config in (
        ModelConfig("swint", 96, (2, 2, 6, 2), (3, 6, 12, 24), window=7),
        ModelConfig("swinb", 128, (2, 2, 18, 2), (4, 8, 16, 32), window=12),
        ModelConfig(
            "tiny",
            16,
            (2, 2, 2, 2),
            (1, 2, 4, 8),
            window=7,
            bert_width=64,
            bert_layers=2,
            bert_heads=4,
            bert_ffn=128,
            bert_positions=64,
            vocabulary=32,
            ffn_dim=128,
            encoder_layers=2,
            decoder_layers=3,
            num_queries=120,
            mask_layers=2,
            mask_ffn=64,
            temporal_layers=2,
            temporal_ffn=64,
        ),
    )
}


def preset(name: str) -> ModelConfig:
    """Return the configuration of a preset.

    Raises:
        UsageError: no such preset.
    """
    config = PRESETS.get(name)
    if config is None:
        raise UsageError(f"no ReferDINO preset named {name!r}; choose one of {', '.join(PRESETS)}")
    return config
