"""Half precision judged in three ways, on synthetic videos (`refsam-bench precision`).

(a) The range audit: PyTorch in fp32 notes the largest absolute value of every tensor that is fp16.
(b) PyTorch with every half tensor rounded, against fp32: mask IoU and J&F.
(c) The bundle's own graphs in ONNX Runtime on the CPU: a smoke test, as that provider computes many
    fp16 operators in fp32 and hides overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import refsam_trt
from refsam_bench.accuracy import SequenceScores, score_clip, sequence_scores, total_scores
from refsam_bench.datasets.synthetic import PROTOCOL, SyntheticRequest
from refsam_bench.synthetic import SyntheticVideo, generate
from refsam_bench.trackers.reference import EngineTracker, Frames, Masks, Memory
from refsam_export.parity.compare import mask_iou
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.range_audit import RangeAudit
from refsam_export.refsam.programs import GraphChain, rounded_chain, specs_of, trace_graphs
from refsam_export.source import load_source
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.errors import UsageError
from refsam_trt.image.postprocess import Postprocessor, mask_from_logits
from refsam_trt.image.preprocess import PreprocessConfig, Preprocessor
from refsam_trt.session.variants import choose_variant

MIN_MEAN_IOU, MIN_FRAME_IOU = 0.998, 0.99
MAX_DROP_POINTS = 0.1
NUM_WORST = 10


@dataclass(frozen=True)
class PrecisionRequest:
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


class ChainTracker:
    """Three PyTorch graphs as a tracker: each expression alone, unpadded.

    Args:
        chain: the graphs.
        tokenizer: of the `tokenizers` library.
        preprocess: the bundle's.
    """

    def __init__(self, chain: GraphChain, tokenizer: Any, preprocess: PreprocessConfig) -> None:
        self._chain, self._tokenizer, self._preprocess = chain, tokenizer, preprocess

    def track(
        self, frames: Frames, texts: Sequence[str], memory: Memory = "kept"
    ) -> Iterator[Masks]:
        """Yield the masks of every frame; logits that are not finite give an empty mask."""
        encode = self._tokenizer.encode
        embedded = [self._chain.encode_text(encode(" ".join(t.lower().split())).ids) for t in texts]
        tokens: list[torch.Tensor | None] = [None] * len(texts)
        for frame in frames:
            preprocessor = _preprocessor(frame.shape[:2], self._preprocess)
            encoded = self._chain.encode_image(torch.from_numpy(preprocessor(frame)))
            masks: Masks = []
            for index, text in enumerate(embedded):
                out = self._chain.step(encoded, text, tokens[index])
                tokens[index] = out["next_track_token"] if memory == "kept" else None
                masks.append(_mask(out["low_res_logits"][0, 0].numpy(), preprocessor))
            yield masks


def measure_precision(
    request: PrecisionRequest, progress: Callable[[], None], report: Callable[[str], None]
) -> dict[str, Any]:
    """Judge a bundle's half graphs.

    Args:
        request: see there.
        progress: called after each video.
        report: called with one line per stage.

    Returns:
        The figures, `failures` (one sentence per bound that does not hold) and `passed`.

    Raises:
        UsageError: the bundle has no variant of that precision.
    """
    bundle = open_bundle(request.bundle)
    variant = choose_variant(bundle.manifest, None, request.precision)
    report("loading the PyTorch weights and tracing the graphs")
    judge = _Judge(bundle, variant, request)
    report(f"running {request.num_videos} videos")
    for index in range(request.num_videos):
        judge.video(index)
        progress()
    return judge.figures()


class _Judge:
    """Runs videos and gathers what the three ways say."""

    def __init__(self, bundle: Bundle, variant: str, request: PrecisionRequest) -> None:
        self._bundle, self._variant, self._request = bundle, variant, request
        loaded = load_source(bundle, request.source)
        chosen = bundle.manifest.variants[variant]
        split: Any = chosen.split
        policy = POLICIES[request.precision]
        programs = trace_graphs(loaded.model, split, chosen.attention, chosen.rewrites)
        specs = specs_of(loaded.model, split)
        self._audit = RangeAudit(programs, policy)
        audited = {name: _audited(self._audit, name) for name in programs}
        made = functools.partial(
            ChainTracker, tokenizer=loaded.tokenizer, preprocess=bundle.manifest.preprocess
        )
        self._wide = made(GraphChain(audited, specs))
        self._half = made(rounded_chain(programs, specs, policy))
        self._videos = SyntheticRequest(request.seed, request.num_videos)
        self._rows: list[dict[str, Any]] = []
        self._smoke: list[float] = []
        self._scores: dict[str, list[SequenceScores]] = {"fp32": [], request.precision: []}

    def video(self, index: int) -> None:
        """Run one video through both PyTorch forms, and through the bundle if it is one of its."""
        video = generate(self._request.seed, index, slice=self._videos.slice_of(index))
        target = video.expressions[0]
        wide, half = (_tracked(t, video, target.text) for t in (self._wide, self._half))
        for frame, (expected, found) in enumerate(zip(wide, half, strict=True)):
            self._rows.append({"video": index, "frame": frame, "iou": mask_iou(found, expected)})
        name, truth = f"{video.slice}-{index:05d}", video.mask(target.object_id)
        for scores, masks in zip(self._scores.values(), (wide, half), strict=True):
            scores.append(_score(name, masks, truth))
        if index < self._request.num_smoke_videos and self._request.precision != "bf16":
            self._smoke += self._smoke_test(video, target.text, wide)

    def figures(self) -> dict[str, Any]:
        """Return everything, with the bounds that do not hold."""
        request, precision = self._request, self._request.precision
        jf = {name: total_scores(PROTOCOL, scores) for name, scores in self._scores.items()}
        ious = [row["iou"] for row in self._rows]
        rounded = {
            "num_frames": len(ious),
            "mean_mask_iou": float(np.mean(ious)),
            "min_mask_iou": min(ious),
            "worst_frames": sorted(self._rows, key=lambda row: row["iou"])[:NUM_WORST],
            "scores": {name: total.figures_json() for name, total in jf.items()},
            "jf_drop_points": 100 * (jf["fp32"].j_and_f - jf[precision].j_and_f),
        }
        smoke = {"num_frames": len(self._smoke), "min_mask_iou": min(self._smoke, default=None)}
        found = {
            "bundle_id": self._bundle.bundle_id,
            "variant": self._variant,
            "precision": precision,
            "random_weights": self._bundle.manifest.weights.random_init_seed is not None,
            "dataset": "synthetic",
            "seed": request.seed,
            "num_videos": request.num_videos,
            "rounded": rounded,
            "onnxruntime_cpu": smoke,
        }
        if precision != "fp16":  # bf16 has the range of fp32, and its figures are stated, not bound
            return {**found, "bounds": {}, "failures": [], "passed": True}
        found["range_audit"] = self._audit.to_json()
        failures = _failures(found)
        return {**found, "bounds": _BOUNDS, "failures": failures, "passed": not failures}

    def _smoke_test(
        self, video: SyntheticVideo, text: str, expected: list[NDArray[np.bool_]]
    ) -> list[float]:
        with refsam_trt.load(
            self._bundle, backend="ort-cpu", variant=self._variant, verify="deferred"
        ) as engine:
            found = _tracked(EngineTracker(engine), video, text)
        return [mask_iou(a, b) for a, b in zip(found, expected, strict=True)]


_BOUNDS = {
    "min_mean_mask_iou": MIN_MEAN_IOU,
    "min_frame_mask_iou": MIN_FRAME_IOU,
    "max_jf_drop_points": MAX_DROP_POINTS,
}


def _failures(found: dict[str, Any]) -> list[str]:
    audit, rounded, smoke = found["range_audit"], found["rounded"], found["onnxruntime_cpu"]
    failures = []
    if not audit["passed"]:
        worst = audit["largest"][0]
        failures.append(
            f"range: {worst['tensor']} of {worst['module'] or worst['graph']} reaches "
            f"{worst['max_abs']:.5g}, at most {audit['bound']:.0f} allowed"
        )
    for name, low in (("mean_mask_iou", MIN_MEAN_IOU), ("min_mask_iou", MIN_FRAME_IOU)):
        if rounded[name] < low:
            failures.append(f"rounded: {name} {rounded[name]:.6f}, at least {low} expected")
    if rounded["jf_drop_points"] > MAX_DROP_POINTS:
        failures.append(
            f"rounded: J&F drops by {rounded['jf_drop_points']:.3f} points, at most "
            f"{MAX_DROP_POINTS} allowed"
        )
    if smoke["num_frames"] and smoke["min_mask_iou"] < MIN_FRAME_IOU:
        failures.append(
            f"ONNX Runtime: min_mask_iou {smoke['min_mask_iou']:.6f}, at least {MIN_FRAME_IOU} "
            "expected"
        )
    return failures


def _audited(audit: RangeAudit, graph: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    return lambda *inputs: audit.run(graph, inputs)


@functools.lru_cache(maxsize=8)
def _preprocessor(hw: tuple[int, int], config: PreprocessConfig) -> Preprocessor:
    return Preprocessor(hw, config)


@functools.lru_cache(maxsize=8)
def _postprocessor(preprocessor: Preprocessor, low_res_hw: tuple[int, int]) -> Postprocessor:
    return Postprocessor(preprocessor.geometry, low_res_hw)


def _mask(logits: NDArray[np.float32], preprocessor: Preprocessor) -> NDArray[np.bool_]:
    if not np.isfinite(logits).all():
        return np.zeros(preprocessor.geometry.original_hw, np.bool_)
    postprocessor = _postprocessor(preprocessor, logits.shape)
    return mask_from_logits(postprocessor.logits(logits))


def _tracked(tracker: Any, video: SyntheticVideo, text: str) -> list[NDArray[np.bool_]]:
    return [masks[0] for masks in tracker.track(iter(video.frames), [text], "kept")]


def _score(name: str, masks: list[NDArray[np.bool_]], truth: NDArray[Any]) -> SequenceScores:
    clip = (
        (f"{frame:05d}", mask.astype(np.uint8), true.astype(np.uint8))
        for frame, (mask, true) in enumerate(zip(masks, truth, strict=True))
    )
    return sequence_scores(name, score_clip(name, clip, PROTOCOL, num_objects=1, num_predictions=1))
