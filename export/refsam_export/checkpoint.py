"""From weight files to a model: recognised by their keys, checked, reported (refsam-model 8).

Three kinds: SAM's `.pth` (flat, `image_encoder.` / `prompt_encoder.` / `mask_decoder.`), a Hugging
Face T5 folder, and our own safetensors file, which may also hold the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.model.config import ModelConfig, preset
from refsam_export.model.refsam import RefSam
from refsam_export.realistic_init import realistic_init
from refsam_export.tensor_files import describe, read_metadata, read_tensors, write_tensors
from refsam_export.text_encoders import (
    TEXT_PREFIX,
    TextSource,
    build_text_encoder,
    read_text_folder,
    small_text_source,
    stored_text_source,
)
from refsam_trt.errors import CheckpointError, UsageError
from refsam_trt.manifest import Source, Weights

METADATA_KEY = "refsam"
SOURCE_SCHEMA = 1
_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_SHOWN = 6


@dataclass(frozen=True)
class FileReport:
    """What one source gave: keys used, and keys it holds that the model has no place for."""

    name: str
    kind: str
    num_loaded: int
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to export, and where every tensor of it came from."""

    model: RefSam
    tokenizer: Tokenizer
    text_config: dict[str, Any]
    weights: Weights
    reports: tuple[FileReport, ...]
    missing: tuple[str, ...]


def load_model(
    backbone: str,
    *,
    sam_checkpoint: Path | None = None,
    checkpoint: Path | None = None,
    text_encoder: Path | None = None,
    random_init: int | None = None,
) -> LoadedModel:
    """Build RefSAM and fill it from files, later files over earlier ones.

    Args:
        backbone: preset name.
        sam_checkpoint: SAM's own weights.
        checkpoint: our safetensors file.
        text_encoder: Hugging Face T5 folder.
        random_init: seed with which whatever no file gives is filled; None refuses gaps.

    Raises:
        CheckpointError: unreadable or unsafe file, another preset's, or gaps without `random_init`.
    """
    sources: list[Source] = []
    found: dict[str, Tensor] = {}
    reports: list[FileReport] = []
    config = preset(backbone)
    text: TextSource | None = None
    parts: list[tuple[str, str, dict[str, Tensor]]] = []
    if sam_checkpoint is not None:
        parts.append((str(sam_checkpoint), "SAM", _sam_tensors(sam_checkpoint)))
        sources.append(describe("sam_checkpoint", sam_checkpoint))
    if checkpoint is not None:
        config, text = _own_configuration(checkpoint, config)
        parts.append((str(checkpoint), "RefSAM", read_tensors(checkpoint)))
        sources.append(describe("checkpoint", checkpoint))
    if text_encoder is not None:
        text = read_text_folder(text_encoder)
        assert text.tensors is not None
        tensors = {TEXT_PREFIX + key: value for key, value in text.tensors.items()}
        parts.append((str(text_encoder), "T5", tensors))
        sources.extend(text.sources)
    text = text or small_text_source(config.preset)
    model = empty_model(config, text.config)
    wanted = canonical_tensors(model)
    for name, kind, tensors in parts:
        reports.append(_report(name, kind, tensors, wanted))
        for key in sorted(tensors.keys() & wanted.keys()):
            _check_tensor(f"{name}: {key}", config.preset, tensors[key], wanted[key])
        found.update({key: value for key, value in tensors.items() if key in wanted})
    for key, value in found.items():
        wanted[key].data.copy_(value)
    missing = tuple(sorted(set(wanted) - set(found)))
    if missing and random_init is None:
        raise CheckpointError(_gap_message(missing))
    if missing and random_init is not None:
        realistic_init(model, random_init, only=set(missing))
    weights = Weights(tuple(sources), random_init if missing else None, len(missing))
    return LoadedModel(model, text.tokenizer, text.config, weights, tuple(reports), missing)


