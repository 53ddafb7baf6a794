"""The PyTorch weights a bundle was made from: inside the bundle, or in a folder, by hash."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refsam_export.checkpoint import LoadedModel, load_model
from refsam_export.tensor_files import describe
from refsam_trt.bundle import Bundle
from refsam_trt.errors import CheckpointError
from refsam_trt.manifest import Source


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
    if folder is None:
        if manifest.source is None:
            if manifest.weights.sources:
                raise CheckpointError(_no_source_message(bundle))
            return load_model(manifest.preset, random_init=manifest.weights.random_init_seed)
        return load_model(manifest.preset, checkpoint=bundle.path(manifest.source))
    found = {role: _find(folder, _of_role(manifest.weights.sources, role)) for role in _ROLES}
    text = found["text_encoder"]
    return load_model(
        manifest.preset,
        sam_checkpoint=next(iter(found["sam_checkpoint"]), None),
        checkpoint=next(iter(found["checkpoint"]), None),
        text_encoder=text[0].parent if text else None,
        random_init=manifest.weights.random_init_seed,
    )


_ROLES = ("sam_checkpoint", "checkpoint", "text_encoder")


def _of_role(sources: Iterable[Source], role: str) -> list[Source]:
    return [source for source in sources if source.role == role]


def _find(folder: Path, sources: list[Source]) -> list[Path]:
    return [_match(folder, source) for source in sources]


def _match(folder: Path, source: Source) -> Path:
    candidates = sorted(folder.rglob(source.name))
    for path in candidates:
        if path.is_file() and describe(source.role, path) == source:
            return path
    seen = f"{len(candidates)} of that name differ" if candidates else "none of that name"
    raise CheckpointError(
        f"{folder}: {source.role} {source.name} with SHA-256 {source.sha256[:16]}... not found "
        f"({seen}); the bundle was made from other files"
    )


def _no_source_message(bundle: Bundle) -> str:
    names = ", ".join(source.name for source in bundle.manifest.weights.sources)
    return (
        f"{bundle.folder}: holds no PyTorch weights; give --source FOLDER with {names}, or export "
        "with --include-source"
    )
