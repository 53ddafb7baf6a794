"""From weight files to a model: recognised by their keys, checked, reported (refsam-model 8).

Four kinds: SAM's `.pth` (flat, `image_encoder.` / `prompt_encoder.` / `mask_decoder.`), a Hugging
Face folder of a text encoder, our own safetensors file, which may also hold the text encoder, and
the part files of the official training scripts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.files.tensor_files import describe, read_tensors, write_tensors
from refsam_export.refsam.configuration import (
    ASSUMED_ACT,
    OFFICIAL_ACT,
    Asked,
    Facts,
    derive,
    hda_facts,
)
from refsam_export.refsam.init.fill import realistic_init
from refsam_export.refsam.init.text_folder import write_random_t5
from refsam_export.refsam.model.config import ModelConfig, preset
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.refsam.own_file import own_metadata, read_own_record
from refsam_export.refsam.parts import read_parts
from refsam_export.text.encoders import (
    TEXT_PREFIX,
    TextSource,
    build_text_encoder,
    preset_text_source,
    read_text_folder,
    small_text_source,
)
from refsam_export.text.families import text_family
from refsam_trt.contract.manifest import Source, Training, Weights
from refsam_trt.errors import CheckpointError, UsageError

_PROMPT = "prompt_encoder."
_GAUSSIAN = f"{_PROMPT}pe_layer.positional_encoding_gaussian_matrix"
_NO_MASK = f"{_PROMPT}no_mask_embed.weight"
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_SHOWN = 6
_MAPPED_BYTES = 8 * 2**20
"""Larger tensors stay where they are, in the memory-mapped file: what is not looked at costs no
memory, and the system can drop the rest. Smaller ones are copied, to memory that is well aligned.
"""
_LOST_ADAPTERS = (
    "They are the adapters: the released training scripts save them with LoRA only, in "
    "image_encoder_blocks_*; a model whose adapters were not saved cannot be restored. "
)


@dataclass(frozen=True)
class FileReport:
    """What one source gave: keys used, and keys it holds that the model has no place for."""

    name: str
    kind: str
    num_loaded: int
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to export, where every tensor of it came from, and what a user should know."""

    model: RefSam
    tokenizer: Tokenizer
    pad_id: int
    text_config: dict[str, Any]
    weights: Weights
    reports: tuple[FileReport, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    """What one file or folder gives, by canonical key."""

    name: str
    kind: str
    tensors: Mapping[str, Tensor]
    sources: tuple[Source, ...]
    training: Training | None = None


def load_model(
    backbone: str,
    *,
    sam_checkpoint: Path | None = None,
    checkpoint: Path | None = None,
    parts: Sequence[Path] = (),
    text_encoder: Path | None = None,
    random_init: int | None = None,
    random_text: str | None = None,
    scratch: Path | None = None,
    asked: Asked | None = None,
) -> LoadedModel:
    """Build RefSAM and fill it from files, later files over earlier ones.

    Args:
        backbone: preset name.
        sam_checkpoint: SAM's own weights.
        checkpoint: our safetensors file.
        parts: part files of the official training scripts, instead of `checkpoint`.
        text_encoder: Hugging Face folder.
        random_init: seed with which whatever no file gives is filled; None refuses gaps.
        random_text: size of the T5 that `random_init` fills where no file holds a text encoder,
            one of `T5_PRESETS`; None takes a small one.
        scratch: folder for those weights, which are then loaded like any; it must stay as long as
            the model does. None draws them in memory.
        asked: fields of the configuration that were asked for (`configuration.asked_for`).

    Raises:
        CheckpointError: unreadable or unsafe file, another preset's, a file that contradicts
            another one or `asked`, or gaps without `random_init`.
        UsageError: both `checkpoint` and `parts`, or no such preset.
    """
    config, text, own, warnings = _own_files(preset(backbone), checkpoint, parts, asked or {})
    files = [*_sam_file(sam_checkpoint, config), *own]
    if text_encoder is not None:
        text = read_text_folder(text_encoder)
        files.append(_text_file(text_encoder, text))
    random_files: list[_File] = []
    if text is None and random_text is not None and random_init is not None:
        text = preset_text_source(random_text)
        if scratch is not None:
            write_random_t5(random_text, config, random_init, scratch / random_text)
            text = read_text_folder(scratch / random_text)
            random_files.append(_text_file(scratch / random_text, text))
    text = text or small_text_source(config.preset)
    model = empty_model(config, text.config)
    reports, missing = _fill(model, files)
    if missing and random_init is None:
        raise CheckpointError(_gap_message(missing))
    if missing and random_init is not None:
        _fill(model, random_files)
        in_files = {key for file in random_files for key in file.tensors}
        realistic_init(model, random_init, only=set(missing) - in_files)
    sources = tuple(source for file in files for source in file.sources)
    training = _training(files, has_other_text=text_encoder is not None)
    weights = Weights(sources, random_init if missing else None, len(missing), training)
    return LoadedModel(
        model, text.tokenizer, text.pad_id, text.config, weights, reports, missing, warnings
    )


def _text_file(folder: Path, text: TextSource) -> _File:
    assert text.tensors is not None
    tensors = {TEXT_PREFIX + key: value for key, value in text.tensors.items()}
    return _File(str(folder), text.family.title, tensors, text.sources)


def _own_files(
    base: ModelConfig, checkpoint: Path | None, parts: Sequence[Path], asked: Asked
) -> tuple[ModelConfig, TextSource | None, list[_File], tuple[str, ...]]:
    """Read what holds RefSAM's own weights: configuration, text encoder if any, files, warnings."""
    if checkpoint is not None and parts:
        raise UsageError(
            f"--checkpoint {checkpoint} and --part {parts[0]} hold the same tensors; give one kind"
        )
    if checkpoint is not None:
        record = read_own_record(checkpoint, base.preset)
        facts = [Facts(str(checkpoint), dataclasses.asdict(record.config))]
        config = derive(base, asked, facts)
        sources = (describe("checkpoint", checkpoint),)
        tensors = read_tensors(checkpoint)
        file = _File(str(checkpoint), "RefSAM", tensors, sources, record.training)
        return config, record.text, [file], ()
    part_files = read_parts(parts)
    warnings = [warning for part in part_files for warning in part.warnings]
    if part_files and "adapter_act" not in asked:
        asked = {**asked, "adapter_act": OFFICIAL_ACT}
        warnings.append(ASSUMED_ACT)
    facts = [Facts(str(part.path), part.facts) for part in part_files]
    config = derive(base, asked, facts + hda_facts({p.kind: str(p.path) for p in part_files}))
    files = [_File(str(p.path), p.kind, p.tensors, (describe("part", p.path),)) for p in part_files]
    return config, None, files, tuple(warnings)


def _training(files: Iterable[_File], *, has_other_text: bool) -> Training | None:
    """Return how the weights were trained; another text encoder knows other words."""
    training = next((file.training for file in files if file.training is not None), None)
    if training is None or not has_other_text:
        return training
    return Training(training.runs)


def _fill(model: RefSam, files: Iterable[_File]) -> tuple[tuple[FileReport, ...], tuple[str, ...]]:
    """Give the files' tensors to the model; return the reports and the keys in no file."""
    targets = canonical_tensors(model)
    values: dict[str, Tensor] = {}
    reports: list[FileReport] = []
    for file in files:
        unexpected = tuple(sorted(file.tensors.keys() - targets.keys()))
        num_loaded = len(file.tensors) - len(unexpected)
        reports.append(FileReport(file.name, file.kind, num_loaded, unexpected))
        for key in sorted(file.tensors.keys() & targets.keys()):
            value = file.tensors[key]
            _check_tensor(f"{file.name}: {key}", model.config.preset, value, targets[key])
            values[key] = value
    for key, value in values.items():
        if value.nbytes >= _MAPPED_BYTES and value.dtype == targets[key].dtype:
            targets[key].data = value.contiguous()
        else:
            targets[key].data.copy_(value)
    return tuple(reports), tuple(sorted(set(targets) - set(values)))


def empty_model(config: ModelConfig, text_config: Mapping[str, Any]) -> RefSam:
    """Return a model whose tensors hold no values yet: nothing is initialised to be overwritten."""
    family = text_family(text_config, "text encoder")
    with torch.device("meta"):
        encoder = build_text_encoder(text_config)
        model = RefSam(config, encoder, int(text_config[family.width]))
    model.to_empty(device="cpu")
    family.restore(encoder)
    return model


def canonical_tensors(model: RefSam) -> dict[str, Tensor]:
    """Return every tensor of the model by canonical key, the tied embedding once."""
    state = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if not k.endswith("encoder.embed_tokens.weight")}


