"""The program that `make prove` measures quantised encoders with, on the smallest model."""

from dataclasses import replace

import pytest
from reference_models import SHALLOW, loaded_shallow
from rtx_probe import needs_rtx

from refsam_calibration.quantise.layers import quantisable_layers
from refsam_export.refsam.checkpoint import LoadedModel
from refsam_export.refsam.model.config import preset
from refsam_prove.quantised import trial
from refsam_prove.quantised.trial import FORMS, adapter_speed, encoder_speed, rtx_plan

LAYERS = quantisable_layers(replace(preset("tiny"), **SHALLOW))
NUM_LAYERS = len(LAYERS)


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(preset: str, *, random_init: int) -> LoadedModel:
        assert (preset, random_init) == ("tiny", trial.SEED)
        return loaded_shallow()

    monkeypatch.setattr(trial, "load_model", load)


def test_all_forms_are_timed_and_the_best_of_each_precision_is_judged():
    found = encoder_speed("tiny", num_rounds=2, num_threads=1)
    assert set(found["heats"]) == {f"{p}-{form}" for p in ("fp32", "int8") for form in FORMS}
    assert all(row["num_samples"] == 2 for row in found["forms"].values())
    assert found["num_layers"] == NUM_LAYERS
    gate = found["gate"]
    for side, precision in (("quantised", "int8"), ("next_best", "fp32")):
        medians = {n: r["p50_ms"] for n, r in found["heats"].items() if n.startswith(precision)}
        assert gate[side] == min(medians, key=lambda name: medians[name])
    assert set(found["forms"]) == {gate["quantised"], gate["next_best"]}
    assert gate["is_worth_shipping"] == (gate["speedup"]["p50"] >= 1.15)


def test_adapters_are_timed_in_int8_and_in_fp32():
    found = adapter_speed("tiny", num_rounds=2, num_threads=1)
    adapters = [layer for layer in LAYERS.values() if layer.kind == "adapter"]
    assert adapters
    assert found["num_layers"] == {
        "int8 adapters": NUM_LAYERS,
        "fp32 adapters": NUM_LAYERS - len(adapters),
    }
    assert all(row["num_samples"] == 2 for row in found["forms"].values())
    assert set(found["speedup"]) == {"p10", "p50", "p90"}


@needs_rtx
def test_a_plan_quantises_every_layer():
    found = rtx_plan("tiny", "int8-fp16")
    assert found["num_layers"] == NUM_LAYERS
    assert found["graph"]["layers"]["QUANTIZE"] == {"INT8": NUM_LAYERS}
