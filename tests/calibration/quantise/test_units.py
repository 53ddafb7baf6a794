"""Units: which layers go together, and what names stand for."""

import pytest
from calibration_model import BLOCKS

from refsam_calibration.quantise.layers import DEFAULT_KINDS, choose_units, quantisable_layers
from refsam_export.refsam.model.config import preset
from refsam_trt.errors import UsageError

NANO = preset("nano")


def test_the_default_is_everything_but_adapters_in_running_order():
    units = choose_units(NANO, DEFAULT_KINDS)
    assert len(units) == 4 * NANO.depth
    assert [unit.name for unit in units[:5]] == [
        "blocks.0.qkv",
        "blocks.0.proj",
        "blocks.0.lin1",
        "blocks.0.lin2",
        "blocks.1.qkv",
    ]
    assert units[0].layers == (f"{BLOCKS}.0.attn.qkv",)
    assert 0.9 < sum(unit.share for unit in units) < 1.0


def test_all_kinds_are_all_layers():
    units = choose_units(NANO, (*DEFAULT_KINDS, "adapter"))
    assert sorted(n for unit in units for n in unit.layers) == sorted(quantisable_layers(NANO))
    assert sum(unit.share for unit in units) == pytest.approx(1.0)
    (adapters,) = [unit for unit in units if unit.name == "blocks.5.adapter"]
    assert len(adapters.layers) == 4


def test_blocks_and_layers_can_be_named():
    units = choose_units(NANO, ("blocks.3.lin2", f"{BLOCKS}.5.Space_Adapter.D_fc1", "blocks.3.qkv"))
    assert [unit.name for unit in units] == ["blocks.3.qkv", "blocks.3.lin2", "blocks.5.adapter"]
    assert units[-1].layers == (f"{BLOCKS}.5.Space_Adapter.D_fc1",)


def test_names_of_no_layer_are_refused():
    with pytest.raises(UsageError, match=r"--layers neck: no such layers; give kinds \(qkv, proj,"):
        choose_units(NANO, ("qkv", "neck"))
    with pytest.raises(UsageError, match="--layers: nano has no such layer; name some of qkv,"):
        choose_units(NANO, ())
