"""What several subcommands of `refsam-bench` take, declared once."""

from __future__ import annotations

import click

from refsam_trt.command.types import PATH
from refsam_trt.contract.precision import PRECISIONS

RANDOM_NOTE = "RANDOM WEIGHTS: these figures say nothing about RefSAM"
RANDOM_SPEED_NOTE = "RANDOM WEIGHTS: the figures are those of the architecture, masks mean nothing"


def tell(line: str) -> None:
    """Print a line about what is being done."""
    click.echo(f"refsam-bench: {line}", err=True)


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)
backend = click.option("--backend", default="auto", help="Backend, or auto.")
frame_size = click.option(
    "--frame-size",
    "frame_hw",
    nargs=2,
    type=click.IntRange(16, 8192),
    default=(480, 854),
    help="Height and width of the frames in pixels.",
)
num_synthetic = click.option(
    "--num-videos", type=click.IntRange(min=1), default=200, help="Of synthetic."
)
synthetic_seed = click.option(
    "--seed", default=900_000, help="Of synthetic; 900000 and up are for evaluation."
)
slices = click.option(
    "--slices",
    default="attribute,size,position",
    metavar="NAMES",
    help="Of synthetic, commas between, in rotation: also relation, motion, track.",
)
precision = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What to compute in, as for refsam-run.  [default: the variant's]",
)
source = click.option(
    "--source",
    type=PATH,
    help="Folder of the PyTorch weights the bundle was made from; checked by hash.",
)
variant = click.option("--variant", help="Which graphs of the bundle.  [default: its fp32 ones]")
videos_seed = click.option(
    "--seed", default=900_000, help="Of the videos; 900000 and up are for evaluation."
)
