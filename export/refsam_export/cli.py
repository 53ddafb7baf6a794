"""`refsam-export`: checkpoint -> bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from refsam_trt.command.ending import run_command
from refsam_trt.command.types import PATH

_SHOWN = 3
_MAX_SHORT_SIDE = 4096


def _short_side(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | str | None:
    if value is None or value == "none":
        return value
    if not value.isdecimal() or not 16 <= int(value) <= _MAX_SHORT_SIDE:
        raise click.BadParameter(
            f"{value!r} is neither 'none' nor a number of pixels from 16 to {_MAX_SHORT_SIDE}"
        )
    return int(value)


@click.command(context_settings={"show_default": True})
@click.option("--backbone", required=True, help="Preset: vitb, vitl, vith, nano or tiny.")
@click.option("--sam-checkpoint", type=PATH, help="SAM's own weights (sam_vit_h_4b8939.pth).")
@click.option("--checkpoint", type=PATH, help="RefSAM weights: one safetensors file of ours.")
@click.option(
    "--part",
    "parts",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Instead of --checkpoint, one file of the official training scripts (resizer_*.pth, "
    "mask_decoder_*.pth and so on); may be given several times. Its keys tell which part it is.",
)
@click.option(
    "--text-encoder",
    type=PATH,
    metavar="FOLDER|t5-small|...",
    help="Hugging Face folder of a T5, RoBERTa or CLIP text encoder; with --random-init also a "
    "published size of T5: t5-small, t5-base, t5-large or t5-3b.",
)
@click.option(
    "--configuration",
    type=click.Choice(["paper", "released"]),
    help="Insist on the paper's model or on that of the released scripts.  [default: what the "
    "files hold, and the paper's where they do not tell]",
)
@click.option(
    "--adapter-act",
    type=click.Choice(["relu", "gelu"]),
    help="Activation of the adapters.  [default: gelu with --part, else relu]",
)
@click.option(
    "--ablation",
    "ablations",
    type=click.Choice(["no-dense-attention", "dense-origin", "no-word-tokens"]),
    multiple=True,
    help="Export a model that was trained without one of its parts.",
)
@click.option(
    "--mask-select",
    type=click.Choice(["main", "best_iou"]),
    help="Which of SAM's four masks is returned; only main is trained.  [default: main]",
)
@click.option(
    "--casing",
    type=click.Choice(["lower", "keep"]),
    help="What the bundle does to capital letters of expressions; the released Ref-DAVIS script "
    "keeps them.  [default: lower]",
)
@click.option(
    "--downscale-short-side",
    "short_side",
    metavar="PIXELS|none",
    callback=_short_side,
    help="Size that frames are brought to before that of the network; the released Ref-DAVIS "
    "script has none.  [default: 360; nano and tiny: none]",
)
@click.option(
    "--random-init",
    type=click.IntRange(0, 2**32 - 1),
    metavar="SEED",
    help="Fill whatever no file gives with random weights made to behave like trained ones. "
    "For speed and parity only: the masks mean nothing, and the bundle says so.",
)
@click.option("--output", required=True, type=PATH, help="Folder of the bundle; must not exist.")
@click.option(
    "--split",
    type=click.Choice(["optimised", "baseline"]),
    default="optimised",
    help="optimised moves all work out of the step that does not need both frame and text.",
)
@click.option(
    "--attention",
    type=click.Choice(["augmented", "bias", "reference"]),
    default="augmented",
    help="How the image encoder's relative position is spelled; equal up to rounding.",
)
@click.option(
    "--rewrites",
    default="adapter-after-merge",
    metavar="LIST",
    help="Exact rewrites of the adapter blocks, separated by commas: adapter-after-merge, "
    "merged-mlp; or none.",
)
@click.option(
    "--precision",
    default="fp32",
    metavar="LIST",
    help="Precisions, separated by commas, each a variant of the bundle: fp32, fp16, bf16.",
)
@click.option(
    "--parity-frames",
    type=click.IntRange(min=3),
    default=5,
    help="Length of the chain that is compared with the PyTorch reference.",
)
@click.option(
    "--expressions",
    type=PATH,
    metavar="FILE",
    help="Text file, one expression per line, to embed now: the bundle knows them without running "
    "its text encoder. Blank lines are passed over, repeated expressions kept once.",
)
@click.option(
    "--without-text-encoder",
    is_flag=True,
    help="Leave the text encoder out once it is proven; the bundle then knows nothing but the "
    "expressions of --expressions.",
)
@click.option(
    "--include-source/--no-include-source",
    default=None,
    help="Put the PyTorch weights into the bundle, those of the text encoder always among them.  "
    "[default: only for nano and tiny, and not --without-text-encoder]",
)
@click.option(
    "--weight-storage",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="fp16 halves the files of weights that fp16 holds exactly, such as those of refsam-train "
    "publish; the graphs cast them to fp32 and compute the same. Other weights are refused.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from an export to the same output that failed or was killed: graphs, reference and "
    "comparisons that it finished are used again, if it was asked for the very same.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.version_option(package_name="refsam-trt")
def command(
    as_json: bool,
    include_source: bool | None,
    configuration: Any,
    adapter_act: str | None,
    ablations: Any,
    mask_select: str | None,
    casing: Any,
    short_side: Any,
    precision: str,
    rewrites: str,
    **options: Any,
) -> None:
    """Export RefSAM to a bundle of ONNX graphs and prove it equal to the PyTorch reference.

    Exit codes: 0 done, 1 parity failed (no bundle is written), 2 unusable input.
    """
    from refsam_export.exporter import export_bundle
    from refsam_export.precision.policy import parse_precisions
    from refsam_export.refsam.configuration import asked_for
    from refsam_export.refsam.model.config import preset
    from refsam_export.refsam.rewrites import parse_rewrites
    from refsam_export.request import ExportRequest

    if include_source is None:
        is_small = preset(options["backbone"]).preset in ("nano", "tiny")
        include_source = is_small and not options["without_text_encoder"]
    asked = asked_for(configuration, adapter_act, mask_select, ablations, casing, short_side)
    result = export_bundle(
        ExportRequest(
            include_source=include_source,
            asked=asked,
            precisions=parse_precisions(precision),
            rewrites=parse_rewrites(rewrites),
            **options,
        ),
        lambda line: click.echo(f"refsam-export: {line}", err=True),
    )
    if as_json:
        click.echo(json.dumps({**asdict(result), "bundle": str(result.bundle)}))
        return
    _print(result)


def _print(result: Any) -> None:
    for file in result.loaded["files"]:
        click.echo(
            f"{file['name']}: {file['kind']} weights, {file['num_loaded']} tensors loaded, "
            f"{_listed(file['unexpected'])} unexpected"
        )
    if result.loaded["random_init_seed"] is not None:
        click.echo(
            f"RANDOM WEIGHTS: in no file were {_listed(result.loaded['missing'])} tensors; they "
            f"come from --random-init {result.loaded['random_init_seed']}, so masks of this bundle "
            "mean nothing"
        )
    if result.num_expressions:
        click.echo(f"text cache: {result.num_expressions} expressions")
    click.echo(f"bundle: {result.bundle}")
    click.echo(f"bundle id: {result.bundle_id}")


def _listed(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
    return f"{len(keys)} ({shown})" if keys else "0"


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "export", "refsam-export")
