"""What `refsam-bench report` was asked for, checked as far as options alone tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refsam_bench.datasets.synthetic import RANKED_SLICES
from refsam_bench.synthetic import EVALUATE_SEED, Slice
from refsam_trt.errors import UsageError
from refsam_trt.files.target import refuse_file

DatasetName = Literal["synthetic", "ref-davis", "ref-youtube-vos"]
_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ReportRequest:
    """What to measure and where to write it; None means the default.

    Attributes:
        bundles: folders of bundles, at least one, each once.
        output: the page, `.html`; the same as JSON goes beside it.
        dataset: what accuracy is measured on.
        root: folder of the data set, None for synthetic.
        split: of ref-youtube-vos: which part of it.
        seed, num_videos, slices: of synthetic, as `SyntheticRequest`.
        source: folder of the PyTorch weights of bundles that do not hold them.
        variants: which variants of every bundle; none named means all.
        backend, num_threads: as for `refsam_trt.load`; the threads are PyTorch's too.
        num_speed_frames: frames to time, 0 for none.
        num_worst: how many of the worst frames are shown.
        num_examples: how many ordinary frames are shown.
        forms: results of `make prove` about forms of quantisation, to be shown beside the bundles.
        title: of the page.
        is_overwrite: replace an earlier report.

    Raises:
        UsageError: options that cannot be met, alone or together.
    """

    bundles: tuple[Path, ...]
    output: Path
    dataset: DatasetName = "synthetic"
    root: Path | None = None
    split: str = "valid"
    seed: int = EVALUATE_SEED
    num_videos: int = 200
    slices: tuple[Slice, ...] = RANKED_SLICES
    source: Path | None = None
    variants: tuple[str, ...] = ()
    backend: str = "auto"
    num_threads: int | None = None
    num_speed_frames: int = 20
    num_worst: int = 8
    num_examples: int = 6
    forms: tuple[Path, ...] = ()
    title: str = "RefSAM report"
    is_overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.bundles or len(set(self.bundles)) != len(self.bundles):
            raise UsageError("name at least one bundle, and each once")
        if (self.root is not None) != (self.dataset != "synthetic"):
            raise UsageError("--root is needed for ref-davis and ref-youtube-vos, not for others")
        if self.output.suffix.lower() not in _SUFFIXES:
            raise UsageError(f"{self.output}: expected a name that ends in .html; JSON goes beside")
        if self.num_speed_frames == 1:
            raise UsageError("1 frame has no percentiles: time 2 or more, or 0 for none")

    @property
    def json_output(self) -> Path:
        """Where the JSON goes."""
        return self.output.with_suffix(".json")

    def check_outputs(self) -> None:
        """Refuse, before anything is measured, what could not be written afterwards.

        Raises:
            OutputError: a file is there already, or its folder is not.
        """
        for path in (self.output, self.json_output):
            refuse_file(path, overwrite=self.is_overwrite)
