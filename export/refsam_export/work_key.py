"""What an export depends on (options, contents of files, code), and what it will need."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from refsam_export.files.tensor_files import describe
from refsam_export.files.work_folder import Key
from refsam_export.needs.estimate import Needs, Sizes, estimate
from refsam_export.needs.machine import num_cores
from refsam_export.refsam.model.config import preset
from refsam_export.request import ExportRequest
from refsam_export.text.encoders import small_text_source, text_folder_config, text_folder_files
from refsam_export.text.presets import random_preset, t5_config
from refsam_trt.bundle.folder import sha256_of_file
from refsam_trt.versions import OWN, version_of

_PACKAGES = ("refsam_export", "refsam_trt")
# Where the bundle goes and how it gets there changes nothing in it.
_NOT_OPTIONS = ("output", "overwrite", "resume")
_FILES = ("sam_checkpoint", "checkpoint", "parts", "text_encoder", "expressions")


def work_key(request: ExportRequest, tools: tuple[str, ...]) -> Key:
    """Return the key of a request; its files are hashed.

    Args:
        request: of the export.
        tools: packages whose versions count.

    Raises:
        CheckpointError: the folder of the text encoder is not whole.
        UsageError: a text encoder's size without random weights.
    """
    options = {
        f"--{field.name.replace('_', '-')}": repr(getattr(request, field.name))
        for field in dataclasses.fields(request)
        if field.name not in (*_NOT_OPTIONS, *_FILES)
    }
    sources = [describe(role, path) for role, path in _inputs(request) if path.is_file()]
    inputs = {
        f"{source.role} {number} ({source.name})": source.sha256
        for number, source in enumerate(sources, start=1)
    }
    preset = random_preset(request.text_encoder, request.random_init)
    return {
        **options,
        **inputs,
        **{f"version of {name}": version_of(name) for name in (OWN, *tools)},
        "--text-encoder": preset or "a folder or none",
        "code of this version": _code(),
    }


def needs_of(request: ExportRequest) -> Needs:
    """Return what an export will take on this machine; no weights are read.

    Raises:
        UsageError: there is no such preset.
        CheckpointError: the folder of the text encoder is not whole.
    """
    config = preset(request.backbone)
    random_text = random_preset(request.text_encoder, request.random_init)
    if random_text:
        text_config = t5_config(random_text)
    elif request.text_encoder is not None:
        text_config = text_folder_config(request.text_encoder)
    else:
        text_config = small_text_source(config.preset).config
    return estimate(
        Sizes.of(config, text_config),
        attention=request.attention,
        precisions=request.precisions,
        num_frames=request.parity_frames,
        is_random=request.random_init is not None,
        has_random_text=random_text is not None,
        include_source=request.include_source,
        num_cores=num_cores(),
    )


def _inputs(request: ExportRequest) -> Iterator[tuple[str, Path]]:
    """Yield role and path of every file; one that is not there is for the loading to refuse."""
    for role in ("sam_checkpoint", "checkpoint", "expressions"):
        if (path := getattr(request, role)) is not None:
            yield role, path
    for path in request.parts:
        yield "part", path
    folder = request.text_encoder
    if folder is not None and not random_preset(folder, request.random_init):
        for path in text_folder_files(folder):
            yield "text_encoder", path


def _code() -> str:
    """Return a hash of our own modules: a checkout changes without changing its version."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)} {sha256_of_file(path)}\n".encode())
    return digest.hexdigest()
