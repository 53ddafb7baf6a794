import pytest

from refsam_prove.plans import BOUNDS, Bound, failures, official_failures
from refsam_prove.steps import STEPS
from refsam_trt.contract.plan_manifest import GraphReport

BOUND = Bound(num_fused_attention=12, activation_bytes=150)


def report(fused: int | None, attention: int, activation: int | None, *warnings: str):
    return GraphReport(
        num_layers=1,
        layers={},
        num_attention=attention,
        num_fused_attention=fused,
        num_engine_layers=None,
        activation_bytes=activation,
        weights_bytes=None,
        warnings=warnings,
        precision_warnings=warnings,
    )


def test_the_large_presets_have_steps():
    assert {"plans-vitb", "plans-vith"} <= STEPS.keys()
    assert BOUNDS["vitb"] == Bound(12, 150_000_000)
    assert BOUNDS["vith"] == Bound(32, 195_000_000)


def test_sam_s_own_attention_is_expected_not_to_be_fused():
    assert official_failures({"image_encoder": report(0, 12, 1)}) == []
    (line,) = official_failures({"image_encoder": report(1, 12, 1)})
    assert line == "image_encoder: SAM's own attention fused in 1 blocks, 0 expected"
    assert official_failures({"image_encoder": report(None, 12, 1)})


def test_all_is_well():
    assert failures({"image_encoder": report(12, 12, 150)}, BOUND) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            report(11, 12, 1),
            "image_encoder: fused attention in 11 of 12 blocks, all of 12 expected",
        ),
        (report(None, 12, 1), "image_encoder: fused attention in None of 12 blocks, all of 12 exp"),
        (
            report(12, 13, 1),
            "image_encoder: fused attention in 12 of 13 blocks, all of 12 expected",
        ),
        (report(12, 12, 151), "image_encoder: 151 bytes of activations, at most 150 expected"),
        (report(12, 12, None), "image_encoder: None bytes of activations, at most 150 expected"),
        (report(12, 12, 1, "LayerNorm in FP16"), "image_encoder: LayerNorm in FP16"),
    ],
)
def test_whatever_does_not_hold_is_named(found: GraphReport, line: str):
    (only,) = failures({"image_encoder": found}, BOUND)
    assert only.startswith(line)
