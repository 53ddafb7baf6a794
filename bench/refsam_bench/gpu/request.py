"""What `refsam-bench gpu` was asked for, and the jobs that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from refsam_trt.errors import UsageError

BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda")
PRECISIONS = ("fp32", "fp16", "bf16")
LATE_FRAMES = 3
"""Fewest frames of the parity clip: an expression joins at the third."""

JobKind = Literal["bundle", "pytorch", "plans", "memory", "checks", "speed"]


@dataclass(frozen=True)
class GpuRequest:
    """What to measure on the first GPU.

    Attributes:
        output: the JSON file.
        bundles: folders to measure.
        presets: of which bundles with random weights are made.
        precisions: variants to measure; fp32 graphs are made in any case, to compare with.
        backends: to measure; those that do not open are listed with their reasons.
        source: folder of the PyTorch weights, for bundles that do not hold them.
        num_frames: frames to time.
        num_warmup: frames before them.
        num_expressions: followed at once while timing.
        frame_hw: height and width of the frames in pixels.
        num_videos: synthetic videos for J&F, 0 for none.
        parity_frames: frames of the parity clip.
        seed: of random weights.
        limit_s: seconds after which nothing more is begun and what runs is ended; None for none.
        commit: of the source; None asks git.

    Raises:
        UsageError: nothing to measure, or unknown names.
    """

    output: Path
    bundles: tuple[Path, ...] = ()
    presets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    backends: tuple[str, ...] = BACKENDS
    source: Path | None = None
    num_frames: int = 50
    num_warmup: int = 5
    num_expressions: int = 2
    frame_hw: tuple[int, int] = (480, 854)
    num_videos: int = 10
    parity_frames: int = LATE_FRAMES
    seed: int = 0
    limit_s: float | None = None
    commit: str | None = None

    def __post_init__(self) -> None:
        if not self.bundles and not self.presets:
            raise UsageError("nothing to measure; give a bundle, or --preset (vitb, vith, nano)")
        for option, names, known in (
            ("--precision", self.precisions, PRECISIONS),
            ("--backend", self.backends, BACKENDS),
        ):
            if unknown := [name for name in names if name not in known]:
                raise UsageError(
                    f"{option} {', '.join(unknown)}: choose among {', '.join(known)}, separated by "
                    "commas"
                )


@dataclass(frozen=True)
class Subject:
    """A model to measure: a bundle that is there, or one to be made of a preset.

    `work` is a folder for its reference and plans.
    """

    name: str
    bundle: Path
    work: Path
    preset: str | None = None

    def reference(self, split: str) -> Path:
        """Return the folder of what PyTorch computes on the CPU, for the graphs of a split."""
        return self.work / "reference" / split


@dataclass(frozen=True)
class Case:
    """A backend with a precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"{self.backend}-{self.precision}"

    @property
    def has_plans(self) -> bool:
        """Whether the backend runs plans instead of graphs."""
        return self.backend != "ort-cuda"

    def plans(self, subject: Subject) -> Path | None:
        """Return where the plans of a subject lie; None where the backend has none."""
        return subject.work / f"plans-{self.name}" if self.has_plans else None


@dataclass(frozen=True)
class Job:
    """What one process does; `case` is None where it is about all `cases` or about none."""

    kind: JobKind
    request: GpuRequest
    subject: Subject
    case: Case | None = None
    cases: tuple[Case, ...] = ()

    @property
    def only_case(self) -> Case:
        """The case of a job that is about one."""
        assert self.case is not None
        return self.case

    def to_json(self) -> bytes:
        """Return the bytes from which `from_json` makes an equal job."""
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def from_json(cls, raw: bytes | str) -> Job:
        """Make a job from `to_json`'s bytes."""
        return msgspec.json.decode(raw, type=cls, dec_hook=lambda kind, value: kind(value))
