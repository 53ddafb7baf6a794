"""Whether a quantised bundle computes what was judged: its integer kernels and fake quantisation.

On synthetic videos of the evaluation seed; the bundle holds the PyTorch weights.
"""

from __future__ import annotations

from pathlib import Path

import refsam_trt
from refsam_bench.datasets.synthetic import Synthetic, SyntheticRequest
from refsam_bench.synthetic import EVALUATE_SEED
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_calibration.gate.judge import Judgement, compare
from refsam_calibration.quantise.fake_quantisation import fake_quantised
from refsam_calibration.ranges.ranges import fold_ranges, read_ranges
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import UsageError


def measure_agreement(folder: Path, ranges_path: Path, num_videos: int) -> Judgement:
    """Compare the masks of both on the named object of each video.

    Args:
        folder: quantised bundle with its PyTorch weights.
        ranges_path: the ranges that it was made with.
        num_videos: how many, the ranked slices in rotation.

    Returns:
        The bundle's J&F and masks (`j_and_f`, `mask_iou`) against those of fake quantisation
        (`reference_j_and_f`).

    Raises:
        UsageError: the bundle is not quantised.
    """
    bundle = open_bundle(folder)
    quantisation = bundle.manifest.quantisation
    if quantisation is None:
        raise UsageError(f"{folder}: not quantised; give a bundle of refsam-calibrate")
    loaded = load_source(bundle)
    ranges = read_ranges(ranges_path, loaded.model)
    fold_ranges(loaded.model, ranges)
    amax = {name: ranges.amax[name] for name in quantisation.layers}
    data_set = Synthetic(SyntheticRequest(EVALUATE_SEED, num_videos))
    with fake_quantised(loaded.model, amax, ranges.options.scheme):
        expected = data_set.run(ReferenceTracker(loaded), lambda: None)
    with refsam_trt.load(
        folder, precision=quantisation.scheme, backend="ort-cpu", text="resident"
    ) as engine:
        kernels = data_set.run(EngineTracker(engine), lambda: None)
    return compare(expected, kernels, len(amax))
