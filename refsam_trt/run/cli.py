"""`refsam-run`: bundle + video + expressions -> masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refsam_trt.command.ending import INTERRUPTED, TERMINATED, Terminated, run_command
from refsam_trt.command.types import PATH
from refsam_trt.errors import RefsamError

if TYPE_CHECKING:
    from refsam_trt.run.jobs import RunRequest
    from refsam_trt.run.runner import RunReport

_NAME = "refsam-run"


def _text_cache(context: click.Context, parameter: click.Parameter, value: str) -> str | Path:
    return value if value in ("off", "user") else Path(value)


@click.command(context_settings={"show_default": True})
@click.argument("bundle")
@click.argument("source")
@click.argument("expressions", nargs=-1)
@click.option("--output", required=True, type=PATH, help="Folder of the results; must not exist.")
@click.option(
    "--expressions",
    "expressions_file",
    type=PATH,
    help="Text file of more expressions, one per line; blank lines are passed over.",
)
@click.option(
    "--save",
    metavar="NAMES",
    help="What to write, commas between: masks (label maps, palette PNG), rle (COCO RLE), overlay "
    "(the frames with the masks drawn on), json (boxes and confidences).  "
    "[default: masks,rle,overlay]",
)
@click.option("--start", type=int, default=0, help="First frame, counted from 0.")
@click.option("--end", type=int, help="Frame to stop before.  [default: the end of the video]")
@click.option("--stride", type=int, default=1, help="Take every so many-th frame.")
@click.option(
    "--dataset",
    type=click.Choice(["ref-davis", "ref-youtube-vos"]),
    help="SOURCE is the root of this data set: run its validation videos and expressions, and "
    "write what its evaluation reads.",
)
@click.option("--backend", default="auto", help="Where to run; refsam-doctor lists what works.")
@click.option("--variant", help="Which graphs of the bundle, by name.  [default: by precision]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
    help="Which graphs of the bundle; bf16 on openvino-cpu computes fp32 ones in bf16.  [default: "
    "the only one, or fp32]",
)
@click.option(
    "--plans",
    type=PATH,
    metavar="FOLDER",
    help="Plans of refsam-build to run instead of the bundle's graphs.",
)
@click.option("--threads", "num_threads", type=int, help="CPU threads.  [default: the backend's]")
@click.option(
    "--text",
    type=click.Choice(["lazy", "resident", "cache-only"]),
    help="Load the text encoder when needed, keep it, or never load it.  [default: lazy; with "
    "--dataset resident]",
)
@click.option(
    "--text-cache",
    metavar="off|user|PATH",
    default="off",
    callback=_text_cache,
    help="Keep text embeddings on disk from run to run: in the user's cache folder, or in PATH. "
    "The files hold the expressions in plain text.",
)
@click.option(
    "--threshold",
    type=float,
    help="Logits above it belong to a mask. Label maps have a rule of their own: the largest "
    "logit wins where it exceeds 0.1.  [default: 0; with --dataset ref-youtube-vos 0.01]",
)
@click.option(
    "--track-state-scope",
    type=click.Choice(["expression", "object"]),
    default="expression",
    help="Whose a track token is. object: with --dataset ref-davis, the four annotators of an "
    "object share one, as in the released scripts; slower, and only to compare with them.",
)
@click.option(
    "--drop-late",
    "is_dropping",
    is_flag=True,
    help="Of a camera or a stream that is faster than this machine, drop the oldest frames and say "
    "how many.  [default: every frame is done, as late as it may be]",
)
@click.option("--overwrite", "is_overwrite", is_flag=True, help="Replace what a run wrote before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.version_option(package_name="refsam-trt")
def command(as_json: bool, **options: Any) -> None:
    """Find what EXPRESSIONS say in every frame of SOURCE and write masks.

    BUNDLE is a folder that refsam-export wrote, or nano, the small model that comes with this
    program; ./nano is a folder of that name. SOURCE is a video file, a folder of images, an
    image, a camera (camera:0, /dev/video0) or the address of a stream (rtsp://, http://). Put
    quotes around each expression.

    Ctrl-C and SIGTERM end the work after the frames in hand; what is finished stays. After an error
    nothing is left.

    Exit codes: 0 done, 2 unusable input, 130 and 143 interrupted.
    """
    from refsam_trt.run.runner import run

    report = run(_request(options))
    if as_json:
        click.echo(json.dumps(_as_json(report)))
    else:
        _print(report)
    _end_early(report)


def _request(options: dict[str, Any]) -> RunRequest:
    from refsam_trt.media.sources import Selection
    from refsam_trt.run.expressions_file import read_expressions
    from refsam_trt.run.jobs import RunRequest

    selection = Selection(options.pop("start"), options.pop("end"), options.pop("stride"))
    file = options.pop("expressions_file")
    more = [] if file is None else [text for _, text in read_expressions(file)]
    expressions = (*options.pop("expressions"), *more)
    save = options.pop("save")
    names = None if save is None else tuple(name.strip() for name in save.split(","))
    return RunRequest(expressions=expressions, save=names, selection=selection, **options)


def _as_json(report: RunReport) -> dict[str, Any]:
    return {
        "output": str(report.output),
        "num_frames": report.num_frames,
        "num_dropped": report.num_dropped,
        "fps": round(report.fps, 3),
        "files": list(report.files),
        "bundle_id": report.bundle_id,
        "variant": report.variant,
        "precision": report.precision,
        "backend": report.backend,
        "random_init": report.is_random_init,
        "unseen_words": report.unseen_words,
        "interrupted": None if report.interruption is None else _reason(report.interruption),
    }


def _print(report: RunReport) -> None:
    if report.is_random_init:
        click.echo("RANDOM WEIGHTS: masks of this bundle mean nothing")
    click.echo(
        f"{report.num_frames} frames, {report.fps:.1f} per second on {report.backend}, reading and "
        "writing included"
    )
    if report.num_dropped:
        click.echo(f"{report.num_dropped} frames were dropped to keep up with the source")
    tops: dict[str, int] = {}
    for file in report.files:
        top, slash, _ = file.partition("/")
        tops[top + slash] = tops.get(top + slash, 0) + 1
    for top, num_files in tops.items():
        click.echo(f"{report.output / top}" + (f": {num_files} files" if "/" in top else ""))


def _end_early(report: RunReport) -> None:
    """Say how far it came and end with the exit code of what ended it."""
    if report.interruption is None:
        return
    of = f" of {report.num_frames_expected}" if report.num_frames_expected else ""
    click.echo(
        f"{_NAME}: {_reason(report.interruption)}; {report.num_frames}{of} frames are finished and "
        f"lie in {report.output}",
        err=True,
    )
    if isinstance(report.interruption, Terminated):
        raise click.exceptions.Exit(TERMINATED)
    if isinstance(report.interruption, KeyboardInterrupt):
        raise click.exceptions.Exit(INTERRUPTED)
    raise click.exceptions.Exit(RefsamError.exit_code)


def _reason(interruption: BaseException) -> str:
    if isinstance(interruption, KeyboardInterrupt):
        return "interrupted"
    return "terminated" if isinstance(interruption, Terminated) else str(interruption)


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "cpu", _NAME)
