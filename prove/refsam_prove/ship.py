"""A trained model into the package: published, exported, proven, and with where it came from.

A program for maintainers, run in a clone: `PYTHONPATH=prove python -m refsam_prove.ship --help`. It
writes two folders: the bundle that ships, and a record of recipes, logs and commands.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest
from refsam_train.recipe import RECIPE_NAME, read_recipe
from refsam_train.run.log import LOG_NAME
from refsam_train.run.loop import CHECKPOINT_NAME
from refsam_train.run.publish import publish
from refsam_train.run.start import Sources
from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.shipped import MODELS, SHIPPED
from refsam_trt.command.ending import run_command
from refsam_trt.command.types import PATH
from refsam_trt.errors import CheckpointError, OutputError, UsageError
from refsam_trt.files.atomic import atomic_folder
from refsam_trt.files.target import refuse_folder

MAX_BYTES = 26_000_000
RECORD_FILE = "record.json"


@dataclass(frozen=True)
class ShipRequest:
    """What to ship.

    Attributes:
        runs: folders of training runs in their order, each started from what the one before gave;
            the weights are those of the last. Each holds a checkpoint, its log and its recipe.
        models: folder of the shipped bundles.
        record: folder for recipes, logs and commands.
        overwrite: replace a model that ships already.
        continued: the first run started from the model that ships already, whose own runs stay in
            the record, before these.
    """

    runs: tuple[Path, ...]
    models: Path
    record: Path
    overwrite: bool = False
    continued: bool = False


def ship(request: ShipRequest, report: Callable[[str], None]) -> dict[str, Any]:
    """Publish, export, check and place; return what the record says.

    Raises:
        UsageError: a preset that no shipped model has.
        CheckpointError: a run that cannot be published, or that lacks its log or its recipe; no
            model with its record to continue.
        OutputError: too large, something in the way, or a file that cannot be written.
        ParityError: the graphs differ from the PyTorch reference.
    """
    for run in request.runs:
        for name in (RECIPE_NAME, LOG_NAME):
            if not (run / name).is_file():
                raise CheckpointError(f"{run}: no {name} here; give the folder of a run, whole")
    preset = read_recipe(request.runs[-1] / RECIPE_NAME).preset
    target = request.models / preset
    _check_places(request, preset, target)
    runs, weights = _before(request, target) if request.continued else ([], None)
    with tempfile.TemporaryDirectory(prefix=".ship-", dir=request.models) as scratch:
        staged = Path(scratch, "bundle")
        runs, weights = _publish(request.runs, runs, weights, Path(scratch), report)
        bundle_id = _export(preset, weights, staged, report)
        size_bytes = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
        if size_bytes > MAX_BYTES:
            raise OutputError(f"{target}: {size_bytes} bytes, at most {MAX_BYTES} are shipped")
        with atomic_folder(target, request.overwrite) as folder:
            shutil.copytree(staged, folder, dirs_exist_ok=True)
    record = {
        "bundle_id": bundle_id,
        "size_bytes": size_bytes,
        "runs": runs,
        "commands": commands(runs, request.record),
    }
    _write_record(request, record)
    return record


def commands(runs: Sequence[dict[str, Any]], record: Path) -> list[str]:
    """Return the command lines that train the same weights again, from the recorded recipes."""
    lines, start, folders = [], "", []
    for run in runs:
        recipe = f"{record.as_posix()}/{run['recipe']}"
        folder = f"train/runs/{Path(run['recipe']).stem}"
        folders.append(folder)
        steps = f"--max-steps {run['num_steps']}"
        lines.append(f"refsam-train {recipe} --output {folder} {steps}{start}")
        if run is not runs[-1]:
            weights = f"{folder}.safetensors"
            checkpoint = f"{folder}/checkpoint.safetensors"
            lines.append(f"refsam-train publish {recipe} {checkpoint} --output {weights}{start}")
            start = f" --weights {weights}"
    return [*lines, f"PYTHONPATH=prove python -m refsam_prove.ship {' '.join(folders)}"]


def _check_places(request: ShipRequest, preset: str, target: Path) -> None:
    if preset not in SHIPPED:
        raise UsageError(f"preset {preset}: models that ship are {', '.join(SHIPPED)}")
    request.models.mkdir(parents=True, exist_ok=True)
    refuse_folder(target, overwrite=request.overwrite, marker=MANIFEST_FILE)
    request.record.parent.mkdir(parents=True, exist_ok=True)
    refuse_folder(request.record, overwrite=True, marker=RECORD_FILE)


def _before(request: ShipRequest, target: Path) -> tuple[list[dict[str, Any]], Path]:
    """Return what the record says of the runs of the model that ships already, and its weights."""
    path = request.record / RECORD_FILE
    if not (path.is_file() and target.is_dir()):
        raise CheckpointError(
            f"{target}, {path}: no model with its record to continue; give all runs instead"
        )
    record, bundle = json.loads(path.read_text(encoding="utf-8")), open_bundle(target)
    if record["bundle_id"] != bundle.bundle_id or bundle.manifest.source is None:
        raise CheckpointError(
            f"{path}: speaks of bundle {record['bundle_id'][:12]}, {target} is "
            f"{bundle.bundle_id[:12]}; give all runs instead"
        )
    return record["runs"], bundle.path(bundle.manifest.source)


def _publish(
    folders: Sequence[Path],
    runs: list[dict[str, Any]],
    weights: Path | None,
    target: Path,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], Path]:
    """Publish one run after the other; return what the record says of all, and the last file."""
    last = len(runs) + len(folders)
    for number, folder in enumerate(folders, start=len(runs) + 1):
        recipe, sources = read_recipe(folder / RECIPE_NAME), Sources(checkpoint=weights)
        stem = recipe.preset if number == last else str(number)
        weights = target / f"{stem}.safetensors"
        done = publish(recipe, folder / CHECKPOINT_NAME, sources, weights)
        report(f"{recipe.name}: {done.num_tensors} tensors after {done.step} steps")
        name = f"{number}-{recipe.name}"
        files = {"recipe": f"{name}.toml", "log": f"{name}.jsonl"}
        runs.append({**files, "recipe_sha256": done.recipe_sha256, "num_steps": done.step})
    assert weights is not None
    return runs, weights


def _export(preset: str, weights: Path, output: Path, report: Callable[[str], None]) -> str:
    """Export to `output`, prove it and return the bundle id."""
    request = ExportRequest(
        preset, output, checkpoint=weights, include_source=True, weight_storage="fp16"
    )
    return export_bundle(request, report).bundle_id


def _write_record(request: ShipRequest, record: dict[str, Any]) -> None:
    earlier, new = record["runs"][: -len(request.runs)], record["runs"][-len(request.runs) :]
    with atomic_folder(request.record, overwrite=True) as folder:
        for names in earlier:
            for name in (names["recipe"], names["log"]):
                shutil.copyfile(request.record / name, folder / name)
        for run, names in zip(request.runs, new, strict=True):
            shutil.copyfile(run / RECIPE_NAME, folder / names["recipe"])
            shutil.copyfile(run / LOG_NAME, folder / names["log"])
        text = json.dumps(record, indent=1) + "\n"
        (folder / RECORD_FILE).write_text(text, encoding="utf-8")


@click.command(context_settings={"show_default": True})
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--models", type=PATH, default=MODELS, help="Folder of the shipped bundles.")
@click.option("--record", type=PATH, default="train/nano", help="Folder of the record.")
@click.option("--overwrite", is_flag=True, help="Replace the model that ships already.")
@click.option(
    "--continued", is_flag=True, help="The first run started from the model that ships already."
)
def command(
    runs: tuple[Path, ...], models: Path, record: Path, overwrite: bool, continued: bool
) -> None:
    """Put trained weights into the package.

    Give the folder of every run that they went through, in order; with --continued only those after
    the model that ships already. The last run's weights are
    published (the average, rounded to fp16), exported with their source and fp16 storage, compared
    with the PyTorch reference, and placed where `refsam_trt.load("nano")` finds them. Recipes, logs
    and the exact commands go to the record.
    """
    request = ShipRequest(runs, models, record, overwrite, continued)
    done = ship(request, lambda line: click.echo(f"ship: {line}", err=True))
    click.echo(f"{done['size_bytes'] / 1e6:.2f} MB, bundle id {done['bundle_id']}")
    click.echo(f"record: {record}")


def main() -> NoReturn:
    """Run the command."""
    run_command(command, "train", "ship")


if __name__ == "__main__":
    main()
