"""Checkpoint -> bundle: graphs, proof, manifest, and nothing at all when the proof fails."""

from __future__ import annotations

import gc
import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from refsam_export.checkpoint import (
    LoadedModel,
    canonical_tensors,
    load_model,
    save_source,
)
from refsam_export.configuration import Asked
from refsam_export.graphs import build_graphs
from refsam_export.known_text import (
    TEXT_CACHE,
    clean_expressions,
    without_text_encoder,
    write_known_expressions,
)
from refsam_export.onnx_export import OPSET, export_graph
from refsam_export.parity.process import compare_in_process, verdict
from refsam_export.parity.reference import write_reference
from refsam_export.weight_storage import WeightStorage, check_exact_fp16
from refsam_trt.bundle import Bundle
from refsam_trt.bundle_writer import check_target, write_bundle
from refsam_trt.errors import ParityError, UsageError
from refsam_trt.families import refsam
from refsam_trt.manifest import (
    SCHEMA_VERSION,
    GraphEntry,
    Limits,
    Manifest,
    StateEntry,
    Tokenizer,
    Variant,
)
from refsam_trt.text import Tokenizer as TextTokenizer
from refsam_trt.text_file import read_expressions

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
_LIMITS = {"M": refsam.MAX_FRAMES, "B": refsam.MAX_EXPRESSIONS, "N": refsam.MAX_WORDS}

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What `refsam-export` was asked for; see its `--help` for every field.

    `asked`: fields of the configuration, as `configuration.asked_for` returns them.

    Raises:
        UsageError: neither a text encoder nor expressions to know without one.
    """

    backbone: str
    output: Path
    sam_checkpoint: Path | None = None
    checkpoint: Path | None = None
    parts: tuple[Path, ...] = ()
    text_encoder: Path | None = None
    asked: Asked = field(default_factory=dict)
    random_init: int | None = None
    split: refsam.Split = "optimised"
    attention: str = "augmented"
    parity_frames: int = 5
    expressions: Path | None = None
    without_text_encoder: bool = False
    include_source: bool = False
    weight_storage: WeightStorage = "fp32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.without_text_encoder and self.expressions is None:
            raise UsageError(
                "a bundle without text encoder knows only the expressions that it is given; add "
                "--expressions FILE, or leave --without-text-encoder out"
            )


@dataclass(frozen=True)
class ExportResult:
    """What was written: folder, bundle id, parity figures, and where the weights are from.

    `num_expressions` is how many the bundle knows without its text encoder.
    """

    bundle: Path
    bundle_id: str
    parity: dict[str, Any]
    loaded: dict[str, Any]
    num_expressions: int


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
    check_target(request.output, overwrite=request.overwrite)
    lines = read_expressions(request.expressions) if request.expressions else []
    with tempfile.TemporaryDirectory(prefix=".export-", dir=request.output.parent) as scratch:
        folder = Path(scratch)
        report(f"loading weights for {request.backbone}")
        loaded = load_model(
            request.backbone,
            sam_checkpoint=request.sam_checkpoint,
            checkpoint=request.checkpoint,
            parts=request.parts,
            text_encoder=request.text_encoder,
            random_init=request.random_init,
            asked=request.asked,
        )
        for warning in loaded.warnings:
            report(f"warning: {warning}")
        if request.weight_storage == "fp16":
            check_exact_fp16(canonical_tensors(loaded.model))
        summary = _summary(loaded)
        tokenizer = _write_tokenizer(loaded, folder)
        known = clean_expressions(str(request.expressions), lines, tokenizer)
        files, manifest = _write_graphs(loaded, request, folder, report)
        report(f"running the PyTorch reference over {request.parity_frames} frames")
        reference = folder / "reference"
        reference.mkdir()
        write_reference(
            loaded.model, loaded.tokenizer, request.split, request.parity_frames, reference
        )
        del loaded
        gc.collect()
        report("comparing the graphs with the reference in a process of their own")
        staged = write_bundle(folder / "staged", manifest=manifest, files=files)
        figures = compare_in_process(staged.folder, reference)
        report(verdict(figures))
        if not figures["passed"]:
            raise ParityError(f"{verdict(figures)}; no bundle was written")
        if known:
            report(f"embedding {len(known)} expressions of {len(lines)} lines")
            write_known_expressions(folder / TEXT_CACHE, staged, tokenizer, known)
        manifest, files = _proven(request, staged, figures, folder)
        bundle = write_bundle(
            request.output, manifest=manifest, files=files, overwrite=request.overwrite
        )
    return ExportResult(bundle.folder, bundle.bundle_id, figures, summary, len(known))


def _write_tokenizer(loaded: LoadedModel, folder: Path) -> TextTokenizer:
    path = folder / _TOKENIZER
    # Not `Tokenizer.save`, which raises a bare Exception when the disk is full.
    path.write_text(loaded.tokenizer.to_str(pretty=True), encoding="utf-8")
    return TextTokenizer(path, lowercase=loaded.model.config.lowercase, max_words=refsam.MAX_WORDS)


def _proven(
    request: ExportRequest, staged: Bundle, figures: dict[str, Any], folder: Path
) -> tuple[Manifest, dict[str, Path]]:
    """Return manifest and files of the bundle that is handed out, now that it is proven."""
    manifest = msgspec.structs.replace(staged.manifest, parity={figures["variant"]: figures})
    files = {name: staged.folder / name for name in manifest.files}
    if request.expressions is not None:
        manifest = msgspec.structs.replace(manifest, text_cache=TEXT_CACHE)
        files[TEXT_CACHE] = folder / TEXT_CACHE
    if request.without_text_encoder:
        manifest, unused = without_text_encoder(manifest, staged.external_data)
        files = {name: path for name, path in files.items() if name not in unused}
    return manifest, files


def _write_graphs(
    loaded: LoadedModel, request: ExportRequest, folder: Path, report: Report
) -> tuple[dict[str, Path], Manifest]:
    config = loaded.model.config
    spec = refsam.contract(
        config.image_size, config.grid_size, request.split, hda_levels=config.hda_levels
    )
    variant = f"fp32-{request.attention}-{request.split}"
    files: dict[str, Path] = {}
    entries: dict[str, GraphEntry] = {}
    for name, module in build_graphs(loaded.model, request.split, request.attention).items():
        report(f"exporting {name}")
        path = folder / f"{name}.onnx"
        counts = export_graph(module, spec[name], path, _LIMITS, request.weight_storage)
        file = f"graphs/{variant}/{path.name}"
        entries[name] = GraphEntry(file, spec[name], counts)
        files[file] = path
        files[f"{file}.data"] = path.with_name(f"{path.name}.data")
    files[_TOKENIZER] = folder / _TOKENIZER
    source = "source.safetensors" if request.include_source else None
    if source:
        files[source] = folder / source
        save_source(files[source], loaded, as_fp16=request.weight_storage == "fp16")
    storage = "fp16" if request.weight_storage == "fp16" else None
    graphs = Variant("fp32", request.attention, request.split, OPSET, entries, storage)
    return files, _manifest(loaded, {variant: graphs}, source)


def _manifest(loaded: LoadedModel, variants: dict[str, Variant], source: str | None) -> Manifest:
    config = loaded.model.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        family=refsam.FAMILY,
        preset=config.preset,
        configuration={"model": config.to_json(), "text_encoder": loaded.text_config},
        weights=loaded.weights,
        tools={name: importlib.metadata.version(name) for name in ("refsam-trt", *_TOOLS)},
        preprocess=config.preprocess,
        tokenizer=Tokenizer(_TOKENIZER, config.lowercase, loaded.pad_id),
        variants=variants,
        state=(StateEntry("track_token", "next_track_token", "has_track"),),
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
