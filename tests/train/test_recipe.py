"""Recipes: the shipped ones are read, faulty ones are refused by file, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_training import TINY, read_tiny, write_recipe

from refsam_train.recipe import read_recipe
from refsam_trt.errors import UsageError

RECIPES = Path(__file__).parents[2] / "train" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read_and_named_like_their_file(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_paper_recipe_has_the_rates_of_the_paper() -> None:
    recipe = read_recipe(RECIPES / "paper-finetune.toml")
    assert recipe.optimiser.rates == {
        "resizer": 1e-4,
        "hda": 1e-4,
        "decoder": 1e-6,
        "adapters": 1e-5,
        "itm": 1e-4,
    }
    assert (recipe.optimiser.betas, recipe.optimiser.weight_decay) == ((0.9, 0.999), 0.01)
    assert (recipe.precision, recipe.optimiser.clip_norm, recipe.data.num_frames) == ("fp32", 0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "0"}, "steps 0: expected 1 or more"),
        ({"schema": "2"}, "schema 2: this version reads 1"),
        ({"mode": '"half"'}, "Invalid enum value 'half'"),
        ({"average": "1.0"}, "average 1.0: expected 0 to below 1"),
        ({"learning_rate": "0.0"}, "`full` training needs learning_rate above 0"),
        ({"mode": '"parameter-efficient"'}, "expected rates above 0 of resizer, hda"),
        ({"warmup_steps": "5"}, "warmup_steps and decay_steps do not fit into steps"),
        ({"kind": '"refcoco"'}, "data.slices: needed for synthetic videos and for them only"),
        (
            {"clips_per_batch": '"many"'},
            r"got `str` - at `\$.data.clips_per_batch`",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_tiny(tmp_path, **changes)
    assert str(tmp_path / "recipe.toml") in str(caught.value)


def test_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preset named 'huge'; choose one of vitb"):
        read_tiny(tmp_path, preset='"huge"')


def test_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(TINY.replace("max", "min").replace("clip_norm", "clip_nrm"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"unknown field `clip_nrm` - at `\$.optimiser`"):
        read_recipe(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no readable recipe"):
        read_recipe(tmp_path / "none.toml")


def test_digest_depends_on_content_and_not_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = read_tiny(tmp_path / "a")
    path = write_recipe(tmp_path / "b")
    path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_recipe(path).digest() == first.digest()
    assert read_tiny(tmp_path / "b", seed="4").digest() != first.digest()


def test_digest_does_not_know_defaults(tmp_path: Path) -> None:
    """So it stays the same when later versions have more keys."""
    recipe = read_tiny(tmp_path)
    said = read_tiny(tmp_path, single_frame_share="0.4\ncrowd_share = 0.0")
    assert said.digest() == recipe.digest()
    crowds = read_tiny(tmp_path, single_frame_share="0.4\ncrowd_share = 0.5")
    assert crowds.digest() != recipe.digest()


def test_recall_is_refused_where_frames_may_not_be_square(tmp_path: Path) -> None:
    text = (RECIPES / "paper-finetune.toml").read_text() + "\n[loss]\nrecall = 1.0\n"
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"loss\.recall: only synthetic frames are surely square"):
        read_recipe(path)


def test_late_starts_are_refused_where_nothing_has_them(tmp_path: Path) -> None:
    text = (RECIPES / "nano-twins.toml").read_text()
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace("track = 15", ""))
    with pytest.raises(UsageError, match=r"data\.late_starts: only clips of data\.slices\.track"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"single_frame_share": "0.4\nmuted_share = 0.75\nmisled_share = 0.5"},
            r"data\.muted_share \+ data\.misled_share 1\.25: expected 0 to 1",
        ),
        (
            {"single_frame_share": "0.4\nmuted_share = -0.25\nmisled_share = 0.5"},
            r"data\.muted_share -0\.25: expected 0 to 1",
        ),
        (
            {"single_frame_share": "0.4\nmuted_share = 0.5\nmisled_share = -0.25"},
            r"data\.misled_share -0\.25: expected 0 to 1",
        ),
        ({"resolution": '"low-res"\nrecall = -1.0'}, r"loss\.recall -1\.0: expected 0 or more"),
    ],
)
def test_values_that_make_no_sense_are_refused_too(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_tiny(tmp_path, **changes)


def test_digest_depends_on_every_key_also_where_it_says_nothing_or_0(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    digests = [other.digest() for other in others(recipe)]
    assert len(digests) > 50
    assert len({recipe.digest(), *digests}) == 1 + len(digests)


def others(value: Any) -> list[Any]:
    """Return other values: of records every one that differs in one field."""
    if isinstance(value, msgspec.Struct):
        return [
            msgspec.structs.replace(value, **{field.name: other})
            for field in msgspec.structs.fields(value)
            for other in others(getattr(value, field.name))
        ]
    if isinstance(value, str):
        return [f"{value}-"]
    if isinstance(value, dict):
        return [{**value, "other": 1.0}]
    if isinstance(value, tuple):
        return [value[::-1] if value else ("other",)]
    return [other for other in (0, value + 1) if other != value]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_frames": "1\nmuted_share = 0.5"},
            r"loss\.recall, data\.muted_share: of clips; give num_frames above 1",
        ),
        (
            {"num_frames": "1", "resolution": '"low-res"\nrecall = 1.0'},
            r"loss\.recall, data\.muted_share: of clips; give num_frames above 1",
        ),
        (
            {"num_frames": "1\nmisled_share = 0.5"},
            r"data\.misled_share: needs two frames and two decoded expressions of a clip",
        ),
        (
            {"num_frames": "2\nmisled_share = 0.5", "expressions_per_clip": "1"},
            r"data\.misled_share: needs two frames and two decoded expressions of a clip",
        ),
        (
            {"num_frames": "2\nmisled_share = 0.5", "resolution": '"low-res"\ndecoded = 1'},
            r"data\.misled_share: needs two frames and two decoded expressions of a clip",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_tiny(tmp_path, **changes)
