"""Checkpoint -> bundle: graphs, proof, manifest, and nothing at all when the proof fails.

Stage by stage in a working folder beside the output (`files.work_folder`), so that an export that
was ended goes on where it was. The model is loaded when the first stage asks for it, its text
encoder is gone when frames are encoded, and all of it when ONNX Runtime begins.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from refsam_export.files.work_folder import Unkept, kept_bytes, open_work
from refsam_export.model_stages import TOOLS, ModelStages, Report
from refsam_export.needs.machine import num_cores
from refsam_export.needs.outlook import FrameLines, TimedStages, say_needs
from refsam_export.parity.compare import compare
from refsam_export.parity.figures import Parity
from refsam_export.parity.half import HalfParity
from refsam_export.parity.reference import NUM_IMAGES
from refsam_export.request import ExportRequest, ExportResult
from refsam_export.text.known_text import (
    TEXT_CACHE,
    clean_expressions,
    without_text_encoder,
    write_known_expressions,
)
from refsam_export.work_key import needs_of, work_key
from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.command.in_process import in_process
from refsam_trt.contract.manifest import Manifest
from refsam_trt.contract.refsam import GRAPHS
from refsam_trt.errors import ParityError
from refsam_trt.files.target import refuse_folder
from refsam_trt.run.expressions_file import read_expressions


def export_bundle(request: ExportRequest, report: Report) -> ExportResult:
    """Export a model and prove it.

    Args:
        request: what to export and where to.
        report: called with one line per stage.

    Raises:
        ParityError: graphs or chain differ from the reference by more than allowed.
        CheckpointError: weights that cannot be used.
        UsageError, ExpressionError: a file of expressions that cannot be read or used, or an
            unfinished export that was asked for something else.
        OutputError: the output exists already, or cannot be written.
        OSError: no space left beside the output.
    """
    refuse_folder(request.output, overwrite=request.overwrite, marker=MANIFEST_FILE)
    lines = read_expressions(request.expressions) if request.expressions else []
    needs, cores = needs_of(request), num_cores()
    kept = kept_bytes(request.output) if request.resume else 0
    say_needs(needs, request.output.parent, cores, report, kept_bytes=kept)
    key = work_key(request, TOOLS)
    with open_work(
        request.output, key, resume=request.resume, final=ParityError, report=report
    ) as work:
        stages = TimedStages(work, needs, len(GRAPHS) * len(request.precisions), report)
        return _proven_bundle(ModelStages(request, stages, work.folder, report), lines)


def export_unproven(request: ExportRequest, report: Report) -> Bundle:
    """Export a model and compare its graphs with nothing: `manifest.parity` is empty.

    For measurements that make their own comparison, on hardware where the graphs are to run. Known
    expressions and a missing text encoder are not for such bundles and are ignored.

    Raises:
        CheckpointError: weights that cannot be used.
        OutputError: the output exists already, or cannot be written.
    """
    refuse_folder(request.output, overwrite=request.overwrite, marker=MANIFEST_FILE)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=request.output.parent) as scratch:
        export = ModelStages(request, Unkept(), Path(scratch), report)
        manifest, files = export.written()
        export.free()
        return write_bundle(
            request.output, manifest=manifest, files=files, overwrite=request.overwrite
        )


def _proven_bundle(export: ModelStages, lines: list[tuple[int, str]]) -> ExportResult:
    request, folder, report = export.request, export.folder, export.report
    known = clean_expressions(str(request.expressions), lines, export.tokenizer)
    manifest, files = export.written()
    reference = export.reference()
    half = export.half(reference)
    export.free()
    report("comparing the graphs with the reference in a process of their own")
    staged = _staged(folder, manifest, files)
    figures = _compared(export, staged, half, reference)
    if known:
        report(f"embedding {len(known)} expressions of {len(lines)} lines")
        write_known_expressions(folder / TEXT_CACHE, staged, export.tokenizer, known)
    manifest, files = _proven(request, staged, figures, folder)
    bundle = write_bundle(
        request.output, manifest=manifest, files=files, overwrite=request.overwrite
    )
    summary = export.facts.summary
    return ExportResult(bundle.folder, bundle.bundle_id, figures, summary, len(known))


def _staged(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Bundle:
    """Return a bundle without figures; the files of finished stages stay where they are too."""
    links = folder / "links"
    for old in (links, folder / "staged"):
        shutil.rmtree(old, ignore_errors=True)
    linked = {}
    for number, (name, path) in enumerate(files.items()):
        linked[name] = links / str(number)
        links.mkdir(exist_ok=True)
        try:
            os.link(path, linked[name])
        except OSError:  # a file system without links
            shutil.copy2(path, linked[name])
    return write_bundle(folder / "staged", manifest=manifest, files=linked)


def _proven(
    request: ExportRequest, staged: Bundle, figures: dict[str, Any], folder: Path
) -> tuple[Manifest, dict[str, Path]]:
    """Return manifest and files of the bundle that is handed out, now that it is proven."""
    manifest = msgspec.structs.replace(staged.manifest, parity=figures)
    files = {name: staged.folder / name for name in manifest.files}
    if request.expressions is not None:
        manifest = msgspec.structs.replace(manifest, text_cache=TEXT_CACHE)
        files[TEXT_CACHE] = folder / TEXT_CACHE
    if request.without_text_encoder:
        manifest, unused = without_text_encoder(manifest, staged.external_data)
        files = {name: path for name, path in files.items() if name not in unused}
    return manifest, files


def _compared(
    export: ModelStages, staged: Bundle, half: Mapping[str, HalfParity], reference: Path
) -> dict[str, Any]:
    """Return the figures of each variant.

    Raises:
        ParityError: one is out of bounds.
    """
    figures = {}
    num_calls = NUM_IMAGES + 2 + export.request.parity_frames
    for precision in export.request.precisions:
        variant, judged = export.request.form.variant(precision), half.get(precision)
        parts = judged.parts if judged else []
        if precision == "bf16":  # no CPU provider runs it, so that PyTorch alone is the judge
            figures[variant] = parts[0].to_json()
        else:

            def measure(variant: str = variant) -> Parity:
                watch = FrameLines(f"comparison of {variant}", num_calls)
                return in_process(compare, staged.folder, reference, variant, watch=watch)

            parity = export.stages.run(f"comparison of {variant}", Parity, [], measure)
            parts = [parity, *parts]
            figures[variant] = parity.to_json() | (judged.to_json() if judged else {})
        for part in parts:
            export.report(part.verdict)
        if failed := [part.verdict for part in parts if not part.passed]:
            raise ParityError(f"{failed[0]}; no bundle was written")
    return figures
