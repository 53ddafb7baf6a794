"""The steps of `make prove` that export: what they ask for, and when they fail."""

from types import SimpleNamespace

import pytest

from refsam_export.request import ExportRequest
from refsam_prove import exports
from refsam_trt.errors import ParityError


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[ExportRequest]:
    """What is asked for instead of being exported; the figures name the split."""
    asked: list[ExportRequest] = []

    def export(request: ExportRequest, say: object) -> SimpleNamespace:
        asked.append(request)
        return SimpleNamespace(parity=dict.fromkeys(request.precisions, request.split))

    monkeypatch.setattr(exports, "export_bundle", export)
    return asked


def test_parity_is_that_of_random_weights_in_both_splits(requests):
    splits = {"optimised": "optimised", "baseline": "baseline"}
    assert exports.parity("nano", 5) == {"preset": "nano", "splits": splits}
    assert {(r.backbone, r.random_init, r.parity_frames) for r in requests} == {("nano", 0, 5)}


def test_half_parity_is_that_of_both_halves(requests):
    variants = {"fp16": "optimised", "bf16": "optimised"}
    assert exports.half_parity("vitb", 3) == {"preset": "vitb", "variants": variants}
    assert [(r.precisions, r.parity_frames) for r in requests] == [(("fp16", "bf16"), 3)]


def test_half_that_is_out_of_bounds_is_a_failure(monkeypatch):
    def refuse(*_: object) -> None:
        raise ParityError("image_encoder, fp16: too far")

    monkeypatch.setattr(exports, "export_bundle", refuse)
    told = {"preset": "nano", "failures": ["image_encoder, fp16: too far"]}
    assert exports.half_parity("nano", 5) == told
