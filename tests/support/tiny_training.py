"""What several tests of refsam_train share: a tiny recipe and its model."""

from __future__ import annotations

from pathlib import Path

from refsam_export.refsam.checkpoint import LoadedModel
from refsam_train.data.batches import Place, StepBatches
from refsam_train.data.clips import Batch, Collator
from refsam_train.data.synthetic_clips import SyntheticClips
from refsam_train.recipe import Recipe, read_recipe
from refsam_train.run.start import Sources, start_model

TINY = """
schema = 1
name = "tiny"
preset = "tiny"
mode = "full"
seed = 3
steps = 4
average = 0.9
checkpoint_every = 1
evaluate_every = 100

[data]
kind = "synthetic"
clips_per_batch = 2
expressions_per_clip = 2
num_frames = 2
single_frame_share = 0.4
workers = 0

[data.slices]
attribute = 1
track = 1

[optimiser]
learning_rate = 1e-3
matrix_rate = 2e-3
warmup_steps = 1
clip_norm = 1.0

[loss]
resolution = "low-res"
"""


def write_recipe(folder: Path, **changes: str) -> Path:
    """Write the tiny recipe with values of keys replaced, e.g. `steps="7"`, and return its path."""
    text = TINY
    for key, value in changes.items():
        lines = [f"{key} = {value}" if x.startswith(f"{key} = ") else x for x in text.splitlines()]
        assert "\n".join(lines) != text.rstrip("\n"), key
        text = "\n".join(lines)
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read_tiny(folder: Path, **changes: str) -> Recipe:
    return read_recipe(write_recipe(folder, **changes))


def fresh_model(recipe: Recipe) -> LoadedModel:
    return start_model(recipe, Sources())


def source_of(recipe: Recipe) -> SyntheticClips:
    return SyntheticClips(recipe.data)


def batch_of(recipe: Recipe, loaded: LoadedModel, step: int = 0, place: Place = Place()) -> Batch:  # noqa: B008
    collator = Collator(loaded.model.config, loaded.tokenizer)
    return StepBatches(recipe, source_of(recipe), collator, place)[step][0]
