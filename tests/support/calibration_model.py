"""What several tests of refsam_calibration share: a tiny model of their own, and its layers."""

from __future__ import annotations

import torch
from torch import Tensor

from refsam_calibration.clips import Clips, SyntheticClips
from refsam_calibration.ranges.ranges import RangeOptions
from refsam_export.refsam.checkpoint import LoadedModel, load_model

BLOCKS = "image_encoder.blocks"
LAYERS = tuple(
    f"{BLOCKS}.{block}.{layer}"
    for block in (0, 5)
    for layer in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
)
ADAPTERS = (f"{BLOCKS}.5.Space_Adapter.D_fc2", f"{BLOCKS}.5.MLP_Adapter.D_fc1")


def own_model(seed: int = 0) -> LoadedModel:
    """Return a model that the test may change."""
    return load_model("tiny", random_init=seed)


def images(seed: int = 0, num: int = 1) -> Tensor:
    return torch.randn(num, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


def options(**changes: object) -> RangeOptions:
    return RangeOptions(**{"scheme": "int8", "layers": LAYERS, **changes})


def clips(num_videos: int = 2, frames_per_video: int = 2) -> Clips:
    source = SyntheticClips(num_videos=num_videos, frames_per_video=frames_per_video)
    return Clips(schema=1, calibrate=(source,))
