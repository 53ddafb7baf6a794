"""`refsam-build`: bundle -> plans for TensorRT or TensorRT-RTX."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from refsam_trt.command.ending import run_command
from refsam_trt.command.types import PATH

_NAME = "refsam-build"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _size(name: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(f"--max-{name}", type=click.IntRange(min=1), metavar="NUMBER", help=text)


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=PATH)
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="tensorrt builds on the GPU that is to run the plans; tensorrt-rtx builds anywhere, for "
    "RTX GPUs.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8"]),
    help="Which variant of the bundle to build; precision lies in the graphs.",
)
@click.option("--output", type=PATH, help="Folder of the plans; must not exist.")
@click.option(
    "--attention",
    type=click.Choice(["augmented", "bias", "reference"]),
    help="Form of the attention.  [default: augmented where the bundle has it]",
)
@click.option(
    "--split",
    type=click.Choice(["optimised", "baseline"]),
    help="Split of the graphs.  [default: optimised where the bundle has it]",
)
@_size("frames", "Frames encoded at once.  [default: 1, as the runtime does]")
@_size("texts", "Expressions embedded at once.  [default: 1, as the runtime does]")
@_size("expressions", "Expressions decoded at once.  [default: the bundle's limit]")
@_size("words", "Tokens of an expression.  [default: the bundle's limit]")
@click.option("--workspace-mib", type=click.IntRange(min=1), help="Limit on scratch memory.")
@click.option(
    "--tf32", "has_tf32", is_flag=True, help="Let fp32 products be rounded to TF32 (10 bits)."
)
@click.option(
    "--timing-cache",
    type=PATH,
    help="File that keeps measured kernel times from build to build (tensorrt).",
)
@click.option("--overwrite", is_flag=True, help="Replace existing plans.")
@click.option(
    "--inspect",
    is_flag=True,
    help="Print layers, types, fused attention and memory; with a folder of plans as BUNDLE and no "
    "other option, build nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.version_option(package_name="refsam-trt")
def command(bundle: Path, inspect: bool, as_json: bool, **options: Any) -> None:
    """Build the plans of a BUNDLE: one per graph, for one TensorRT, one precision, one GPU family.

    Exit codes: 0 done, 2 unusable input or a graph that cannot be built.
    """
    from refsam_trt.bundle.plans import is_plans, open_plans

    plans = open_plans(bundle) if inspect and is_plans(bundle) else _build(bundle, options)
    if as_json:
        from msgspec import to_builtins

        ids = {"plans": str(plans.folder), "plan_id": plans.plan_id}
        click.echo(json.dumps({**ids, "manifest": to_builtins(plans.manifest)}))
        return
    if inspect:
        from refsam_engines.inspect import report_lines

        click.echo("\n".join(report_lines(plans.manifest)))
    click.echo(f"plans: {plans.folder}")
    click.echo(f"plan id: {plans.plan_id}")


def _build(bundle: Path, options: dict[str, Any]) -> Any:
    from refsam_engines.build import BuildOptions
    from refsam_engines.plans import BuildStopped, PlanRequest, build_plans
    from refsam_trt.command.progress import Progress
    from refsam_trt.run.interruption import Interruption

    for name in ("backend", "precision", "output"):
        if options[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")
    of_build = {name: options.pop(name) for name in ("has_tf32", "workspace_mib", "timing_cache")}
    with Interruption() as interruption, Progress(_NAME, None) as progress:
        build_options = BuildOptions(
            **of_build,
            on_progress=lambda phase: progress.update(1, phase),
            should_stop=lambda: interruption.reason is not None,
        )
        request = PlanRequest(bundle=bundle, options=build_options, **options)
        try:
            return build_plans(request, lambda line: click.echo(f"{_NAME}: {line}", err=True))
        except BuildStopped as stopped:
            raise interruption.reason or stopped from None


def main() -> None:
    """Entry point of the console script."""
    run_command(command, "cpu", _NAME)
