"""What an export is said to need, against what the committed records measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from refsam_export.needs.estimate import GIB, Needs, Sizes, estimate
from refsam_export.refsam.model.config import preset
from refsam_export.text.encoders import small_text_source
from refsam_export.text.presets import t5_config

RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results"
RECORDS = sorted(RESULTS.glob("export-*.json"))


def needs(backbone: str, text: str | None, **options: Any) -> Needs:
    config = preset(backbone)
    text_config = t5_config(text) if text else small_text_source(config.preset).config
    sizes = Sizes.of(config, text_config)
    return estimate(sizes, is_random=True, has_random_text=text is not None, **options)


def test_parameters_are_those_of_the_published_models() -> None:
    """SAM's encoders have 89.7 and 637 million, T5's 1.24 billion of 2.85 are the encoder."""
    base = Sizes.of(preset("vitb"), t5_config("t5-small"))
    huge = Sizes.of(preset("vith"), t5_config("t5-3b"))
    assert 90e6 < base.image_params < 115e6
    assert 640e6 < huge.image_params < 720e6
    assert 35e6 < base.text_params < 36e6
    assert 1.23e9 < huge.text_params < 1.25e9
    # SAM states 2976 G multiply-adds of ViT-H, and 487 of ViT-B.
    assert huge.frame_flops == pytest.approx(2 * 2976e9, rel=0.1)
    assert base.frame_flops == pytest.approx(2 * 487e9, rel=0.1)


def test_more_of_anything_takes_more() -> None:
    base = needs("vitb", "t5-small")
    assert needs("vitb", "t5-3b").memory_bytes > base.memory_bytes
    assert needs("vith", "t5-small").memory_bytes > base.memory_bytes
    assert needs("vitb", "t5-small", attention="bias").memory_bytes > base.memory_bytes
    halves = needs("vitb", "t5-small", precisions=("fp32", "fp16"))
    assert halves.disk_bytes > base.disk_bytes
    assert needs("vitb", "t5-small", include_source=True).disk_bytes > base.disk_bytes


def test_frames_take_time_and_no_memory() -> None:
    few, many = (needs("vitb", "t5-small", num_frames=frames) for frames in (3, 300))
    assert many.memory_bytes == few.memory_bytes
    assert many.seconds > 10 * few.seconds


def test_what_is_promised() -> None:
    """Issue 12: at most 12 GiB for the largest, 4 GiB for the smallest full size."""
    assert needs("vith", "t5-3b").memory_bytes <= 12 * GIB
    for attention in ("augmented", "bias", "reference"):
        assert needs("vitb", "t5-small", attention=attention).memory_bytes <= 4 * GIB


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_the_estimate_is_what_was_measured(path: Path) -> None:
    """Memory within a quarter; processor time within a factor of two, which loads change less."""
    record = json.loads(path.read_text())
    settings = record["settings"]
    options = {key: settings[key] for key in ("attention", "num_frames")}
    found = needs(settings["backbone"], settings["text_encoder"], num_cores=1, **options)
    assert found.memory_bytes == pytest.approx(record["peak_resident_bytes"], rel=0.25)
    assert 0.5 < found.seconds / record["cpu_s"] < 2.0
