"""oIoU and mIoU of referring image segmentation, where every expression has one image."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refsam_bench.accuracy.metrics import Mask, region_similarity
from refsam_trt.errors import UsageError


@dataclass(frozen=True)
class ReferringImageScores:
    """Overall and mean intersection over union, both in 0..1, over `num_expressions`."""

    oiou: float
    miou: float
    num_expressions: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name, ready for `json.dumps`."""
        return asdict(self)


def referring_image_scores(masks: Iterable[tuple[Mask, Mask]]) -> ReferringImageScores:
    """Score one predicted mask per expression.

    oIoU is the sum of all intersections over the sum of all unions, so large objects weigh more;
    mIoU is the plain mean over the expressions. Two empty masks have an IoU of 1, as in J.

    Args:
        masks: (predicted, true) of every expression, bool [H, W] each; sizes may differ between
            expressions. Read once, in order.

    Raises:
        UsageError: no expression, or two masks of different shapes.
    """
    intersection = union = 0
    ious = []
    for predicted, true in masks:
        ious.append(region_similarity(predicted, true))
        intersection += int(np.count_nonzero(predicted & true))
        union += int(np.count_nonzero(predicted | true))
    if not ious:
        raise UsageError("no expression to score; give at least one pair of masks")
    return ReferringImageScores(
        oiou=intersection / union if union else 1.0,
        miou=float(np.mean(ious)),
        num_expressions=len(ious),
    )
