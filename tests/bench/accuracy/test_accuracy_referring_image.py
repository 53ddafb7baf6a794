"""oIoU and mIoU by hand."""

import numpy as np
import pytest

from refsam_bench.accuracy.referring_image import referring_image_scores
from refsam_trt.errors import UsageError


def bar(length, width=10):
    return np.arange(width)[None] < length


def test_overall_weighs_by_pixels_and_mean_by_expressions():
    masks = [(bar(1), bar(2)), (bar(10), bar(10)), (bar(0, 4), bar(3, 4))]
    scores = referring_image_scores(iter(masks))
    assert scores.oiou == pytest.approx((1 + 10 + 0) / (2 + 10 + 3))
    assert scores.miou == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores.to_json() == {"oiou": scores.oiou, "miou": scores.miou, "num_expressions": 3}


def test_two_empty_masks_agree():
    scores = referring_image_scores([(bar(0), bar(0))])
    assert (scores.oiou, scores.miou) == (1, 1)
    scores = referring_image_scores([(bar(0), bar(0)), (bar(1), bar(2))])
    assert (scores.oiou, scores.miou) == (0.5, 0.75)


def test_nothing_and_other_shapes_are_refused():
    with pytest.raises(UsageError, match="no expression to score; give at least one pair"):
        referring_image_scores([])
    with pytest.raises(UsageError, match=r"shapes \(1, 10\) and \(1, 9\) cannot be compared"):
        referring_image_scores([(bar(1), bar(1, 9))])
