"""Checkpoint -> bundle: graphs, proof, manifest, and nothing at all when the proof fails."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from refsam_export.onnx.weight_storage import check_exact_fp16
from refsam_export.parity.compare import compare
from refsam_export.parity.half import HalfParity, half_figures
from refsam_export.parity.reference import write_reference
from refsam_export.precision.policy import POLICIES
from refsam_export.refsam.checkpoint import (
    LoadedModel,
    canonical_tensors,
    load_model,
    save_source,
)
from refsam_export.refsam.programs import Programs, trace_graphs
from refsam_export.request import ExportRequest, ExportResult
from refsam_export.text.known_text import (
    TEXT_CACHE,
    clean_expressions,
    without_text_encoder,
    write_known_expressions,
)
from refsam_export.text.presets import random_preset, t5_config
from refsam_export.variants import write_variants
from refsam_trt.bundle.folder import MANIFEST_FILE
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.command.in_process import in_process
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import (
    SCHEMA_VERSION,
    Limits,
    Manifest,
    StateEntry,
    Tokenizer,
    Variant,
)
from refsam_trt.errors import ParityError, UsageError
from refsam_trt.files.target import refuse_folder
from refsam_trt.run.expressions_file import read_expressions
from refsam_trt.text.tokenizer import Tokenizer as TextTokenizer
from refsam_trt.versions import OWN, version_of

_TOKENIZER = "tokenizer.json"
_TOOLS = (
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "transformers",
    "segment-anything",
    "tokenizers",
    "numpy",
)
Report = Callable[[str], None]


def export_bundle(request: ExportRequest, report: Report) -> ExportResult:
    """Export a model and prove it.

    Args:
        request: what to export and where to.
        report: called with one line per stage.

    Raises:
        ParityError: graphs or chain differ from the reference by more than allowed.
        CheckpointError: weights that cannot be used.
        UsageError, ExpressionError: a file of expressions that cannot be read or used.
        OutputError: the output exists already, or cannot be written.
        OSError: no space left beside the output.
    """
    refuse_folder(request.output, overwrite=request.overwrite, marker=MANIFEST_FILE)
    lines = read_expressions(request.expressions) if request.expressions else []
    with tempfile.TemporaryDirectory(prefix=".export-", dir=request.output.parent) as scratch:
        folder = Path(scratch)
        loaded = _loaded(request, folder, report)
        summary = _summary(loaded)
        tokenizer = _write_tokenizer(loaded, folder)
        known = clean_expressions(str(request.expressions), lines, tokenizer)
        programs, files, manifest = _written(loaded, request, folder, report)
        report(f"running the PyTorch reference over {request.parity_frames} frames")
        reference = folder / "reference"
        reference.mkdir()
        write_reference(loaded, request.split, request.parity_frames, reference, frees_text=True)
        half = _judge_half(loaded, request, programs, reference, report)
        del loaded, programs
        gc.collect()
        report("comparing the graphs with the reference in a process of their own")
        staged = write_bundle(folder / "staged", manifest=manifest, files=files)
        figures = _compared(staged, request, half, reference, report)
        if known:
            report(f"embedding {len(known)} expressions of {len(lines)} lines")
            write_known_expressions(folder / TEXT_CACHE, staged, tokenizer, known)
        manifest, files = _proven(request, staged, figures, folder)
        bundle = write_bundle(
            request.output, manifest=manifest, files=files, overwrite=request.overwrite
        )
    return ExportResult(bundle.folder, bundle.bundle_id, figures, summary, len(known))


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
        folder = Path(scratch)
        loaded = _loaded(request, folder, report)
        _write_tokenizer(loaded, folder)
        _, files, manifest = _written(loaded, request, folder, report)
        return write_bundle(
            request.output, manifest=manifest, files=files, overwrite=request.overwrite
        )


def _loaded(request: ExportRequest, folder: Path, report: Report) -> LoadedModel:
    random_text = random_preset(request.text_encoder, request.random_init)
    report(f"loading weights for {request.backbone}")
    loaded = load_model(
        request.backbone,
        sam_checkpoint=request.sam_checkpoint,
        checkpoint=request.checkpoint,
        parts=request.parts,
        text_encoder=None if random_text else request.text_encoder,
        random_init=request.random_init,
        random_text=random_text,
        scratch=folder,
        asked=request.asked,
    )
    if random_text and loaded.text_config != t5_config(random_text):
        raise UsageError(
            f"{request.checkpoint} holds a text encoder of its own; leave out --text-encoder "
            f"{random_text}"
        )
    for warning in loaded.warnings:
        report(f"warning: {warning}")
    if request.weight_storage == "fp16":
        check_exact_fp16(canonical_tensors(loaded.model))
    return loaded


def _write_tokenizer(loaded: LoadedModel, folder: Path) -> TextTokenizer:
    path = folder / _TOKENIZER
    # Not `Tokenizer.save`, which raises a bare Exception when the disk is full.
    path.write_text(loaded.tokenizer.to_str(pretty=True), encoding="utf-8")
    return TextTokenizer(path, lowercase=loaded.model.config.lowercase, max_words=refsam.MAX_WORDS)


def _written(
    loaded: LoadedModel, request: ExportRequest, folder: Path, report: Report
) -> tuple[Programs, dict[str, Path], Manifest]:
    """Return what half precisions are made from, and files and manifest of a bundle of them all."""
    programs: Programs = {}
    if not POLICIES.keys().isdisjoint(request.precisions):
        report("tracing the graphs")
        programs = trace_graphs(loaded.model, request.split, request.attention, request.rewrites)
    written = write_variants(
        loaded.model, programs, request.form, request.precisions, folder, report
    )
    files = {**written.files, _TOKENIZER: folder / _TOKENIZER}
    source = "source.safetensors" if request.include_source else None
    if source:
        files[source] = folder / source
        save_source(files[source], loaded, as_fp16=request.weight_storage == "fp16")
    return programs, files, _manifest(loaded, written.variants, source)


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


def _judge_half(
    loaded: LoadedModel,
    request: ExportRequest,
    programs: Programs,
    reference: Path,
    report: Report,
) -> dict[str, HalfParity]:
    """Return per half precision what PyTorch says of it."""
    half = {}
    for precision in request.precisions:
        if precision in POLICIES:
            report(f"judging {precision} in PyTorch")
            variant, policy = request.form.variant(precision), POLICIES[precision]
            half[precision] = half_figures(
                variant, loaded, request.split, programs, policy, reference
            )
    return half


def _compared(
    staged: Bundle,
    request: ExportRequest,
    half: dict[str, HalfParity],
    reference: Path,
    report: Report,
) -> dict[str, Any]:
    """Return the figures of each variant.

    Raises:
        ParityError: one is out of bounds.
    """
    figures = {}
    for precision in request.precisions:
        variant, judged = request.form.variant(precision), half.get(precision)
        parts = judged.parts if judged else []
        if precision == "bf16":  # no CPU provider runs it, so that PyTorch alone is the judge
            figures[variant] = parts[0].to_json()
        else:
            parity = in_process(compare, staged.folder, reference, variant)
            parts = [parity, *parts]
            figures[variant] = parity.to_json() | (judged.to_json() if judged else {})
        for part in parts:
            report(part.verdict)
        if failed := [part.verdict for part in parts if not part.passed]:
            raise ParityError(f"{failed[0]}; no bundle was written")
    return figures


def _manifest(loaded: LoadedModel, variants: dict[str, Variant], source: str | None) -> Manifest:
    config = loaded.model.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        family=refsam.FAMILY,
        preset=config.preset,
        configuration={"model": config.to_json(), "text_encoder": loaded.text_config},
        weights=loaded.weights,
        tools={name: version_of(name) for name in (OWN, *_TOOLS)},
        preprocess=config.preprocess,
        tokenizer=Tokenizer(_TOKENIZER, config.lowercase, loaded.pad_id),
        variants=variants,
        state=(StateEntry(*refsam.STATE),),
        limits=Limits(refsam.MAX_FRAMES, refsam.MAX_EXPRESSIONS, refsam.MAX_WORDS),
        parity={},
        files={},
        source=source,
    )


def _summary(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "files": [asdict(report) for report in loaded.reports],
        "num_missing": len(loaded.missing),
        "missing": list(loaded.missing),
        "random_init_seed": loaded.weights.random_init_seed,
        "warnings": list(loaded.warnings),
    }
