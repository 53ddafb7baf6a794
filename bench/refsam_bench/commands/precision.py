"""`refsam-bench precision`: is half precision good enough, and does nothing overflow?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH
from refsam_trt.files.atomic import atomic_path

if TYPE_CHECKING:
    from refsam_bench.precision.half import HalfFigures


@click.command()
@click.argument("bundle")
@click.option("--precision", type=click.Choice(["fp16", "bf16"]), default="fp16")
@click.option("--source", type=PATH, help="Folder of the PyTorch weights; checked by hash.")
@click.option("--num-videos", type=click.IntRange(min=1), default=200, help="Synthetic videos.")
@click.option(
    "--num-smoke-videos",
    type=click.IntRange(min=0),
    default=10,
    help="How many of them ONNX Runtime runs too.",
)
@options.videos_seed
@click.option("--output", type=PATH, help="JSON file to write as well.")
@options.as_json
def precision(bundle: str, output: Path | None, as_json: bool, **choices: Any) -> None:
    """Judge a bundle's half graphs: range, rounding, and ONNX Runtime as a smoke test.

    PyTorch runs the graphs in fp32 and notes the largest value of every fp16 tensor, then runs them
    with every half tensor rounded; masks and J&F are compared. Needs the PyTorch weights.

    Exit codes: 0 within the bounds (bf16 has none), 1 not, 2 unusable input.
    """
    from refsam_bench.precision.half import HalfRequest, measure_half

    request = HalfRequest(bundle=bundle_folder(bundle), **choices)

    with Progress("refsam-bench precision", request.num_videos) as progress:
        figures = measure_half(request, progress.update, options.tell)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(figures.to_json(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(figures.to_json()))
    else:
        _print(figures)
    if not figures.passed:
        raise click.exceptions.Exit(1)


def _print(figures: HalfFigures) -> None:
    rounded, smoke = figures.rounded, figures.onnxruntime_cpu
    if figures.random_weights:
        click.echo("RANDOM WEIGHTS: J&F means nothing")
    if audit := figures.range_audit:
        worst = audit.largest[0]
        click.echo(
            f"range: {audit.num_tensors} fp16 tensors, the largest value {worst.max_abs:.5g} "
            f"in {worst.tensor} of {worst.module or worst.graph}; at most "
            f"{audit.bound:.0f} allowed"
        )
    click.echo(
        f"rounded, {rounded.num_frames} frames: mask IoU mean {rounded.mean_mask_iou:.6f}, "
        f"worst {rounded.min_mask_iou:.6f}; J&F drop {rounded.jf_drop_points:.3f} points"
    )
    if smoke.num_frames:
        click.echo(
            f"ONNX Runtime CPU, {smoke.num_frames} frames: mask IoU at least "
            f"{smoke.min_mask_iou:.6f}"
        )
    for failure in figures.failures:
        click.echo(f"does not hold: {failure}")
