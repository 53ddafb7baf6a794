"""Half precision judged in three ways, on synthetic videos (`refsam-bench precision`).

(a) The range audit: PyTorch in fp32 notes the largest absolute value of every tensor that is fp16.
(b) PyTorch with every half tensor rounded, against fp32: mask IoU and J&F.
(c) The bundle's own graphs in ONNX Runtime on the CPU: a smoke test, as that provider computes many
    fp16 operators in fp32 and hides overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refsam_trt
from refsam_bench.accuracy.scores import SequenceScores, total_scores
from refsam_bench.datasets.synthetic import PROTOCOL, SyntheticRequest, score_masks
from refsam_bench.synthetic import SyntheticVideo
from refsam_export.parity.compare import mask_iou
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.range_audit import RangeAudit, RangeFigures
from refsam_export.refsam.programs import (
    ReferenceGraphs,
    rounded_graphs,
    specs_of,
    trace_graphs,
)
from refsam_export.refsam.reference import ReferenceModel
from refsam_export.source import load_source
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.errors import UsageError
from refsam_trt.result.result import Result
from refsam_trt.session.variants import choose_variant

MIN_MEAN_IOU, MIN_FRAME_IOU = 0.998, 0.99
MAX_DROP_POINTS = 0.1
NUM_WORST = 10

Masks = list[NDArray[np.bool_]]


@dataclass(frozen=True)
class HalfRequest:
    """What to judge, and on how many videos.

    Attributes:
        bundle: the bundle's folder.
        precision: `fp16` or `bf16`; the bounds are those of fp16, bf16 has none.
        source: folder of the PyTorch weights; None takes those inside the bundle.
        num_videos: evaluation videos, indices from 0.
        num_smoke_videos: how many of them ONNX Runtime runs too, if it can.
        seed: of the videos.
    """

    bundle: Path
    precision: str = "fp16"
    source: Path | None = None
    num_videos: int = 200
    num_smoke_videos: int = 10
    seed: int = 900_000

    def __post_init__(self) -> None:
        if self.precision not in POLICIES:
            raise UsageError(
                f"precision {self.precision!r}: nothing to judge; choose {' or '.join(POLICIES)}"
            )


@dataclass(frozen=True)
class FrameAgreement:
    """Mask IoU of one frame in half precision with the same frame in fp32."""

    video: int
    frame: int
    iou: float


@dataclass(frozen=True)
class RoundedFigures:
    """PyTorch with every half tensor rounded, against fp32; `scores` are J&F of both by name."""

    num_frames: int
    mean_mask_iou: float
    min_mask_iou: float
    worst_frames: tuple[FrameAgreement, ...]
    scores: dict[str, dict[str, float]]
    jf_drop_points: float


@dataclass(frozen=True)
class SmokeFigures:
    """The bundle's graphs in ONNX Runtime against PyTorch in fp32; no IoU without frames."""

    num_frames: int
    min_mask_iou: float | None


