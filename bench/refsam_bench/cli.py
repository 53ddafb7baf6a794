"""`refsam-bench`: accuracy, parity and speed of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refsam_bench.commands.accuracy import accuracy
from refsam_bench.commands.gpu import gpu
from refsam_bench.commands.precision import precision
from refsam_bench.commands.report import report
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.ending import run_command
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH

_SOURCE_HELP = "Folder of the PyTorch weights the bundle was made from; checked by hash."


@click.group(context_settings={"show_default": True})
@click.version_option(package_name="refsam-trt")
def command() -> None:
    """Measure a bundle: how good is it, does it equal the PyTorch reference, how fast is it?

    BUNDLE is a folder, or nano, the model that ships with refsam-trt.
    """


command.add_command(accuracy)
command.add_command(gpu)
command.add_command(precision)
command.add_command(report)


@command.command()
@click.argument("bundle")
@click.option("--source", type=PATH, help=_SOURCE_HELP)
@click.option("--variant", help="Which graphs of the bundle.  [default: its fp32 ones]")
@click.option("--frames", "num_frames", type=click.IntRange(min=3), default=5, help="Chain length.")
@click.option("--bisect", is_flag=True, help="Name the first frame, graph and tensor that differ.")
@click.option(
    "--tolerance",
    type=float,
    help="Of --bisect: largest relative error that is no difference.  [default: parity's bound]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def parity(
    bundle: str, as_json: bool, bisect: bool, tolerance: float | None, **options: Any
) -> None:
    """Compare each graph, and a chain of frames, with the PyTorch reference.

    With --bisect, each graph gets the reference's own inputs frame by frame, and the first one that
    differs is searched for the first tensor that does.

    Exit codes: 0 equal within the bounds, 1 not, 2 unusable input.
    """
    if tolerance is not None and not bisect:
        raise click.UsageError("--tolerance belongs to --bisect; the bounds of parity are fixed")
    options["report"] = lambda line: click.echo(f"refsam-bench: {line}", err=True)
    if bisect:
        options["tolerance"] = tolerance
    passed = (_bisect if bisect else _compare)(bundle_folder(bundle), as_json, options)
    if not passed:
        raise click.exceptions.Exit(1)


def _compare(bundle: Path, as_json: bool, options: dict[str, Any]) -> bool:
    from refsam_bench.parity.measure import measure_parity

    measured = measure_parity(bundle, **options)
    parity = measured.parity
    if as_json:
        click.echo(json.dumps(measured.to_json()))
    else:
        for graph, errors in parity.graphs.items():
            for name, error in errors.items():
                click.echo(f"{graph:14} {name:18} relative error {error:.1e}")
        for row in parity.chain:
            click.echo(
                f"frame {row.frame} expression {row.expression}: logits "
                f"{row.logits_error:.1e}, mask IoU {row.mask_iou:.6f}"
            )
        click.echo(parity.verdict)
    return parity.passed


def _bisect(bundle: Path, as_json: bool, options: dict[str, Any]) -> bool:
    from refsam_bench.parity.bisect import bisect_parity

    bisection = bisect_parity(bundle, **options)
    click.echo(json.dumps(bisection.to_json()) if as_json else bisection.finding)
    return bisection.passed


@command.command()
@click.argument("bundle")
@click.option("--source", type=PATH, help=_SOURCE_HELP)
@click.option("--variant", help="Which graphs of the bundle.  [default: its fp32 ones]")
@click.option("--backend", default="auto", help="Backend, or auto.")
@click.option("--frames", "num_frames", type=click.IntRange(min=2), default=20)
@click.option("--warmup", "num_warmup", type=click.IntRange(min=0), default=2)
@click.option("--expressions", "num_expressions", type=click.IntRange(min=1), default=2)
@click.option(
    "--frame-size",
    "frame_hw",
    nargs=2,
    type=click.IntRange(16, 8192),
    default=(480, 854),
    help="Height and width of the frames in pixels.",
)
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def speed(
    bundle: str, all_precisions: bool, plans: tuple[Path, ...], as_json: bool, **options: Any
) -> None:
    """Time a session stage by stage, against the loop of the released scripts.

    That loop encodes text and image again for each expression of each frame. Both sides run in
    turn, frame by frame, in one process.
    """
    from refsam_bench.speed.measure import SpeedRequest, measure_speed

    request = SpeedRequest(bundle=bundle_folder(bundle), **options)
    total = request.num_warmup + request.num_frames
    if all_precisions:
        _speed_of_precisions(request, plans, as_json)
        return
    if plans:
        raise click.UsageError("--plans is of --precisions; give both or none")
    with Progress("refsam-bench speed", total) as progress:
        figures = measure_speed(request, progress.update)
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{'stage':14} {'p50':>9} {'p90':>9} {'p95':>9} {'p99':>9}  ms")
    rows = {**figures["stages"], "engine": figures["engine"], "reference": figures["reference"]}
    for name, row in rows.items():
        if row is not None:
            values = " ".join(f"{row[f'p{p}_ms']:9.2f}" for p in (50, 90, 95, 99))
            fps = f"  {row['fps']:.2f} frames/s" if "fps" in row else ""
            click.echo(f"{name:14} {values}{fps}")
    if figures["speedup"] is not None:
        ratio = figures["speedup"]
        click.echo(
            f"engine over reference: {ratio['p50']:.1f}x (p10 {ratio['p10']:.1f}, "
            f"p90 {ratio['p90']:.1f}), {figures['num_expressions']} expression(s); masks of both "
            f"sides agree to an IoU of at least {figures['min_mask_iou']:.6f}"
        )
    peaks = ", ".join(f"{k} {v:.0f}" for k, v in figures["peak_memory_mib"].items() if v)
    click.echo(f"peak resident memory, MiB: {peaks}")
    if figures["random_weights"]:
        click.echo("RANDOM WEIGHTS: the figures are those of the architecture, masks mean nothing")


def _speed_of_precisions(request: Any, plans: tuple[Path, ...], as_json: bool) -> None:
    from refsam_bench.speed.precisions import measure_precisions

    if request.variant is not None:
        raise click.UsageError("--precisions times all of them: leave --variant out")
    total = request.num_warmup + request.num_frames
    with Progress("refsam-bench speed", total) as progress:
        figures = measure_precisions(request, progress.update, plans)
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, row in figures["precisions"].items():
        click.echo(f"{name:6} p50 {row['p50_ms']:9.2f} ms  ({figures['variants'][name]})")
    for gate in figures["gates"]:
        click.echo(gate["verdict"])
    if figures["random_weights"]:
        click.echo("RANDOM WEIGHTS: the figures are those of the architecture, masks mean nothing")


@command.command()
@click.argument("bundle")
@click.option("--seed", default=900_000, help="Of the videos; 900000 and up are for evaluation.")
@click.option("--num-videos", type=click.IntRange(min=1), default=200)
@click.option("--variant", help="Which graphs of the bundle.  [default: its fp32 ones]")
@click.option("--backend", default="auto", help="Backend, or auto.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def exchange(
    bundle: str, seed: int, num_videos: int, variant: str | None, backend: str, as_json: bool
) -> None:
    """Exchange the saved track tokens of twins that only their past tells apart.

    In synthetic videos of the slice `track`, after 12 of 16 frames. Shares of the videos: `kept`,
    both masks are on their own object when nothing is exchanged; `exchanged`, with exchanged tokens
    both are where the other's are without.
    """
    import refsam_trt
    from refsam_bench.exchange.token_exchange import exchange_tokens, to_json

    with (
        refsam_trt.load(bundle, backend=backend, variant=variant) as engine,
        Progress("refsam-bench exchange", num_videos) as progress,
    ):
        found = exchange_tokens(engine, seed, num_videos, progress.update)
        figures = {
            "bundle_id": engine.bundle_id,
            "random_weights": engine.is_random_init,
            **to_json(found, seed, num_videos),
        }
    if as_json:
        click.echo(json.dumps(figures))
        return
    if figures["random_weights"]:
        click.echo("RANDOM WEIGHTS: these figures say nothing about RefSAM")
    click.echo(
        f"{len(found)} of {num_videos} videos have named twins: {figures['kept']:.1%} keep their "
        f"objects, {figures['exchanged']:.1%} exchange them with their tokens"
    )


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "export,bench", "refsam-bench")


if __name__ == "__main__":
    main()
