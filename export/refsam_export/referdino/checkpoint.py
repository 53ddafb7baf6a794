"""From an official checkpoint to the model: tied names, LoRA, sizes, what was trained (1.4).

Everything is checked before a tensor is used: no key is guessed, none is left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refsam_export.files.tensor_files import describe
from refsam_export.referdino.model.config import ModelConfig
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.official_file import read_official, refuse_other_models
from refsam_export.referdino.sizes import config_of
from refsam_export.referdino.tokenizer import TokenizerSource, read_tokenizer
from refsam_trt.contract.manifest import Source
from refsam_trt.errors import CheckpointError

TOKENIZER_ONLY = (
    "of the text encoder's folder the tokenizer alone is read: ReferDINO has trained BERT's norms, "
    "so its weights come from the checkpoint"
)
LORA_A, LORA_B = ".lora_A", ".lora_B"
LORA_ALPHA = 1.0

_DROPPED = re.compile(
    r".*(total_params|total_ops)|bert\.embeddings\.position_ids|bert\.pooler\..*"
    r"|.*\.relative_position_index"
)
"""Counters of a profiler, buffers that follow from the sizes, and what is never used."""
_TIED = (
    (
        re.compile(r"(transformer\.decoder\.)?bbox_embed\.\d+\."),
        "transformer.decoder.bbox_embed.0.",
    ),
    (re.compile(r"ref_point_head\."), "transformer.decoder.ref_point_head."),
    (re.compile(r"temporal_decoder\.\d+\."), "temporal_decoder.0."),
)
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_NUM_SHOWN = 6


@dataclass(frozen=True)
class ImportReport:
    """What became of the tensors of a checkpoint.

    Attributes:
        num_loaded: tensors of the model, all of which are from the file.
        num_tied: second names of tensors, bit for bit equal to the first.
        num_folded: pairs of LoRA that were added to their weights.
        dropped: keys that are known and not needed.
        unexpected: keys that the model has no place for.
        temporal: whether the temporal blocks are used, and why.
    """

    num_loaded: int
    num_tied: int
    num_folded: int
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]
    temporal: str


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to export, with its tokenizer and what a user should know."""

    model: ReferDino
    text: TokenizerSource
    report: ImportReport
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]


def load_model(
    checkpoint: Path,
    text_encoder: Path,
    *,
    backbone: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Read ReferDINO and its tokenizer.

    Args:
        checkpoint: official `.pth` file.
        text_encoder: folder of `bert-base-uncased`; its tokenizer is read, its weights are not.
        backbone: preset that the checkpoint has to be of; None takes what it is.
        dtype: of the model's tensors.

    Raises:
        CheckpointError: unreadable, unsafe, of another model or another backbone, incomplete, or
            contradictory.
    """
    model, report = import_state(read_official(checkpoint), checkpoint, backbone, dtype)
    text = read_tokenizer(text_encoder, model.config.vocabulary)
    sources = (describe("checkpoint", checkpoint), *text.sources)
    return LoadedModel(model, text, report, sources, (TOKENIZER_ONLY,))


def import_state(
    state: Mapping[str, Tensor],
    path: Path,
    backbone: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[ReferDino, ImportReport]:
    """Make the model of a state dictionary in the official layout.

    Args:
        state: `model_state_dict` as it is in the file: LoRA is folded here, and only here.
        path: where it is from, for errors.
        backbone: as of `load_model`.
        dtype: as of `load_model`.

    Raises:
        CheckpointError: as `load_model`.
    """
    refuse_other_models(state, path)
    named, dropped = _needed(state, path)
    untied, num_tied = _untied(named, path)
    folded, num_folded = fold_lora(untied, path)
    config = config_of(folded, path, temporal=is_temporal_trained(folded))
    _check_pairs(num_folded, config, path)
    if backbone is not None and backbone != config.preset:
        raise CheckpointError(
            f"a checkpoint of {config.preset}, not of {backbone}; leave --backbone out",
            path,
        )
    with torch.device("meta"):
        model = ReferDino(config)
    unexpected = _check_keys(folded, model.state_dict(), path)
    tensors = {key: value.to(dtype) for key, value in folded.items() if key not in unexpected}
    model.load_state_dict(tensors, assign=True)
    report = ImportReport(
        num_loaded=len(tensors),
        num_tied=num_tied,
        num_folded=num_folded,
        dropped=dropped,
        unexpected=unexpected,
        temporal=_temporal_note(trained=config.temporal),
    )
    return model.eval().requires_grad_(False), report


def _needed(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors that count, without the prefix of parallel training; and what does not."""
    named = {key.removeprefix("module."): value for key, value in state.items()}
    if len(named) < len(state):
        raise CheckpointError(
            "holds tensors both with and without 'module.' before their names, so that nobody can "
            "tell which count; fetch the file again",
            path,
        )
    dropped = tuple(sorted(key for key in named if _DROPPED.fullmatch(key)))
    return {key: value for key, value in named.items() if key not in dropped}, dropped


def _untied(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], int]:
    """Return each tensor once, by its first name, and how many second names there were."""
    untied: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for key, value in state.items():
        first = _first_name(key)
        if first in untied and not torch.equal(untied[first], value):
            raise CheckpointError(
                f"{names[first]} and {key} are one tensor in the model, but differ in the file; it "
                "was changed after training: fetch it again",
                path,
            )
        untied.setdefault(first, value)
        names.setdefault(first, key)
    return untied, len(state) - len(untied)


