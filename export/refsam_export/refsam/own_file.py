"""What our own weights file says beside its tensors: one JSON object in its metadata.

`configuration` of RefSAM, `text_encoder` (its configuration) and `tokenizer` where the file holds
the text encoder too, and `training` where the weights were trained by `refsam-train`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from refsam_export.files.tensor_files import read_metadata
from refsam_export.refsam.model.config import ModelConfig
from refsam_export.text.encoders import TextSource, stored_text_source
from refsam_trt.contract.manifest import Training
from refsam_trt.errors import CheckpointError, UsageError

METADATA_KEY = "refsam"
SOURCE_SCHEMA = 1


@dataclass(frozen=True)
class OwnRecord:
    """The record of one file; `text` is None for a file without text encoder."""

    config: ModelConfig
    text: TextSource | None
    training: Training | None


def own_metadata(
    config: ModelConfig, text_config: dict[str, Any], tokenizer: str, training: Training | None
) -> dict[str, str]:
    """Return the metadata of a file that holds everything; `tokenizer` is its file's content."""
    record = {
        "schema": SOURCE_SCHEMA,
        "configuration": config.to_json(),
        "text_encoder": text_config,
        "tokenizer": tokenizer,
        "training": msgspec.to_builtins(training),
    }
    return {METADATA_KEY: json.dumps(record, sort_keys=True)}


def read_own_record(path: Path, preset: str) -> OwnRecord:
    """Read what a weights file of ours says of itself.

    Raises:
        CheckpointError: not such a file, damaged, of another schema, or of another preset.
    """
    raw = read_metadata(path).get(METADATA_KEY)
    if raw is None:
        raise CheckpointError(
            f"{path}: not a RefSAM weights file of ours (no {METADATA_KEY!r} metadata); "
            "SAM's weights go to --sam-checkpoint, files of the official scripts to --part"
        )
    record = _parse(raw, path)
    try:
        stored = ModelConfig.from_json(record["configuration"])
        training = msgspec.convert(record.get("training"), Training | None)
    except UsageError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: damaged {METADATA_KEY!r} metadata: {error}") from error
    if stored.preset != preset:
        raise CheckpointError(
            f"{path}: holds preset {stored.preset!r}, asked for {preset!r}; "
            f"use --backbone {stored.preset}"
        )
    if "text_encoder" not in record:
        return OwnRecord(stored, None, training)
    text = stored_text_source(record["text_encoder"], record.get("tokenizer"), str(path))
    return OwnRecord(stored, text, training)


def _parse(raw: str, path: Path) -> dict[str, Any]:
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
