"""The stages of an export that need PyTorch: model, graphs, source, reference, half precision.

The model is loaded when the first of them asks for it, its text encoder is gone when frames are
encoded.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from refsam_export.files.work_folder import DESCRIPTION, Stages
from refsam_export.needs.outlook import FrameLines
from refsam_export.onnx.weight_storage import check_exact_fp16
from refsam_export.parity.compare import RECORD, TENSORS
from refsam_export.parity.half import HalfParity, half_figures
from refsam_export.parity.reference import write_reference
from refsam_export.precision.policy import POLICIES
from refsam_export.refsam.checkpoint import (
    LoadedModel,
    canonical_tensors,
    load_model,
    save_source,
)
from refsam_export.refsam.model.config import ModelConfig
from refsam_export.refsam.programs import release
from refsam_export.request import ExportRequest
from refsam_export.text.presets import random_preset, t5_config
from refsam_export.variants import ModelGraphs, write_variants
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import (
    SCHEMA_VERSION,
    Limits,
    Manifest,
    Record,
    StateEntry,
    Tokenizer,
)
from refsam_trt.errors import UsageError
from refsam_trt.text.tokenizer import Tokenizer as TextTokenizer
from refsam_trt.versions import OWN, version_of

_TOKENIZER, _SOURCE, _REFERENCE = "tokenizer.json", "source.safetensors", "reference"
TOOLS = (
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


class Facts(Record, frozen=True):
    """What a bundle says of its model: a manifest without graphs, and the command's summary."""

    manifest: Manifest
    summary: dict[str, Any]


class ModelStages:
    """One export in its working folder."""

    def __init__(
        self, request: ExportRequest, stages: Stages, folder: Path, report: Report
    ) -> None:
        self.request, self.stages, self.folder, self.report = request, stages, folder, report
        self._source = ModelGraphs(lambda: self._loaded.model, request.form)
        self.facts = stages.run(DESCRIPTION, Facts, [folder / _TOKENIZER], self._described)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the bundle."""
        lowercase = self.facts.manifest.tokenizer.lowercase
        path = self.folder / _TOKENIZER
        return TextTokenizer(path, lowercase=lowercase, max_words=refsam.MAX_WORDS)

    def written(self) -> tuple[Manifest, dict[str, Path]]:
        """Return manifest and files of a bundle of every variant."""
        request, folder = self.request, self.folder
        config = ModelConfig.from_json(self.facts.manifest.configuration["model"])
        specs = refsam.contract(
            config.image_size, config.grid_size, request.split, hda_levels=config.hda_levels
        )
        written = write_variants(
            self._source, specs, request.form, request.precisions, folder, self.report, self.stages
        )
        files = {**written.files, _TOKENIZER: folder / _TOKENIZER}
        if request.include_source:
            files[_SOURCE] = folder / _SOURCE
            self.stages.run("source", type(None), [files[_SOURCE]], self._save_source)
        return msgspec.structs.replace(self.facts.manifest, variants=written.variants), files

    def reference(self) -> Path:
        """Return the folder of what PyTorch computes."""
        folder = self.folder / _REFERENCE
        names = [folder / name for name in (TENSORS, RECORD)]
        self.stages.run("reference", type(None), names, self._write_reference)
        return folder

    def half(self, reference: Path) -> dict[str, HalfParity]:
        """Return per half precision what PyTorch says of it."""
        judged = {}
        for precision in self.request.precisions:
            if precision in POLICIES:

                def judge(precision: str = precision) -> HalfParity:
                    return self._judge(precision, reference)

                judged[precision] = self.stages.run(
                    f"{precision} in PyTorch", HalfParity, [], judge
                )
        return judged

    def free(self) -> None:
        """Give the memory of the model back."""
        self._source = ModelGraphs(lambda: self._loaded.model, self.request.form)
        if "_loaded" in self.__dict__:
            release(self.__dict__.pop("_loaded").model)
        gc.collect()

    @cached_property
    def _loaded(self) -> LoadedModel:
        return _load(self.request, self.folder, self.report)

    def _described(self) -> Facts:
        loaded = self._loaded
        # Not `Tokenizer.save`, which raises a bare Exception when the disk is full.
        text = loaded.tokenizer.to_str(pretty=True)
        (self.folder / _TOKENIZER).write_text(text, encoding="utf-8")
        source = _SOURCE if self.request.include_source else None
        return Facts(_manifest(loaded, source), _summary(loaded))

    def _save_source(self) -> None:
        as_fp16 = self.request.weight_storage == "fp16"
        save_source(self.folder / _SOURCE, self._loaded, as_fp16=as_fp16)

    def _write_reference(self) -> None:
        request = self.request
        loaded = self._loaded
        self._source.forget_modules()
        self.report(f"running the PyTorch reference over {request.parity_frames} frames")
        folder = self.folder / _REFERENCE
        folder.mkdir(exist_ok=True)
        has_half = not POLICIES.keys().isdisjoint(request.precisions)
        write_reference(
            loaded,
            request.split,
            request.parity_frames,
            folder,
            frees_text=not has_half,
            watch=FrameLines("PyTorch reference", request.parity_frames),
        )

    def _judge(self, precision: str, reference: Path) -> HalfParity:
        self.report(f"judging {precision} in PyTorch")
        variant, policy = self.request.form.variant(precision), POLICIES[precision]
        programs = self._source.programs
        return half_figures(variant, self._loaded, self.request.split, programs, policy, reference)


def _load(request: ExportRequest, folder: Path, report: Report) -> LoadedModel:
    random_text = random_preset(request.text_encoder, request.random_init)
    if random_text:  # of an export that was killed
        shutil.rmtree(folder / random_text, ignore_errors=True)
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


def _manifest(loaded: LoadedModel, source: str | None) -> Manifest:
    config = loaded.model.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        family=refsam.FAMILY,
        preset=config.preset,
        configuration={"model": config.to_json(), "text_encoder": loaded.text_config},
        weights=loaded.weights,
        tools={name: version_of(name) for name in (OWN, *TOOLS)},
        preprocess=config.preprocess,
        tokenizer=Tokenizer(_TOKENIZER, config.lowercase, loaded.pad_id),
        variants={},
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
