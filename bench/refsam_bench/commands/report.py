"""`refsam-bench report`: accuracy, speed and pictures of bundles on one page."""

from __future__ import annotations

import json
from typing import Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--output", required=True, type=PATH, help="The page, .html; JSON goes beside it.")
@click.option(
    "--dataset",
    type=click.Choice(["synthetic", "ref-davis", "ref-youtube-vos"]),
    default="synthetic",
    help="What accuracy is measured on.",
)
@click.option("--root", type=PATH, help="Folder of ref-davis or ref-youtube-vos.")
@click.option("--split", default="valid", help="Of ref-youtube-vos; it must have annotations.")
@options.synthetic_seed
@options.num_synthetic
@options.slices
@click.option(
    "--source",
    type=PATH,
    help="Folder of the PyTorch weights, for bundles that do not hold them; checked by hash.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Which graphs of every bundle; may be repeated.  [default: all]",
)
@options.backend
@click.option("--threads", "num_threads", type=click.IntRange(min=1), help="Of every side.")
@click.option(
    "--speed-frames",
    "num_speed_frames",
    type=click.IntRange(min=0),
    default=20,
    help="Frames to time, 0 for none.",
)
@click.option("--worst", "num_worst", type=click.IntRange(0, 100), default=8, help="Frames shown.")
@click.option(
    "--examples", "num_examples", type=click.IntRange(0, 100), default=6, help="Frames shown."
)
@click.option(
    "--forms",
    type=PATH,
    multiple=True,
    help="Result of make prove's step calibration-forms-..., to be shown too; may be repeated.",
)
@click.option("--title", default="RefSAM report", help="Of the page.")
@click.option("--overwrite", "is_overwrite", is_flag=True, help="Replace an earlier report.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON on standard output too.")
def report(bundles: tuple[str, ...], as_json: bool, slices: str, **choices: Any) -> None:
    """Put accuracy, speed and pictures of bundles side by side on one page.

    Every variant of every bundle is scored and timed, and so is the PyTorch reference, where its
    weights are in the bundle, in --source, or random. BUNDLE is a folder, or nano, the model that
    ships with refsam-trt. The page needs no network; the same as JSON is written beside it. Nothing
    is written before everything is measured.

    Exit codes: 0 done, 2 unusable input, 130 and 143 interrupted.
    """
    from refsam_bench.report.measure import measure_report
    from refsam_bench.report.page import page_environment, write_report
    from refsam_bench.report.request import ReportRequest

    names: Any = tuple(slices.split(","))
    folders = tuple(bundle_folder(bundle) for bundle in bundles)
    request = ReportRequest(folders, slices=names, **choices)
    page_environment()
    measured = measure_report(
        request, lambda label, total: Progress(f"refsam-bench report: {label}", total)
    )
    write_report(measured, request)
    if as_json:
        click.echo(json.dumps(measured.record))
        return
    _print(measured.record)
    click.echo(f"{request.output}\n{request.json_output}")


def _print(record: dict[str, Any]) -> None:
    if record["warning"]:
        click.echo(record["warning"])
    sides = [*record["references"], *record["candidates"]]
    width = max(len(side["label"]) for side in sides)
    click.echo(f"{'':{width}} {'J&F':>7} {'J':>7} {'F':>7} {'points':>7} {'frames/s':>9}")
    for side in sides:
        figures = " ".join(f"{side['accuracy'][name]:7.4f}" for name in ("j_and_f", "j", "f"))
        difference = side.get("difference")
        points = f"{100 * difference['j_and_f']:+7.2f}" if difference else f"{'-':>7}"
        speed = side.get("speed")
        fps = f"{speed['engine']['fps']:9.1f}" if speed else f"{'-':>9}"
        click.echo(f"{side['label']:{width}} {figures} {points} {fps}")
    for side in record["not_run"]:
        click.echo(f"not run: {side['label']}: {side['reason']}")
