"""`refsam-bench parity`: does a bundle equal the PyTorch reference?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder


@click.command()
@click.argument("bundle")
@options.source
@options.variant
@click.option("--frames", "num_frames", type=click.IntRange(min=3), default=5, help="Chain length.")
@click.option("--bisect", is_flag=True, help="Name the first frame, graph and tensor that differ.")
@click.option(
    "--tolerance",
    type=float,
    help="Of --bisect: largest relative error that is no difference.  [default: parity's bound]",
)
@options.as_json
def parity(
    bundle: str, as_json: bool, bisect: bool, tolerance: float | None, **choices: Any
) -> None:
    """Compare each graph, and a chain of frames, with the PyTorch reference.

    With --bisect, each graph gets the reference's own inputs frame by frame, and the first one that
    differs is searched for the first tensor that does.

    Exit codes: 0 equal within the bounds, 1 not, 2 unusable input.
    """
    if tolerance is not None and not bisect:
        raise click.UsageError("--tolerance belongs to --bisect; the bounds of parity are fixed")
    choices["report"] = options.tell
    if bisect:
        choices["tolerance"] = tolerance
    passed = (_bisect if bisect else _compare)(bundle_folder(bundle), as_json, choices)
    if not passed:
        raise click.exceptions.Exit(1)


def _compare(bundle: Path, as_json: bool, choices: dict[str, Any]) -> bool:
    from refsam_bench.parity.measure import measure_parity

    bundle_id, parity = measure_parity(bundle, **choices)
    if as_json:
        click.echo(json.dumps({"bundle_id": bundle_id, **parity.to_json()}))
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


def _bisect(bundle: Path, as_json: bool, choices: dict[str, Any]) -> bool:
    from refsam_bench.parity.bisect import bisect_parity

    bisection = bisect_parity(bundle, **choices)
    click.echo(json.dumps(bisection.to_json()) if as_json else bisection.finding)
    return bisection.passed
