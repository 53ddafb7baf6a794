"""What an export is asked for, and what it says when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refsam_export.onnx.weight_storage import WeightStorage
from refsam_export.refsam.configuration import Asked
from refsam_export.refsam.rewrites import DEFAULT_REWRITES
from refsam_export.variants import GraphForm
from refsam_trt.contract import refsam
from refsam_trt.errors import UsageError


@dataclass(frozen=True)
class ExportRequest:
    """What `refsam-export` was asked for; see its `--help` for every field.

    `asked`: fields of the configuration, as `configuration.asked_for` returns them.

    Raises:
        UsageError: neither a text encoder nor expressions to know without one, or expressions and
            no text encoder that can embed them here.
    """

    backbone: str
    output: Path
    sam_checkpoint: Path | None = None
    checkpoint: Path | None = None
    parts: tuple[Path, ...] = ()
    text_encoder: Path | None = None
    asked: Asked = field(default_factory=dict)
    random_init: int | None = None
    split: refsam.Split = "optimised"
    attention: str = "augmented"
    rewrites: tuple[str, ...] = DEFAULT_REWRITES
    precisions: tuple[str, ...] = ("fp32",)
    parity_frames: int = 5
    expressions: Path | None = None
    without_text_encoder: bool = False
    include_source: bool = False
    weight_storage: WeightStorage = "fp32"
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if self.without_text_encoder and self.expressions is None:
            raise UsageError(
                "a bundle without text encoder knows only the expressions that it is given; add "
                "--expressions FILE, or leave --without-text-encoder out"
            )
        if self.expressions is not None and set(self.precisions) == {"bf16"}:
            raise UsageError(
                "expressions are embedded by ort-cpu, which cannot run bf16 graphs; add fp32 or "
                "fp16 to --precision, or leave --expressions out"
            )

    @property
    def form(self) -> GraphForm:
        """How the graphs are spelled."""
        return GraphForm(self.split, self.attention, self.rewrites, self.weight_storage)


@dataclass(frozen=True)
class ExportResult:
    """What was written: folder, bundle id, and where the weights are from.

    `parity` holds the figures of each variant, `manifest.parity` of the bundle.
    `num_expressions` is how many the bundle knows without its text encoder.
    """

    bundle: Path
    bundle_id: str
    parity: dict[str, Any]
    loaded: dict[str, Any]
    num_expressions: int
