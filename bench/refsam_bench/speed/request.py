"""What `refsam-bench speed` was asked for, and what both of its sides need for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refsam_trt.bundle.open import Bundle

if TYPE_CHECKING:
    from refsam_bench.trackers.reference_loop import ReferenceLoop

WORDS = ("red disc", "blue ball on the left", "striped square", "the large star at the top")
FRAME_SEED = 21
SCOPE = "frame in host memory to masks in host memory, at the frame's size"


@dataclass(frozen=True)
class SpeedRequest:
    """What `refsam-bench speed` was asked for."""

    bundle: Path
    source: Path | None = None
    variant: str | None = None
    backend: str = "auto"
    num_frames: int = 20
    num_warmup: int = 2
    num_expressions: int = 2
    frame_hw: tuple[int, int] = (480, 854)
    num_threads: int | None = None
    with_reference: bool = True


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was timed, and on what. `scope` says what lies inside the timed region."""

    bundle_id: str
    backend: str
    random_weights: bool
    scope: str = SCOPE
    num_warmup: int
    num_expressions: int
    frame_hw: tuple[int, int]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        return {**asdict(self), "frame_hw": list(self.frame_hw)}


def expressions(count: int) -> list[str]:
    """Return that many different expressions."""
    return [f"{WORDS[i % len(WORDS)]} number {i}" for i in range(count)]


def reference_loop(bundle: Bundle, request: SpeedRequest) -> ReferenceLoop:
    """Return the reference loop with the weights that the bundle was made from."""
    import torch

    from refsam_bench.trackers.reference_loop import ReferenceLoop
    from refsam_export.source import load_source

    if request.num_threads:
        torch.set_num_threads(request.num_threads)
    return ReferenceLoop(load_source(bundle, request.source))
