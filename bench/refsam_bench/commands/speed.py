"""`refsam-bench speed`: a session stage by stage, against PyTorch or among its precisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH

if TYPE_CHECKING:
    from refsam_bench.speed.measure import Speed
    from refsam_bench.speed.request import SpeedRequest


@click.command()
@click.argument("bundle")
@options.source
@options.variant
@options.backend
@click.option("--frames", "num_frames", type=click.IntRange(min=2), default=20)
@click.option("--warmup", "num_warmup", type=click.IntRange(min=0), default=2)
@click.option("--expressions", "num_expressions", type=click.IntRange(min=1), default=2)
@options.frame_size
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="Of both sides.")
@click.option(
    "--reference/--no-reference", "with_reference", default=True, help="Time PyTorch beside it."
)
@click.option(
    "--precisions",
    "all_precisions",
    is_flag=True,
    help="Time every precision of the bundle in turn instead, and say whether a quantised one is "
    "worth shipping on this backend.",
)
@click.option(
    "--plans",
    type=PATH,
    multiple=True,
    help="With --precisions, folders of refsam-build to time instead of the bundle's graphs; once "
    "per precision.",
)
@options.as_json
def speed(
    bundle: str, all_precisions: bool, plans: tuple[Path, ...], as_json: bool, **choices: Any
) -> None:
    """Time a session stage by stage, against the loop of the released scripts.

    That loop encodes text and image again for each expression of each frame. Both sides run in
    turn, frame by frame, in one process.
    """
    from refsam_bench.speed.measure import measure_speed
    from refsam_bench.speed.request import SpeedRequest

    request = SpeedRequest(bundle=bundle_folder(bundle), **choices)
    total = request.num_warmup + request.num_frames
    if all_precisions:
        _speed_of_precisions(request, plans, as_json)
        return
    if plans:
        raise click.UsageError("--plans is of --precisions; give both or none")
    with Progress("refsam-bench speed", total) as progress:
        measured = measure_speed(request, progress.update)
    if as_json:
        click.echo(json.dumps(measured.to_json()))
    else:
        _print(measured)


def _print(measured: Speed) -> None:
    from refsam_bench.speed.timing import FrameSummary

    click.echo(f"{'stage':14} {'p50':>9} {'p90':>9} {'p95':>9} {'p99':>9}  ms")
    rows = {**measured.stages, "engine": measured.engine, "reference": measured.reference}
    for name, row in rows.items():
        if row is not None:
            times = (row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms)
            fps = f"  {row.fps:.2f} frames/s" if isinstance(row, FrameSummary) else ""
            click.echo(f"{name:14} {' '.join(f'{ms:9.2f}' for ms in times)}{fps}")
    if measured.speedup is not None:
        ratio = measured.speedup
        click.echo(
            f"engine over reference: {ratio.p50:.1f}x (p10 {ratio.p10:.1f}, "
            f"p90 {ratio.p90:.1f}), {measured.num_expressions} expression(s); masks of both "
            f"sides agree to an IoU of at least {measured.min_mask_iou:.6f}"
        )
    peaks = ", ".join(f"{k} {v:.0f}" for k, v in measured.peak_memory_mib.items() if v)
    click.echo(f"peak resident memory, MiB: {peaks}")
    if measured.random_weights:
        click.echo(options.RANDOM_SPEED_NOTE)


def _speed_of_precisions(request: SpeedRequest, plans: tuple[Path, ...], as_json: bool) -> None:
    from refsam_bench.speed.precisions import measure_precisions

    if request.variant is not None:
        raise click.UsageError("--precisions times all of them: leave --variant out")
    total = request.num_warmup + request.num_frames
    with Progress("refsam-bench speed", total) as progress:
        measured = measure_precisions(request, progress.update, plans)
    if as_json:
        click.echo(json.dumps(measured.to_json()))
        return
    for name, row in measured.precisions.items():
        click.echo(f"{name:6} p50 {row.p50_ms:9.2f} ms  ({measured.variants[name]})")
    for gate in measured.gates:
        click.echo(gate.verdict)
    if measured.random_weights:
        click.echo(options.RANDOM_SPEED_NOTE)