@dataclass(frozen=True)
class HalfFigures:
    """What the three ways say; bf16 has neither a range audit nor bounds."""

    bundle_id: str
    variant: str
    precision: str
    random_weights: bool
    dataset: str
    seed: int
    num_videos: int
    rounded: RoundedFigures
    onnxruntime_cpu: SmokeFigures
    range_audit: RangeFigures | None

    @property
    def failures(self) -> list[str]:
        """One sentence per bound that does not hold."""
        return (
            _failures(self.range_audit, self.rounded, self.onnxruntime_cpu)
            if self.range_audit
            else []
        )

    @property
    def passed(self) -> bool:
        """Whether all bounds hold."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        values = asdict(self)
        if self.range_audit is None:
            del values["range_audit"]
        bounds = _BOUNDS if self.range_audit else {}
        return {**values, "bounds": bounds, "failures": self.failures, "passed": self.passed}


def measure_half(
    request: HalfRequest, progress: Callable[[], None], report: Callable[[str], None]
) -> HalfFigures:
    """Judge a bundle's half graphs.

    Args:
        request: see there.
        progress: called after each video.
        report: called with one line per stage.

    Raises:
        UsageError: the bundle has no variant of that precision.
    """
    bundle = open_bundle(request.bundle)
    variant = choose_variant(bundle.manifest, None, request.precision)
    report("loading the PyTorch weights and tracing the graphs")
    comparison = HalfComparison(bundle, variant, request)
    report(f"running {request.num_videos} videos")
    for index in range(request.num_videos):
        comparison.run(index)
        progress()
    return comparison.figures()


class HalfComparison:
    """Runs videos in fp32 and in half, and gathers what the three ways say.

    Attributes:
        wide: the graphs in fp32, audited.
        half: the graphs with every half tensor rounded.
    """

    def __init__(self, bundle: Bundle, variant: str, request: HalfRequest) -> None:
        self._bundle, self._variant, self._request = bundle, variant, request
        loaded = load_source(bundle, request.source)
        entry = bundle.manifest.variants[variant]
        split: Any = entry.split
        policy = POLICIES[request.precision]
        programs = trace_graphs(loaded.model, split, entry.attention, entry.rewrites)
        specs = specs_of(loaded.model, split)
        self._audit = RangeAudit(programs, policy)
        audited = {name: _audited(self._audit, name) for name in programs}
        self.wide = ReferenceModel.of(loaded, ReferenceGraphs(audited, specs))
        self.half = ReferenceModel.of(loaded, rounded_graphs(programs, specs, policy))
        self._videos = SyntheticRequest(request.seed, request.num_videos)
        self._frames: list[FrameAgreement] = []
        self._smoke: list[float] = []
        self._scores: dict[str, list[SequenceScores]] = {"fp32": [], request.precision: []}

    def run(self, index: int) -> None:
        """Run one video through both PyTorch forms, and through the bundle if it is one of its."""
        video = self._videos.video(index)
        text = video.expressions[0].text
        wide, half = (_masks(model, video, text) for model in (self.wide, self.half))
        ious = map(mask_iou, half, wide)
        self._frames += [FrameAgreement(index, frame, iou) for frame, iou in enumerate(ious)]
        for scores, masks in zip(self._scores.values(), (wide, half), strict=True):
            scores.append(score_masks(video, ([mask] for mask in masks)))
        if index < self._request.num_smoke_videos and self._request.precision != "bf16":
            self._smoke += self._smoke_test(video, text, wide)

    def figures(self) -> HalfFigures:
        """Return what was gathered."""
        request, precision = self._request, self._request.precision
        jf = {name: total_scores(PROTOCOL, scores) for name, scores in self._scores.items()}
        worst = sorted(self._frames, key=lambda frame: frame.iou)
        rounded = RoundedFigures(
            num_frames=len(worst),
            mean_mask_iou=float(np.mean([frame.iou for frame in self._frames])),
            min_mask_iou=worst[0].iou,
            worst_frames=tuple(worst[:NUM_WORST]),
            scores={name: total.figures_json() for name, total in jf.items()},
            jf_drop_points=100 * (jf["fp32"].j_and_f - jf[precision].j_and_f),
        )
        return HalfFigures(
            bundle_id=self._bundle.bundle_id,
            variant=self._variant,
            precision=precision,
            random_weights=self._bundle.manifest.weights.random_init_seed is not None,
            dataset="synthetic",
            seed=request.seed,
            num_videos=request.num_videos,
            rounded=rounded,
            onnxruntime_cpu=SmokeFigures(len(self._smoke), min(self._smoke, default=None)),
            # bf16 has the range of fp32, and its figures are stated, not bound.
            range_audit=self._audit.figures() if precision == "fp16" else None,
        )

    def _smoke_test(self, video: SyntheticVideo, text: str, expected: Masks) -> list[float]:
        with refsam_trt.load(
            self._bundle, backend="ort-cpu", variant=self._variant, verify="deferred"
        ) as engine:
            return list(map(mask_iou, _masks(engine, video, text), expected))


_BOUNDS = {
    "min_mean_mask_iou": MIN_MEAN_IOU,
    "min_frame_mask_iou": MIN_FRAME_IOU,
    "max_jf_drop_points": MAX_DROP_POINTS,
}


def _failures(audit: RangeFigures, rounded: RoundedFigures, smoke: SmokeFigures) -> list[str]:
    failures = []
    if not audit.passed:
        worst = audit.largest[0]
        failures.append(
            f"range: {worst.tensor} of {worst.module or worst.graph} reaches "
            f"{worst.max_abs:.5g}, at most {audit.bound:.0f} allowed"
        )
    ious = (rounded.mean_mask_iou, MIN_MEAN_IOU), (rounded.min_mask_iou, MIN_FRAME_IOU)
    for name, (iou, low) in zip(("mean_mask_iou", "min_mask_iou"), ious, strict=True):
        if iou < low:
            failures.append(f"rounded: {name} {iou:.6f}, at least {low} expected")
    if rounded.jf_drop_points > MAX_DROP_POINTS:
        failures.append(
            f"rounded: J&F drops by {rounded.jf_drop_points:.3f} points, at most "
            f"{MAX_DROP_POINTS} allowed"
        )
    if smoke.min_mask_iou is not None and smoke.min_mask_iou < MIN_FRAME_IOU:
        failures.append(
            f"ONNX Runtime: min_mask_iou {smoke.min_mask_iou:.6f}, at least {MIN_FRAME_IOU} "
            "expected"
        )
    return failures


def _audited(audit: RangeAudit, graph: str) -> Callable[..., tuple[Any, ...]]:
    return lambda *inputs: audit.run(graph, inputs)


def _masks(model: refsam_trt.Engine | ReferenceModel, video: SyntheticVideo, text: str) -> Masks:
    with model.open_video() as session:
        session.add_expression(text)
        return [_mask(result) for frame in video.frames for result in session.step(frame)]


def _mask(result: Result) -> NDArray[np.bool_]:
    """Return the mask; logits that are not finite give an empty one."""
    if np.isfinite(result.low_res_logits).all():
        return result.mask
    return np.zeros(result.frame_hw, np.bool_)
