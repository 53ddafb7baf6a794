"""Whether the fp16 nodes around quantised layers hold the calibrated model's values.

SmoothQuant moves magnitudes from activations into weights, so that what an export found of the
model says nothing of the smoothed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from refsam_calibration.ranges.videos import CalibrationVideo
from refsam_export.precision.policy import POLICIES
from refsam_export.precision.range_audit import RangeAudit, RangeFigures
from refsam_export.precision.typed_program import trace
from refsam_export.refsam.graphs import ImageEncoderGraph
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.programs import LIMITS, specs_of
from refsam_export.variants import GraphForm
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.errors import AccuracyGateError
from refsam_trt.image.preprocess import Preprocessor

NUM_SHOWN = 5


def audit_half(
    model: RefSam,
    form: GraphForm,
    videos: Sequence[CalibrationVideo],
    progress: Callable[[], None],
) -> RangeFigures:
    """Return the largest values that fp16 nodes of the image encoder hold on the clips.

    Args:
        model: fp32, smoothed.
        form: of the fp16 graph.
        videos: the clips.
        progress: called after each frame.

    Raises:
        AccuracyGateError: a value beyond a quarter of what fp16 holds (`range_audit`).
    """
    spec = specs_of(model, form.split)[IMAGE_ENCODER]
    module = ImageEncoderGraph(model, form.split, form.attention, form.rewrites).eval()
    audit = RangeAudit({IMAGE_ENCODER: trace(module, spec, LIMITS)}, POLICIES["fp16"])
    for video in videos:
        for frame in video.frames():
            image = Preprocessor(frame.shape[:2], model.config.preprocess)(frame)
            audit.run(IMAGE_ENCODER, (torch.from_numpy(image),))
            progress()
    figures = audit.figures(NUM_SHOWN)
    if not figures.passed:
        worst = figures.largest[0]
        raise AccuracyGateError(
            f"{worst.tensor} ({worst.module or 'graph'}): {figures.max_abs:.3g} on the "
            f"clips, at most {figures.bound:g} may stand in fp16; calibrate with --alpha none, or "
            "look into the weights before it; no bundle was written"
        )
    return figures
