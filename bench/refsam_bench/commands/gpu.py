"""`refsam-bench gpu`: everything that only a GPU can tell, in one call."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.types import PATH


def _names(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list, each once."""
    names = dict.fromkeys(name.strip() for name in text.split(","))
    return tuple(name for name in names if name)


@click.command()
@click.argument("bundles", nargs=-1, metavar="[BUNDLE]...")
@click.option("--output", required=True, type=PATH, help="JSON file; replaced if it exists.")
@click.option(
    "--preset",
    "presets",
    default="",
    callback=_names,
    metavar="NAMES",
    help="Make bundles of these presets with random weights, commas between: vitb,vith.",
)
@click.option(
    "--precision",
    "precisions",
    default="fp32,fp16,bf16",
    callback=_names,
    metavar="NAMES",
    help="Variants to measure, commas between.",
)
@click.option(
    "--backend",
    "backends",
    default="tensorrt,tensorrt-rtx,ort-cuda",
    callback=_names,
    metavar="NAMES",
    help="Backends to measure, commas between; those that do not open are listed.",
)
@click.option("--source", type=PATH, help="Folder of the PyTorch weights; checked by hash.")
@click.option("--frames", "num_frames", type=click.IntRange(min=1), default=50)
@click.option("--warmup", "num_warmup", type=click.IntRange(min=0), default=5)
@click.option("--expressions", "num_expressions", type=click.IntRange(min=1, max=64), default=2)
@click.option(
    "--frame-size",
    "frame_hw",
    nargs=2,
    type=click.IntRange(16, 8192),
    default=(480, 854),
    help="Height and width of the frames in pixels.",
)
@click.option(
    "--num-videos", type=click.IntRange(min=0), default=10, help="Synthetic, for J&F; 0 for none."
)
@click.option(
    "--parity-frames", type=click.IntRange(min=3), default=3, help="Length of the parity chain."
)
@click.option("--seed", default=0, help="Of random weights.")
@click.option(
    "--limit-s",
    type=click.FloatRange(min=1),
    help="Seconds after which nothing more is begun, and what runs is ended.",
)
@click.option("--commit", help="Of the source, where there is no git to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the record on standard output.")
def gpu(bundles: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure BUNDLEs, or new ones of presets, on this machine's GPU.

    For every backend and precision: plans are built, held to their golden tensors and to the
    PyTorch reference, their layers and memory measured, J&F scored; all of them race frame by frame
    against PyTorch (fp32 eager, fp16 compiled). Every job runs in a process of its own, and what
    fails is recorded and stops nothing else. Needs no installation, only PYTHONPATH.

    Exit codes: 0 done, 1 a step failed, 2 no GPU or unusable input.
    """
    from refsam_bench.gpu.measure import measure_gpu
    from refsam_bench.gpu.request import GpuRequest
    from refsam_bench.gpu.text import record_lines

    request = GpuRequest(bundles=tuple(map(bundle_folder, bundles)), **options)

    def report(line: str) -> None:
        click.echo(f"refsam-bench: {line}", err=True)

    with tempfile.TemporaryDirectory(prefix="refsam-gpu-") as scratch:
        record = measure_gpu(request, Path(scratch), report)
    click.echo(json.dumps(record) if as_json else "\n".join(record_lines(record)))
    if record["failures"]:
        raise click.exceptions.Exit(1)
