"""`refsam-bench accuracy`: score a folder of results, or run a bundle and score it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.progress import Progress
from refsam_trt.command.types import PATH
from refsam_trt.errors import UsageError


@click.command()
@click.option("--results", type=PATH, help="Folder of label maps to score.")
@click.option("--annotations", type=PATH, help="Folder of the true label maps.")
@click.option(
    "--protocol",
    type=click.Choice(["davis-semi", "davis-unsup", "per-expression"]),
    default="davis-semi",
    help="For --results: which masks are compared and which frames count.",
)
@click.option("--bundle", help="Bundle to run and score: a folder, or nano.")
@click.option("--dataset", type=click.Choice(["synthetic", "ref-davis"]), help="What to run it on.")
@click.option("--root", type=PATH, help="Folder of ref-davis.")
@options.synthetic_seed
@options.num_synthetic
@options.slices
@click.option(
    "--probe",
    type=click.Choice(["none", "sibling", "forget"]),
    default="none",
    help="sibling: say another object's expression; forget: no track token in any frame.",
)
@click.option(
    "--blind",
    type=click.Choice(["largest", "centre", "all"]),
    help="Of synthetic: instead of a bundle, score an object chosen whatever is said, with its "
    "true masks.",
)
@click.option(
    "--track-state-scope",
    type=click.Choice(["expression", "object"]),
    default="expression",
    help="Of ref-davis; object: annotators share the tokens of an object, as in the released "
    "scripts.",
)
@click.option(
    "--reference", "is_reference", is_flag=True, help="Score the PyTorch reference instead."
)
@click.option("--source", type=PATH, help="For --reference: folder of the PyTorch weights.")
@options.backend
@options.variant
@options.precision
@options.as_json
def accuracy(as_json: bool, **choices: Any) -> None:
    """Score masks by J (region) and F (boundary) as the official DAVIS-2017 code does.

    Either --results and --annotations, or --bundle and --dataset. Figures are 0 to 1.
    Ref-YouTube-VOS has no public annotations: write results with refsam-run --dataset and upload
    them.
    """
    if choices["blind"]:
        figures = _score_blind(choices)
    else:
        figures = _score_folder(choices) if choices["results"] else _score_bundle(choices)
    if as_json:
        click.echo(json.dumps(figures))
        return
    if figures.get("random_weights"):
        click.echo(options.RANDOM_NOTE)
    rows = {**figures.get("slices", {}), **figures["sequences"], "all": figures}
    click.echo(f"{'':24} {'J&F':>7} {'J':>7} {'F':>7}")
    for name, row in rows.items():
        click.echo(f"{name:24} {row['j_and_f']:7.4f} {row['j']:7.4f} {row['f']:7.4f}")
    if left_out := figures["unscored_sequences"]:
        click.echo(f"annotated, but without results: {', '.join(left_out)}")


def _score_folder(choices: dict[str, Any]) -> dict[str, Any]:
    from refsam_bench.accuracy.protocols import score_results

    if choices["annotations"] is None or choices["bundle"] is not None:
        raise UsageError("--results needs --annotations, and goes without --bundle")
    return score_results(choices["results"], choices["annotations"], choices["protocol"]).to_json()


def _score_blind(choices: dict[str, Any]) -> dict[str, Any]:
    from refsam_bench.datasets.synthetic import SyntheticRequest, score_blind, to_json

    if choices["dataset"] != "synthetic" or choices["bundle"] or choices["results"]:
        raise UsageError("--blind needs --dataset synthetic, and goes without a bundle or results")
    slices: Any = tuple(choices["slices"].split(","))
    request = SyntheticRequest(choices["seed"], choices["num_videos"], slices)
    with Progress("refsam-bench accuracy", request.num_videos) as progress:
        scores = score_blind(choices["blind"], request, progress.update)
    return {"blind": choices["blind"], **to_json(scores, request)}


def _score_bundle(choices: dict[str, Any]) -> dict[str, Any]:
    if choices["bundle"] is None or choices["dataset"] is None:
        raise UsageError("give --results and --annotations, or --bundle and --dataset")
    if (choices["root"] is not None) != (choices["dataset"] == "ref-davis"):
        raise UsageError("--root is needed for --dataset ref-davis, and for no other")
    choices["bundle"] = bundle_folder(choices["bundle"])
    if choices["dataset"] == "ref-davis":
        if choices["is_reference"] or choices["probe"] != "none":
            raise UsageError("--reference and --probe work on --dataset synthetic only")
        return _score_ref_davis(choices)
    if choices["track_state_scope"] != "expression":
        raise UsageError("--track-state-scope object works on --dataset ref-davis only")
    return _score_synthetic(choices)


def _score_ref_davis(choices: dict[str, Any]) -> dict[str, Any]:
    from refsam_bench.accuracy.ref_davis import load_ref_davis, score_ref_davis
    from refsam_trt.run.jobs import RunRequest
    from refsam_trt.run.runner import run

    root = choices["root"]
    load_ref_davis(root)
    with tempfile.TemporaryDirectory(prefix="refsam-accuracy-") as scratch:
        results = Path(scratch) / "results"
        report = run(
            RunRequest(
                choices["bundle"],
                str(root),
                (),
                results,
                dataset="ref-davis",
                backend=choices["backend"],
                variant=choices["variant"],
                precision=choices["precision"],
                track_state_scope=choices["track_state_scope"],
            )
        )
        if report.interruption is not None:
            raise report.interruption
        scores = score_ref_davis(results, root / "valid" / "Annotations")
    return {
        "dataset": "ref-davis",
        "track_state_scope": choices["track_state_scope"],
        "bundle_id": report.bundle_id,
        "variant": report.variant,
        "precision": report.precision,
        "backend": report.backend,
        "random_weights": report.is_random_init,
        **scores.to_json(),
    }


def _score_synthetic(choices: dict[str, Any]) -> dict[str, Any]:
    import refsam_trt
    from refsam_bench.datasets.synthetic import SyntheticRequest, score_synthetic, to_json
    from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker, Tracker
    from refsam_export.source import load_source
    from refsam_trt.bundle.open import open_bundle

    slices: Any = tuple(choices["slices"].split(","))
    request = SyntheticRequest(choices["seed"], choices["num_videos"], slices, choices["probe"])
    bundle = open_bundle(choices["bundle"])
    with refsam_trt.load(
        bundle,
        backend=choices["backend"],
        variant=choices["variant"],
        precision=choices["precision"],
        text="resident",
    ) as engine:
        tracker: Tracker = EngineTracker(engine)
        if choices["is_reference"]:
            tracker = ReferenceTracker(load_source(bundle, choices["source"]))
        with Progress("refsam-bench accuracy", request.num_videos) as progress:
            scores = score_synthetic(tracker, request, progress.update)
        return {
            "bundle_id": engine.bundle_id,
            "variant": None if choices["is_reference"] else engine.variant,
            "precision": "fp32" if choices["is_reference"] else engine.precision,
            "backend": "pytorch" if choices["is_reference"] else engine.backend,
            "random_weights": engine.is_random_init,
            **to_json(scores, request),
        }
