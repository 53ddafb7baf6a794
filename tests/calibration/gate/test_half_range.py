"""What fp16 nodes would have to hold, seen before a quantised bundle is written."""

from pathlib import Path

import pytest
import torch
from calibration_model import clips, own_model

from refsam_calibration.gate.half_range import audit_half
from refsam_calibration.ranges.videos import open_videos
from refsam_export.variants import GraphForm
from refsam_trt.errors import AccuracyGateError

FORM = GraphForm("optimised", "augmented", (), "fp32")


def test_the_largest_value_of_all_frames_is_found():
    model, frames = own_model().model, []
    videos = open_videos(clips(), Path())
    found = audit_half(model, FORM, videos, lambda: frames.append(1))
    assert len(frames) == sum(len(list(video.frames())) for video in videos)
    assert found.passed
    assert found.num_tensors > 50
    (video, *_) = videos
    one = audit_half(model, FORM, [video], lambda: None)
    assert 0 < one.max_abs <= found.max_abs == found.largest[0].max_abs


def test_a_value_that_fp16_has_no_room_for_is_refused_by_name():
    model = own_model().model
    with torch.no_grad():
        model.image_encoder.blocks[1].mlp.lin1.weight *= 1e6
    with pytest.raises(AccuracyGateError, match=r"blocks\.1\.mlp.*at most 16384 may stand in fp16"):
        audit_half(model, FORM, open_videos(clips(), Path()), lambda: None)
