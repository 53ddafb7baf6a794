"""`refsam-calibrate`: bundle + clips -> quantised bundle, sensitivity report, accuracy gate."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import click

from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.ending import run_command
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH

_NAME = "refsam-calibrate"


class _Alpha(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A number, or one of two words."""

    name = "auto|none|NUMBER"

    def convert(self, value: Any, param: Any, ctx: Any) -> float | str:
        """Return the number as float."""
        if value in ("auto", "none"):
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto, none nor a number", param, ctx)


@click.command(context_settings={"show_default": True})
@click.argument("bundle")
@click.option(
    "--clips",
    type=PATH,
    required=True,
    help="TOML file of what to calibrate, search and verify with; calibration/clips.toml is one.",
)
@click.option("--output", type=PATH, help="Folder of the quantised bundle; must not exist.")
@click.option(
    "--max-jf-drop-points",
    type=click.FloatRange(min=0.0),
    default=0.5,
    help="J&F that may be lost on the verification videos, in points of 0.01.",
)
@click.option(
    "--margin-points",
    type=click.FloatRange(min=0.0),
    help="By how much less the search may lose, as it sees other videos.  [default: a fifth]",
)
@click.option(
    "--min-share",
    type=click.FloatRange(0.0, 1.0),
    default=0.0,
    help="Share of the FLOPs of the encoder's linear layers that must be quantised.",
)
@click.option(
    "--scheme", type=click.Choice(["int8", "fp8"]), help="Which eight bits.  [default: int8]"
)
@click.option(
    "--layers",
    default="qkv,proj,lin1,lin2",
    metavar="LIST",
    help="What may be quantised: kinds (qkv, proj, lin1, lin2, adapter), one block's such as "
    "blocks.3.lin2, or layers by module path.",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "mse", "entropy"]),
    help="How the range of an input is chosen.  [default: mse]",
)
@click.option(
    "--percentile",
    type=float,
    help="Of --method percentile: share of the values that are kept, in percent.  [default: 99.99]",
)
@click.option(
    "--alpha",
    type=_Alpha(),
    help="Of SmoothQuant, 0 to 1; auto searches it per layer, none leaves it out.  [default: auto]",
)
@click.option(
    "--source", type=PATH, help="Folder of the PyTorch weights.  [default: those in the bundle]"
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Of what is drawn from the clips.  [default: that in the file]",
)
@click.option("--ranges", type=PATH, help="Use the ranges in this file instead of measuring.")
@click.option(
    "--work",
    type=PATH,
    help="Folder where ranges and results are kept, for later runs.  [default: OUTPUT-work]",
)
@click.option(
    "--stop-after",
    type=click.Choice(["ranges", "sensitivity", "search", "bundle"]),
    default="bundle",
    help="Last stage to do.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: PyTorch's]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.version_option(package_name="refsam-trt")
def command(
    bundle: str,
    layers: str,
    max_jf_drop_points: float,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantise a BUNDLE to eight bits as far as its accuracy allows, and prove what it lost.

    Ranges are measured on the clips; the layers of every block are judged alone; the largest set
    within the budget is sought on other videos and verified once on yet others. Interrupt it
    whenever you like: the same command goes on where it stopped.

    Exit codes: 0 done, 1 the budget cannot be met or fp16 does not hold the values (no bundle is
    written), 2 unusable input.
    """
    import torch

    from refsam_calibration.calibrate import Display, calibrate
    from refsam_calibration.report import lines, to_json
    from refsam_calibration.request import CalibrateRequest

    if threads is not None:
        torch.set_num_threads(threads)
    request = CalibrateRequest(
        bundle_folder(bundle),
        layers=tuple(name.strip() for name in layers.split(",") if name.strip()),
        max_drop_points=max_jf_drop_points,
        **options,
    )
    display = Display(
        lambda line: click.echo(f"{_NAME}: {line}", err=True),
        lambda label, total: Progress(f"{_NAME}: {label}", total),
    )
    done = calibrate(request, display)
    if as_json:
        record = {"output": str(request.output) if done.output_id else None, **to_json(done)}
        click.echo(json.dumps(record))
        return
    for line in lines(done):
        click.echo(line)
    if done.output_id:
        click.echo(f"bundle: {request.output}")
        click.echo(f"bundle id: {done.output_id}")


def main() -> NoReturn:
    """Run the command."""
    run_command(command, "calibrate", _NAME)


if __name__ == "__main__":
    main()
