"""T5 by its published size: random weights through the files and the code of real ones."""

import json
from pathlib import Path

import pytest
import torch

from refsam_export.refsam.checkpoint import canonical_tensors, load_model
from refsam_export.refsam.init import text_folder
from refsam_export.text import presets
from refsam_export.text.encoders import build_text_encoder
from refsam_export.text.presets import T5_PRESETS, random_preset, t5_config, t5_preset_of
from refsam_trt.errors import UsageError

SMALL = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
# Of the encoders on the Hugging Face hub, the embedding among them.
NUM_PARAMETERS = {
    "t5-small": 35_330_816,
    "t5-base": 109_628_544,
    "t5-large": 334_939_648,
    "t5-3b": 1_240_909_824,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make t5-small smaller, and its shards many."""
    monkeypatch.setitem(presets.T5_PRESETS, "t5-small", SMALL)
    monkeypatch.setattr(presets, "_VOCAB_SIZE", 1024)
    monkeypatch.setattr(text_folder, "_SHARD_BYTES", 100_000)


@pytest.mark.parametrize("name", T5_PRESETS)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        encoder = build_text_encoder(t5_config(name))
    assert sum(p.numel() for p in encoder.parameters()) == NUM_PARAMETERS[name]


@pytest.mark.usefixtures("small")
def test_files_hold_what_would_be_drawn_in_memory(tmp_path: Path) -> None:
    through = load_model("tiny", random_init=3, random_text="t5-small", scratch=tmp_path)
    drawn = load_model("tiny", random_init=3, random_text="t5-small")
    ours, theirs = canonical_tensors(through.model), canonical_tensors(drawn.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (through.weights, through.missing) == (drawn.weights, drawn.missing)
    assert through.weights.sources == ()
    assert through.text_config == drawn.text_config == t5_config("t5-small")
    index = json.loads((tmp_path / "t5-small" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2


@pytest.mark.usefixtures("small")
def test_a_shard_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = text_folder.write_tensors

    def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        real(path, tensors, metadata)

    monkeypatch.setattr(text_folder, "write_tensors", write)
    load_model("tiny", random_init=3, random_text="t5-small", scratch=tmp_path)
    largest = 1024 * 64 * 4  # the embedding
    assert max(sizes) <= 100_000 + largest


def test_a_size_needs_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert random_preset(Path("t5-3b"), 0) == "t5-3b"
    assert random_preset(Path("other"), 0) is None
    assert random_preset(None, 0) is None
    with pytest.raises(UsageError, match="t5-3b: no such folder; give the Hugging Face folder"):
        random_preset(Path("t5-3b"), None)
    (tmp_path / "t5-3b").mkdir()  # a folder of that name is that folder
    assert random_preset(Path("t5-3b"), None) is None


def test_a_size_is_known_by_its_configuration() -> None:
    assert [t5_preset_of(t5_config(name)) for name in T5_PRESETS] == list(T5_PRESETS)
    assert t5_preset_of({**t5_config("t5-3b"), "d_ff": 1}) is None
