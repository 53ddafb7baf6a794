"""The PyTorch weights a bundle was made from: inside the bundle, or in a folder, by hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from refsam_export.files.tensor_files import describe
from refsam_export.refsam.checkpoint import LoadedModel, load_model
from refsam_export.refsam.model.config import ModelConfig
from refsam_export.text.presets import t5_preset_of
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import Source
from refsam_trt.errors import CheckpointError


def load_source(bundle: Bundle, folder: Path | None = None) -> LoadedModel:
    """Load the model that the bundle's graphs were exported from.

    Args:
        bundle: an opened bundle.
        folder: where the files named in the manifest lie (sub-folders are searched too); None
            takes the weights inside the bundle.

    Raises:
        CheckpointError: no weights in the bundle and no folder given, or a file is missing or is
            not the one the bundle was made from.
    """
    manifest = bundle.manifest
    if folder is None and manifest.source is not None:
        return load_model(manifest.preset, checkpoint=bundle.path(manifest.source))
    recorded = manifest.weights
    if folder is None and recorded.sources:
        raise CheckpointError(
            f"{bundle.folder}: holds no PyTorch weights; give --source FOLDER with "
            f"{_names(recorded.sources)}, or export with --include-source"
        )
    if folder is not None and not recorded.sources:
        raise CheckpointError(
            f"{folder}: the bundle was made from no file (its weights are random), so there is "
            "nothing to look for there; leave --source out"
        )
    sam, own, text = (
        _find(folder, role, [source for source in recorded.sources if source.role == role])
        for role in ("sam_checkpoint", "checkpoint", "text_encoder")
    )
    parts = [source for source in recorded.sources if source.role == "part"]
    config = ModelConfig.from_json(manifest.configuration.get("model", {}))
    loaded = load_model(
        manifest.preset,
        sam_checkpoint=next(iter(sam), None),
        checkpoint=next(iter(own), None),
        parts=[path for part in parts for path in _find(folder, "part", [part])],
        text_encoder=text[0].parent if text else None,
        random_init=recorded.random_init_seed,
        random_text=None if text else t5_preset_of(manifest.configuration.get("text_encoder", {})),
        asked=dataclasses.asdict(config),  # options of the export included
    )
    if loaded.weights != recorded:
        raise CheckpointError(
            f"{folder}: beside the files that the bundle was made from lie others that take their "
            f"place; found {_names(loaded.weights.sources)}, expected {_names(recorded.sources)}"
        )
    return loaded


def _find(folder: Path | None, role: str, sources: Sequence[Source]) -> list[Path]:
    """Return files of one role that lie in one folder; [] if there are no `sources`."""
    if folder is None or not sources:
        return []
    # Files of one role belong together, as the files of a text encoder: one folder must have all.
    places = sorted({path.parent for path in folder.rglob("*") if path.name == sources[0].name})
    for place in places:
        if all(_is(place / source.name, source) for source in sources):
            return [place / source.name for source in sources]
    seen = f"{len(places)} of that name differ" if places else "none of that name"
    listed = ", ".join(f"{source.name} ({source.sha256[:16]}...)" for source in sources)
    raise CheckpointError(
        f"{folder}: {role} {listed} not found by SHA-256 ({seen}); the bundle was made from other "
        "files"
    )


def _is(path: Path, source: Source) -> bool:
    is_same_size = path.is_file() and path.stat().st_size == source.size_bytes
    return is_same_size and describe(source.role, path) == source


def _names(sources: Iterable[Source]) -> str:
    return ", ".join(source.name for source in sources)