def save_source(path: Path, loaded: LoadedModel, *, as_fp16: bool = False) -> None:
    """Write our safetensors file: RefSAM, text encoder, both configurations, the tokenizer.

    `as_fp16` stores values in fp16; they must be such that nothing is lost (`check_exact_fp16`).
    """
    tensors = canonical_tensors(loaded.model)
    if as_fp16:
        tensors = {key: value.half() for key, value in tensors.items()}
    metadata = own_metadata(
        loaded.model.config,
        loaded.text_config,
        loaded.tokenizer.to_str(),
        loaded.weights.training,
    )
    write_tensors(path, tensors, metadata)


def _sam_file(path: Path | None, config: ModelConfig) -> list[_File]:
    if path is None:
        return []
    tensors = read_tensors(path)
    if not any(key.startswith("image_encoder.") for key in tensors) or _GAUSSIAN not in tensors:
        raise CheckpointError(
            f"{path}: not a SAM checkpoint; expected keys image_encoder.*, mask_decoder.* and "
            f"{_GAUSSIAN}, found {_shown(sorted(tensors))}; weights of RefSAM go to --checkpoint "
            "or --part"
        )
    tensors["pe.gaussian"] = tensors.pop(_GAUSSIAN)
    if config.hda_levels == 0 and not config.dense_origin and _NO_MASK in tensors:
        tensors[_NO_MASK.removeprefix(_PROMPT)] = tensors.pop(_NO_MASK)
    kept = {key: value for key, value in tensors.items() if not key.startswith(_PROMPT)}
    return [_File(str(path), "SAM", kept, (describe("sam_checkpoint", path),))]


def _check_tensor(name: str, backbone: str, value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        raise CheckpointError(
            f"{name} has shape {list(value.shape)}, preset {backbone} expects "
            f"{list(target.shape)}: a checkpoint of another preset, or another text encoder? See "
            "--backbone and --text-encoder"
        )
    if value.dtype not in _DTYPES:
        raise CheckpointError(
            f"{name} is {str(value.dtype).removeprefix('torch.')}; expected floating-point numbers "
            "of 16, 32 or 64 bits, not a quantised checkpoint"
        )
    if not bool(torch.isfinite(value.to(target.dtype)).all()):
        raise CheckpointError(f"{name} holds values that are not finite in float32")


def _gap_message(missing: Iterable[str]) -> str:
    keys = list(missing)
    only_adapters = all("_Adapter." in key for key in keys)
    return (
        f"{len(keys)} tensors are in none of the given files: {_shown(keys)}. "
        f"{_LOST_ADAPTERS if only_adapters else ''}"
        "Give --sam-checkpoint, --checkpoint, --part or --text-encoder, or fill them with "
        "--random-init SEED (for tests of speed and parity: the masks will mean nothing)"
    )


def _shown(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
