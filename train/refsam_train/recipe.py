"""Training recipes: TOML files read into frozen structures, unknown keys refused."""

from __future__ import annotations

import hashlib
import operator
from pathlib import Path
from typing import Any, Literal

import msgspec

from refsam_export.refsam.model.config import preset
from refsam_trt.errors import UsageError

SCHEMA = 1
RECIPE_NAME = "recipe.toml"
"""The recipe as it was, in the folder of a run."""
DatasetKind = Literal["synthetic", "ref-youtube-vos", "ref-davis", "refcoco"]
Group = Literal["resizer", "hda", "decoder", "adapters", "itm"]
GROUPS: tuple[Group, ...] = ("resizer", "hda", "decoder", "adapters", "itm")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a batch holds.

    Attributes:
        kind: which data set.
        clips_per_batch: clips (for one frame: images) of a micro-batch on one process.
        expressions_per_clip: at most so many of a clip; its frames are encoded once for all.
        num_frames: length of a clip.
        single_frame_share: share of the batches that hold single frames, `num_frames` times as many
            clips; 0 to 1.
        slices: weights of the slices of synthetic videos.
        crowd_share: share of synthetic clips of one frame that are crowds (`crowds.py`), 0 to 1.
        max_stride: synthetic clips take every frame, every second, ... up to this.
        late_starts: clips of the slice `track` begin wherever their expressions are true, not only
            where their videos do: more of them show twins that pass each other.
        muted_share: share of expressions that only the first frame of their clip hears, so that the
            track token alone must lead to the object in the others; 0 to 1.
        misled_share: share of all expressions that hear another one of the clip instead, so that
            the token must win against words; 0 to 1.
        augmentation: which sizes refsam-model 9.4 draws from; "none" leaves the frames alone.
        workers: processes that make batches; 0 is the training process itself.
    """

    kind: DatasetKind
    clips_per_batch: int
    expressions_per_clip: int = 1
    num_frames: int = 1
    single_frame_share: float = 0.0
    slices: dict[str, float] = {}
    crowd_share: float = 0.0
    max_stride: int = 3
    late_starts: bool = False
    muted_share: float = 0.0
    misled_share: float = 0.0
    augmentation: Literal["none", "video", "image"] = "none"
    workers: int = 1


class Optimiser(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """AdamW with warm-up, constant rate, linear decay over the last `decay_steps`.

    learning_rate: of every parameter in `full` training. matrix_rate: of weight matrices in `full`
    training, which Muon updates then; 0 means that AdamW does. rates: of the groups of refsam-model
    9.1 in `parameter-efficient` training. clip_norm: largest norm of the gradient, 0 means no
    clipping.
    """

    learning_rate: float = 0.0
    matrix_rate: float = 0.0
    rates: dict[Group, float] = {}
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.0


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights of the loss terms and where they are measured.

    resolution: "image" compares at the size of the (augmented) image, as the paper does; "low-res"
    compares the decoder's own logits with masks averaged down to them. cells: weight of the
    auxiliary task of `cells.py`, for synthetic videos; 0 means it is left out.
    decoded: how many expressions of a clip the decoder sees, the others are only matched with
    cells; 0 means all. recall: weight of matching track tokens with the cells of their
    objects one frame later (`match.py`), for square frames; 0 means it is left out.
    """

    dice: float = 1.0
    focal: float = 1.0
    resolution: Literal["image", "low-res"] = "image"
    cells: float = 0.0
    decoded: int = 0
    recall: float = 0.0


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run.

    average: decay of the exponential moving average of the weights, which is what is evaluated and
    published; 0 means none. accumulate: micro-batches per optimiser step. fresh: beginnings of the
    names of tensors that start from initial values, although a weights file has them. frozen:
    beginnings of the names of tensors that stay as they are.
    """

    schema: int
    name: str
    preset: str
    mode: Literal["full", "parameter-efficient"]
    seed: int
    steps: int
    data: Data
    optimiser: Optimiser
    loss: Loss = Loss()
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    average: float = 0.0
    activation_checkpointing: bool = False
    fresh: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    checkpoint_every: int = 500
    evaluate_every: int = 500

    def digest(self) -> str:
        """Return the sha256 of what the recipe says apart from defaults.

        Two files that say the same have the same, also when later versions know more keys.
        """
        return hashlib.sha256(msgspec.json.encode(_said(self), order="sorted")).hexdigest()


def _said(record: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that do not have their defaults."""
    said = {}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        factory = field.default_factory
        if value != (field.default if factory is msgspec.NODEFAULT else factory()):
            said[field.name] = _said(value) if isinstance(value, msgspec.Struct) else value
    return said


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: no such file, not TOML, a key unknown, missing or of a wrong type, a value that
            makes no sense; the text names file, key and what was expected.
    """
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise UsageError(
            f"{path}: no readable recipe ({error.strerror}); give a TOML file"
        ) from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: {error}") from error
    _check(path, recipe)
    return recipe


def _check(path: Path, recipe: Recipe) -> None:
    preset(recipe.preset)
    problems = [*_out_of_range(recipe), *_wrong_rates(recipe)]
    if recipe.schema != SCHEMA:
        problems.append(f"schema {recipe.schema}: this version reads {SCHEMA}")
    optimiser = recipe.optimiser
    if optimiser.warmup_steps + optimiser.decay_steps > recipe.steps:
        problems.append("optimiser: warmup_steps and decay_steps do not fit into steps")
    if (recipe.data.kind == "synthetic") != bool(recipe.data.slices):
        problems.append("data.slices: needed for synthetic videos and for them only")
    if recipe.data.late_starts and "track" not in recipe.data.slices:
        problems.append("data.late_starts: only clips of data.slices.track have it")
    if recipe.data.num_frames == 1 and (recipe.loss.recall or recipe.data.muted_share):
        problems.append("loss.recall, data.muted_share: of clips; give num_frames above 1")
    offered = recipe.data.expressions_per_clip
    decoded = min(recipe.loss.decoded or offered, offered)
    if recipe.data.misled_share and min(recipe.data.num_frames, decoded) == 1:
        problems.append("data.misled_share: needs two frames and two decoded expressions of a clip")
    if recipe.loss.recall and recipe.data.kind != "synthetic":
        problems.append("loss.recall: only synthetic frames are surely square; leave it out")
    if recipe.loss.cells and recipe.data.kind != "synthetic":
        problems.append("loss.cells: only synthetic videos tell what cells show; leave it out")
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}")


_LEAST = {
    "steps": 1,
    "accumulate": 1,
    "checkpoint_every": 1,
    "evaluate_every": 1,
    "data.clips_per_batch": 1,
    "data.expressions_per_clip": 1,
    "data.num_frames": 1,
    "data.max_stride": 1,
    "data.workers": 0,
    "optimiser.warmup_steps": 0,
    "optimiser.decay_steps": 0,
    "optimiser.clip_norm": 0,
    "optimiser.matrix_rate": 0,
    "loss.cells": 0,
    "loss.decoded": 0,
    "loss.recall": 0,
}
_SHARES = ("data.single_frame_share", "data.crowd_share", "data.muted_share", "data.misled_share")


def _out_of_range(recipe: Recipe) -> list[str]:
    problems = [
        f"{name} {value}: expected {least} or more"
        for name, least in _LEAST.items()
        if (value := operator.attrgetter(name)(recipe)) < least
    ]
    shares = {name: operator.attrgetter(name)(recipe) for name in _SHARES}
    # One draw decides whether an expression is muted, misled or neither.
    both = ("data.muted_share", "data.misled_share")
    shares[" + ".join(both)] = sum(shares[name] for name in both)
    problems += [f"{n} {v}: expected 0 to 1" for n, v in shares.items() if not 0.0 <= v <= 1.0]
    if not 0.0 <= recipe.average < 1.0:
        problems.append(f"average {recipe.average}: expected 0 to below 1")
    return problems


def _wrong_rates(recipe: Recipe) -> list[str]:
    rate, rates = recipe.optimiser.learning_rate, recipe.optimiser.rates
    if recipe.mode == "full":
        return (
            []
            if rate > 0 and not rates
            else ["optimiser: `full` training needs learning_rate above 0 and no rates"]
        )
    if rates and not rate and not recipe.optimiser.matrix_rate and min(rates.values()) > 0:
        return []
    return [
        f"optimiser.rates: expected rates above 0 of {', '.join(GROUPS)}, and no learning_rate"
        " or matrix_rate"
    ]
