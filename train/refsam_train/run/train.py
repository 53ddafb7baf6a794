"""A training run from its recipe and its files: what the command does, without the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refsam_train.data.clips import ClipSource
from refsam_train.data.ref_coco import ImageClips, read_image_samples
from refsam_train.data.synthetic_clips import SyntheticClips
from refsam_train.data.video_sets import VideoClips, read_video_samples
from refsam_train.recipe import RECIPE_NAME, Recipe, read_recipe
from refsam_train.run.distributed import launched_device, launched_place
from refsam_train.run.loop import CHECKPOINT_NAME, RunOptions, Trainer
from refsam_train.run.start import Sources, start_model
from refsam_trt.errors import UsageError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.target import make_folder

RUNS = Path("train/runs")
_NO_FILES = Sources()
_SPLITS = {"ref-youtube-vos": "train", "ref-davis": "valid"}


@dataclass(frozen=True)
class RunRequest:
    """What to train with, and where.

    data_root: folder of the data set, None for synthetic videos. output: folder of the run, None
    means `train/runs/<name of the recipe>`. resume: continue what is there. max_steps: stop after
    so many steps in all, None means the recipe's. threads: of the CPU, None means PyTorch's choice.
    workers: processes that make batches, None means the recipe's number.
    """

    sources: Sources = _NO_FILES
    data_root: Path | None = None
    output: Path | None = None
    resume: bool = False
    max_steps: int | None = None
    threads: int | None = None
    workers: int | None = None
    show_progress: bool = True


def train(recipe_path: Path, request: RunRequest) -> dict[str, Any]:
    """Train and return a summary: recipe, its digest, steps done, checkpoint.

    Everything that can be refused is refused before the first step.

    Raises:
        UsageError, DatasetError, CheckpointError, OutputError: recipe, data, weights or folder
            cannot be used.
    """
    recipe = read_recipe(recipe_path)
    source = open_source(recipe, request.data_root)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    folder = request.output or RUNS / recipe.name
    _prepare_folder(folder, recipe_path, resume=request.resume)
    with launched_place() as place:
        options = RunOptions(
            folder,
            request.max_steps,
            request.workers,
            request.show_progress,
            launched_device(),
            place,
        )
        trainer = Trainer(recipe, start_model(recipe, request.sources), source, options)
        if request.resume:
            trainer.resume()
        trainer.run()
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "step": trainer.step,
        "checkpoint": str(trainer.checkpoint_path),
    }


def open_source(recipe: Recipe, data_root: Path | None) -> ClipSource:
    """Return the recipe's data, checked.

    Raises:
        UsageError: a root is missing, or given where none is needed.
        DatasetError: the data set is not usable.
    """
    data = recipe.data
    if data.kind == "synthetic":
        if data_root is not None:
            raise UsageError(f"recipe {recipe.name} makes its own data: leave --data out")
        return SyntheticClips(data)
    if data_root is None:
        raise UsageError(f"recipe {recipe.name} needs {data.kind}: give its folder with --data")
    sizes = None if data.augmentation == "none" else data.augmentation
    if data.kind == "refcoco":
        return ImageClips(read_image_samples(data_root), sizes)
    return VideoClips(read_video_samples(data_root, _SPLITS[data.kind]), sizes)


def _prepare_folder(folder: Path, recipe_path: Path, *, resume: bool) -> None:
    checkpoint = folder / CHECKPOINT_NAME
    if checkpoint.exists() and not resume:
        raise UsageError(
            f"{checkpoint}: a run is here already; continue it with --resume, or choose another "
            "--output"
        )
    make_folder(folder)
    if not (resume and (folder / RECIPE_NAME).exists()):
        with atomic_path(folder / RECIPE_NAME) as part:
            part.write_bytes(recipe_path.read_bytes())
