"""Ranges: measured in one stream, kept with what they follow from, refused for other models."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from calibration_model import ADAPTERS, BLOCKS, LAYERS, clips, options, own_model

from refsam_bench.trackers.reference import ReferenceTracker
from refsam_calibration.ranges.measure import measure_ranges, num_passes
from refsam_calibration.ranges.ranges import (
    Ranges,
    fold_ranges,
    read_ranges,
    sha256_of,
    write_ranges,
)
from refsam_calibration.ranges.videos import digest_of, open_videos
from refsam_trt.errors import CalibrationError, UsageError


def measured(loaded=None, **changes) -> tuple[Ranges, list[int]]:
    videos, ticks = open_videos(clips(), Path()), []
    found = measure_ranges(
        loaded or own_model(),
        videos,
        options(**changes),
        digest=digest_of(videos),
        progress=lambda: ticks.append(1),
    )
    return found, ticks


def inputs_of(name: str) -> torch.Tensor:
    """All inputs of a layer, kept the simple way."""
    loaded, kept = own_model(), []
    layer = loaded.model.get_submodule(name)
    layer.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0].flatten()))
    for video in open_videos(clips(), Path()):
        list(ReferenceTracker(loaded).logits(video.frames(), video.texts))
    return torch.cat(kept)


def test_minmax_ranges_are_the_largest_inputs():
    found, ticks = measured(method="minmax", alpha="none")
    assert list(found.layers) == list(LAYERS)
    for name in (LAYERS[0], LAYERS[-1]):
        assert found.amax[name] == float(inputs_of(name).abs().max())
    assert found.smoothing == {}
    assert len(ticks) == found.num_frames == 4


def test_clipping_methods_stay_below_the_largest():
    found, _ = measured(method="percentile", percentile=99.0, alpha="none")
    for name, layer in found.layers.items():
        assert 0 < layer.amax <= layer.largest, name
    values = inputs_of(LAYERS[0]).abs()
    share = (values <= found.amax[LAYERS[0]]).float().mean()
    assert 0.99 <= share < 0.9999


def test_smoothing_is_searched_and_folded_and_changes_no_bit():
    loaded = own_model()
    untouched = own_model().model
    found, ticks = measured(loaded, layers=(*LAYERS, *ADAPTERS))
    assert len(ticks) == num_passes(options()) * found.num_frames == 8
    assert set(found.smoothing) == {f"{BLOCKS}.{b}.{n}" for b in (0, 5) for n in ("norm1", "norm2")}
    smoothed = [s for s in found.smoothing.values() if s.alpha is not None]
    assert smoothed
    assert all(s.error < s.unsmoothed_error for s in smoothed)
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = untouched.encode_image(image)[0]
        assert torch.equal(loaded.model.encode_image(image)[0], expected)
        fold_ranges(untouched, found)
    assert (
        sha256_of(untouched.image_encoder)
        == sha256_of(loaded.model.image_encoder)
        != found.model_sha256
    )


def test_a_given_alpha_is_used_where_it_helps():
    found, _ = measured(alpha=0.5)
    assert {s.alpha for s in found.smoothing.values()} <= {0.5, None}


def test_nan_weights_are_refused_by_the_layer_that_sees_them_first():
    loaded = own_model()
    loaded.model.get_submodule(f"{BLOCKS}.0.attn.proj").weight.data[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=rf"^{BLOCKS}\.0\.mlp\.lin1: .* NaN or infinite"):
        measured(loaded, alpha="none")


def test_a_layer_outside_of_what_runs_is_refused_by_name():
    loaded = own_model()
    loaded.model.lonely = torch.nn.Linear(2, 2)
    with pytest.raises(CalibrationError, match=r"^lonely: never called while the clips ran"):
        measured(loaded, layers=(LAYERS[0], "lonely"), alpha="none")


def test_ranges_are_kept_and_read_for_the_same_model(tmp_path):
    found, _ = measured()
    write_ranges(tmp_path / "ranges.json", found)
    assert read_ranges(tmp_path / "ranges.json", own_model().model) == found


def test_ranges_of_another_model_are_refused(tmp_path):
    found, _ = measured(alpha="none")
    path = tmp_path / "ranges.json"
    write_ranges(path, found)
    told = rf"ranges\.json: ranges of another model \(image encoder {found.model_sha256[:16]}, this"
    with pytest.raises(CalibrationError, match=told):
        read_ranges(path, own_model(seed=1).model)
    only_text = own_model()
    only_text.model.text_encoder.shared.weight.data += 1.0
    read_ranges(path, only_text.model)


def test_files_that_are_no_ranges_are_refused(tmp_path):
    path = tmp_path / "ranges.json"
    with pytest.raises(CalibrationError, match="no readable file of ranges"):
        read_ranges(path, own_model().model)
    found, _ = measured(alpha="none")
    content = msgspec.to_builtins(found)
    changes: list[dict[str, Any]] = [
        {"more": 1},
        {"layers": {}},
        {"schema": 9},
        {"options": {**content["options"], "method": "minmax"}},
    ]
    encoded = [msgspec.json.encode({**content, **change}) for change in changes]
    for broken in (b"{", b'"\xff"', *encoded):
        path.write_bytes(broken)
        with pytest.raises(CalibrationError, match="not ranges of refsam-calibrate"):
            read_ranges(path, own_model().model)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheme": "fp8", "method": "entropy"}, "entropy counts int8's 128 equal steps"),
        ({"percentile": 0.0}, r"percentile 0\.0: expected above 0 to 100"),
        ({"alpha": 1.5}, r"alpha 1\.5: expected 0 to 1, auto or none"),
        ({"layers": ()}, "no layer to quantise; name kinds or layers with --layers"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, told):
    with pytest.raises(UsageError, match=told):
        options(**changes)


def test_keys_tell_data_options_and_model_apart():
    found, _ = measured(alpha="none", method="minmax")
    keys = {
        found.key,
        msgspec.structs.replace(found, model_sha256="0").key,
        msgspec.structs.replace(found, data_sha256="0").key,
        msgspec.structs.replace(found, options=options()).key,
    }
    assert len(keys) == 4
