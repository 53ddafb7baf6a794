"""Integer kernels of a written bundle against fake quantisation in PyTorch."""

import pytest
from calibration_model import clips
from exported import exported

from refsam_calibration.quantise.layers import DEFAULT_KINDS, choose_units
from refsam_calibration.quantise.quantised_bundle import write_quantised_bundle
from refsam_calibration.ranges.measure import measure_ranges
from refsam_calibration.ranges.ranges import RangeOptions, write_ranges
from refsam_calibration.ranges.videos import digest_of, open_videos
from refsam_export.source import load_source
from refsam_prove.quantised.agreement import measure_agreement
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import UsageError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    return open_bundle(exported(tmp_path_factory, "tiny", precisions=("fp32", "fp16")))


def test_kernels_compute_what_fake_quantisation_does(base, tmp_path):
    """All default layers, smoothed: closer to it than the float model is."""
    loaded = load_source(base)
    units = choose_units(loaded.model.config, DEFAULT_KINDS)
    layers = tuple(name for unit in units for name in unit.layers)
    videos = open_videos(clips(), tmp_path)
    options = RangeOptions(scheme="int8", layers=layers)
    ranges = measure_ranges(
        loaded, videos, options, digest=digest_of(videos), progress=lambda: None
    )
    write_ranges(tmp_path / "ranges.json", ranges)
    write_quantised_bundle(base, loaded.model, ranges.amax, "int8", {}, tmp_path / "int8")
    found = measure_agreement(tmp_path / "int8", tmp_path / "ranges.json", 1)
    assert found.num_layers == len(layers)
    assert 0.98 < found.mask_iou <= 1.0


def test_a_bundle_that_is_not_quantised_is_refused(base, tmp_path):
    with pytest.raises(UsageError, match="not quantised; give a bundle of refsam-calibrate"):
        measure_agreement(base.folder, tmp_path / "never.json", 1)
