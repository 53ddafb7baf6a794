"""ReferDINO in float64 numpy, written from sections 2 to 7 of referdino-model alone: slow, obvious.

One frame, one expression, no padding, no batches. Weights are those of an official state
dictionary, LoRA folded. It shares no code with the reference.
"""

from referdino_twin.backbones import bert, swin
from referdino_twin.clip import TwinClip, run_clip
from referdino_twin.grounding import TwinGrounding, ground
from referdino_twin.host import positions_and_mask, track
from referdino_twin.masks import mask_logits, pixel_decoder

__all__ = [
    "TwinClip",
    "TwinGrounding",
    "bert",
    "ground",
    "mask_logits",
    "pixel_decoder",
    "positions_and_mask",
    "run_clip",
    "swin",
    "track",
]