def _first_name(key: str) -> str:
    for pattern, first in _TIED:
        if match := pattern.match(key):
            return first + key[match.end() :]
    return key


def fold_lora(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], int]:
    """Add every pair of LoRA to its weight: `weight + lora_B @ lora_A * alpha / rank`.

    The sum is formed in float64 and rounded once.

    Returns:
        The state without pairs, and their number.

    Raises:
        CheckpointError: half a pair, or one that does not fit its weight.
    """
    names = {
        key.removesuffix(suffix)
        for key in state
        for suffix in (LORA_A, LORA_B)
        if key.endswith(suffix)
    }
    folded = {key: value for key, value in state.items() if not key.endswith((LORA_A, LORA_B))}
    for name in sorted(names):
        weight, a, b = (state.get(name + suffix) for suffix in (".weight", LORA_A, LORA_B))
        if weight is None or a is None or b is None:
            raise CheckpointError(
                f"{name} has not all of weight, lora_A and lora_B; the file is not complete: fetch "
                "it again",
                path,
            )
        if [*b.shape, *a.shape] != [weight.shape[0], a.shape[0], a.shape[0], *weight.shape[1:]]:
            raise CheckpointError(
                f"{name}: lora_B {list(b.shape)} times lora_A {list(a.shape)} is no weight of "
                f"shape {list(weight.shape)}; fetch the file again",
                path,
            )
        change = b.double() @ a.double() * (LORA_ALPHA / a.shape[0])
        folded[f"{name}.weight"] = (weight.double() + change).to(weight.dtype)
    return folded, len(names)


def is_temporal_trained(state: Mapping[str, Tensor]) -> bool:
    """Whether any training has touched the temporal blocks.

    PyTorch begins with norms of weight 1 and bias 0, and attention without bias; single frames
    train nothing of it.
    """
    for key, value in state.items():
        if not key.startswith("temporal_decoder."):
            continue
        if re.search(r"\.norm(\d|\.\d+)?\.weight$", key) and bool((value != 1).any()):
            return True
        starts_at_zero = r"(\.norm(\d|\.\d+)?\.bias|\.in_proj_bias|\.out_proj\.bias)$"
        if re.search(starts_at_zero, key) and bool((value != 0).any()):
            return True
    return False


def _temporal_note(*, trained: bool) -> str:
    if trained:
        return "on: the temporal blocks were trained"
    return "off: the temporal blocks are as they were initialised, so they are left out"


def _check_values(key: str, value: Tensor, path: Path) -> None:
    if value.dtype not in _DTYPES:
        raise CheckpointError(
            f"{key} is {str(value.dtype).removeprefix('torch.')}; expected floating-point numbers "
            "of 16, 32 or 64 bits, not a quantised checkpoint",
            path,
        )
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{key} holds values that are not finite; fetch it again", path)


def _check_pairs(num_folded: int, config: ModelConfig, path: Path) -> None:
    """Refuse a file whose LoRA was folded, in part or whole, by somebody else."""
    expected = 14 * config.encoder_layers + 6 * config.decoder_layers + 2
    if num_folded != expected:
        raise CheckpointError(
            f"has {num_folded} pairs of LoRA, ReferDINO has {expected}; nobody can tell whether "
            "the others are part of the weights already: save the model in training mode",
            path,
        )


def _check_keys(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> tuple[str, ...]:
    """Refuse gaps and wrong shapes; return the keys that have no place."""
    if missing := sorted(expected.keys() - state.keys()):
        raise CheckpointError(
            f"{len(missing)} tensors are missing: {_shown(missing)}; fetch the file again", path
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{key} has shape {list(state[key].shape)}, {list(tensor.shape)} expected after "
                "the other tensors; fetch the file again",
                path,
            )
        _check_values(key, state[key], path)
    return tuple(sorted(state.keys() - expected.keys()))


def _shown(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _NUM_SHOWN} more" if len(keys) > _NUM_SHOWN else ""
    return ", ".join(keys[:_NUM_SHOWN]) + more