def empty_model(config: ModelConfig, text_config: Mapping[str, Any]) -> RefSam:
    """Return a model whose tensors hold no values yet: nothing is initialised to be overwritten."""
    with torch.device("meta"):
        encoder = build_text_encoder(text_config)
        model = RefSam(config, encoder, int(text_config["d_model"]))
    model.to_empty(device="cpu")
    encoder.set_input_embeddings(encoder.shared)  # `to_empty` unties the two embeddings
    return model


def canonical_tensors(model: RefSam) -> dict[str, Tensor]:
    """Return every tensor of the model by canonical key, the tied embedding once."""
    state = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if not k.endswith("encoder.embed_tokens.weight")}


def save_source(path: Path, loaded: LoadedModel) -> None:
    """Write our safetensors file: RefSAM, text encoder, both configurations, the tokenizer."""
    record = {
        "schema": SOURCE_SCHEMA,
        "configuration": loaded.model.config.to_json(),
        "text_encoder": loaded.text_config,
        "tokenizer": loaded.tokenizer.to_str(),
    }
    metadata = {METADATA_KEY: json.dumps(record, sort_keys=True)}
    write_tensors(path, canonical_tensors(loaded.model), metadata)


def _own_configuration(path: Path, config: ModelConfig) -> tuple[ModelConfig, TextSource | None]:
    raw = read_metadata(path).get(METADATA_KEY)
    if raw is None:
        raise CheckpointError(
            f"{path}: not a RefSAM weights file of ours (no {METADATA_KEY!r} metadata); "
            "SAM's weights go to --sam-checkpoint"
        )
    record = _parse_record(raw, path)
    try:
        stored = ModelConfig.from_json(record["configuration"])
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if stored.preset != config.preset:
        raise CheckpointError(
            f"{path}: holds preset {stored.preset!r}, asked for {config.preset!r}; "
            f"use --backbone {stored.preset}"
        )
    if "text_encoder" not in record:
        return stored, None
    return stored, stored_text_source(record["text_encoder"], record.get("tokenizer"), str(path))


def _parse_record(raw: str, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(raw)
        if record["schema"] != SOURCE_SCHEMA:
            raise CheckpointError(
                f"{path}: schema {record['schema']}, this version reads {SOURCE_SCHEMA}"
            )
        if not isinstance(record["configuration"], dict):
            raise ValueError("configuration is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged {METADATA_KEY!r} metadata: {error}") from error
    return record  # type: ignore[no-any-return]


def _sam_tensors(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    if not any(key.startswith("image_encoder.") for key in tensors) or _GAUSSIAN not in tensors:
        raise CheckpointError(
            f"{path}: not a SAM checkpoint; expected keys image_encoder.*, mask_decoder.* and "
            f"{_GAUSSIAN}, found {_shown(sorted(tensors))}; weights of RefSAM go to --checkpoint"
        )
    tensors["pe.gaussian"] = tensors.pop(_GAUSSIAN)
    return {k: v for k, v in tensors.items() if not k.startswith("prompt_encoder.")}


def _report(
    name: str, kind: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> FileReport:
    unexpected = tuple(sorted(set(tensors) - set(wanted)))
    return FileReport(name, kind, len(tensors) - len(unexpected), unexpected)


def _check_tensor(name: str, backbone: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise CheckpointError(
            f"{name} has shape {list(found.shape)}, preset {backbone} expects "
            f"{list(wanted.shape)}: a checkpoint of another preset, or another text encoder? See "
            "--backbone and --text-encoder"
        )
    if found.dtype not in _DTYPES:
        raise CheckpointError(
            f"{name} is {str(found.dtype).removeprefix('torch.')}; expected floating-point numbers "
            "of 16, 32 or 64 bits, not a quantised checkpoint"
        )
    if not bool(torch.isfinite(found.to(wanted.dtype)).all()):
        raise CheckpointError(f"{name} holds values that are not finite in float32")


def _gap_message(missing: Iterable[str]) -> str:
    keys = list(missing)
    return (
        f"{len(keys)} tensors are in none of the given files: {_shown(keys)}. "
        "Give --sam-checkpoint, --checkpoint or --text-encoder, or fill them with "
        "--random-init SEED (for tests of speed and parity: the masks will mean nothing)"
    )


def _shown(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
