"""What the sessions of an engine share."""

from __future__ import annotations

from dataclasses import dataclass

from refsam_trt.families.base import Family
from refsam_trt.image.preprocess import PreprocessConfig
from refsam_trt.session.frame_input import Adopt


@dataclass(frozen=True)
class SessionModel:
    """What a session runs: the engine's, shared by all its sessions."""

    family: Family
    preprocess: PreprocessConfig
    bundle_id: str
    variant: str
    precision: str
    adopt: Adopt
