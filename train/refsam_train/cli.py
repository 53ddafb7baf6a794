"""`refsam-train`: train from a recipe, publish trained weights, write synthetic videos.

`refsam-train RECIPE ...` is short for `refsam-train run RECIPE ...`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import click

from refsam_trt.command.ending import run_command
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH

_weights = click.option("--weights", type=PATH, help="Start from a weights file of ours.")
_sam = click.option("--sam-checkpoint", type=PATH, help="Start from SAM's own weights.")
_text = click.option("--text-encoder", type=PATH, help="Hugging Face folder of a T5 encoder.")
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


class _RecipeFirst(click.Group):
    """A group whose first argument may be a recipe instead of the name of a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Take anything that is no command for the arguments of `run`."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_RecipeFirst)
@click.version_option(package_name="refsam-trt")
def cli() -> None:
    """Train RefSAM: `refsam-train RECIPE`, or one of the commands below."""


@cli.command()
@click.argument("recipe", type=PATH)
@click.option("--data", "data_root", type=PATH, help="Folder of the data set.")
@click.option("--output", type=PATH, help="Folder of the run; default train/runs/<recipe name>.")
@click.option("--resume", is_flag=True, help="Continue the run in the output folder.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps in all.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default PyTorch's choice."
)
@click.option("--workers", type=click.IntRange(min=0), help="Processes that make batches.")
@_weights
@_sam
@_text
@_json
def run(recipe: Path, as_json: bool, **options: Any) -> None:
    """Train with RECIPE, a TOML file such as those in train/recipes.

    Checkpoint and log go to the output folder. Interrupt it whenever you like: it saves and ends
    with 130 (143 for SIGTERM), and --resume continues as if nothing had happened. For several GPUs:
    torchrun --nproc-per-node 8 -m refsam_train.cli RECIPE ...
    """
    from refsam_train.run.train import RunRequest, train

    request = RunRequest(_sources(options), show_progress=not as_json, **options)
    summary = train(recipe, request)
    _report(summary, as_json, "{checkpoint}: {step} steps of {recipe}")


@cli.command()
@click.argument("recipe", type=PATH)
@click.argument("checkpoint", type=PATH)
@click.option("--output", type=PATH, required=True, help="The .safetensors file to write.")
@_weights
@_sam
@_text
@_json
def publish(recipe: Path, checkpoint: Path, output: Path, as_json: bool, **files: Any) -> None:
    """Write the weights in CHECKPOINT, a run of RECIPE, rounded to what fp16 can hold.

    What the run did not train comes from the files it was started from: give them again. A bundle
    is made of the result with: refsam-export --backbone PRESET --checkpoint OUTPUT
    """
    from refsam_train.recipe import read_recipe
    from refsam_train.run.publish import publish as write

    done = write(read_recipe(recipe), checkpoint, _sources(files), output)
    summary = {
        "weights": str(output),
        "step": done.step,
        "num_tensors": done.num_tensors,
        "largest_change": done.largest_change,
    }
    _report(summary, as_json, "{weights}: {num_tensors} tensors after {step} steps")


@cli.command()
@click.option("--write", "folder", type=PATH, required=True, help="Folder to make.")
@click.option(
    "--slice", "slice_name", default="attribute", show_default=True, help="Of expressions."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="890000 and up are not trained on."
)
@click.option("--num-videos", type=int, default=10, show_default=True)
@_json
def synthetic(folder: Path, slice_name: Any, seed: int, num_videos: int, as_json: bool) -> None:
    """Write synthetic referring videos as files, in the layout of Ref-DAVIS17."""
    from refsam_bench.synthetic import write_ref_davis

    with Progress("videos", num_videos, enabled=not as_json) as progress:
        names = write_ref_davis(
            folder, seed=seed, slice=slice_name, num_videos=num_videos, advance=progress.update
        )
    _report({"folder": str(folder), "videos": names}, as_json, "{folder}: written")


def _sources(options: dict[str, Any]) -> Any:
    """Take the files to start from out of the options (`start.Sources`)."""
    from refsam_train.run.start import Sources

    names = ("sam_checkpoint", "weights", "text_encoder")
    return Sources(*(options.pop(name) for name in names))


def _report(summary: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(summary) if as_json else text.format(**summary))


def main() -> NoReturn:
    """Run the command."""
    run_command(cli, "train", "refsam-train")


if __name__ == "__main__":
    main()
