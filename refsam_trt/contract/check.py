"""A manifest against the contract of its family: graphs, tensors, state and plain values.

What is refused here is well-formed, but no session could run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import msgspec

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.contract import refsam
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.contract.precision import (
    BASES,
    PRECISIONS,
    QUANTISED,
    split_precision,
    stated_by_graphs,
)
from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.contract.vocabulary import vocabulary_problem

_EXPORT_AGAIN = "export the bundle anew with refsam-export"
_SPLITS: dict[str, refsam.Split] = {split: split for split in get_args(refsam.Split)}


def check_contract(manifest: Manifest) -> None:
    """Check that this version can run what the manifest describes.

    Raises:
        BundleError: an unknown family, no variant, graphs or tensors that are not the family's,
            state that no graph has, or a size or constant that makes no sense.
    """
    if manifest.family not in CONTRACT_CHECKS:
        raise BundleError(
            f"model family {manifest.family!r}, this version knows "
            f"{', '.join(sorted(CONTRACT_CHECKS))}; update refsam_trt"
        )
    if not manifest.variants:
        raise BundleError(f"the manifest has no variant, so no graphs; {_EXPORT_AGAIN}")
    _check_values(manifest)
    for name, variant in manifest.variants.items():
        _check_precision(name, variant)
        _check_quantisation(manifest, name, variant)
        _check_state(manifest, name, variant)
    CONTRACT_CHECKS[manifest.family](manifest)


def _check_values(manifest: Manifest) -> None:
    for name, value in msgspec.structs.asdict(manifest.limits).items():
        if not 1 <= value <= limits.MAX_BATCH:
            raise BundleError(
                f"limits.{name} is {value}, 1 to {limits.MAX_BATCH} expected; {_EXPORT_AGAIN}"
            )
    for name, variant in manifest.variants.items():
        if variant.weight_storage not in (None, "fp16"):
            raise BundleError(
                f"variant {name!r}: weight_storage {variant.weight_storage!r}, null or 'fp16' "
                f"expected; {_EXPORT_AGAIN}"
            )
    problem = None if manifest.vocabulary is None else vocabulary_problem(manifest.vocabulary)
    if problem:
        raise BundleError(f"weights.training.vocabulary {problem}; {_EXPORT_AGAIN}")


def _check_precision(name: str, variant: Variant) -> None:
    known = ", ".join(PRECISIONS)
    if variant.precision not in PRECISIONS:
        raise BundleError(
            f"variant {name!r}: precision {variant.precision!r}, this version knows {known}; "
            "update refsam_trt"
        )
    others = BASES if variant.precision in QUANTISED else ("fp32",)
    allowed = tuple(dict.fromkeys((*stated_by_graphs(variant.precision), *others)))
    for graph, entry in variant.graphs.items():
        if entry.precision not in allowed:
            raise BundleError(
                f"variant {name!r}, graph {graph!r}: precision {entry.precision!r}, expected "
                f"{' or '.join(map(repr, allowed))}; {_EXPORT_AGAIN}"
            )


def _check_quantisation(manifest: Manifest, name: str, variant: Variant) -> None:
    if variant.precision not in QUANTISED:
        return
    found = manifest.quantisation
    if found is None or found.scheme != variant.precision or not found.layers:
        stated = "nothing" if found is None else f"{found.scheme} of {len(found.layers)} layers"
        raise BundleError(
            f"variant {name!r}: precision {variant.precision!r}, but quantisation says {stated}; "
            "write the bundle anew with refsam-calibrate"
        )


def _check_state(manifest: Manifest, name: str, variant: Variant) -> None:
    specs = [graph.spec for graph in variant.graphs.values()]
    inputs = {tensor.name for spec in specs for tensor in spec.inputs}
    outputs = {tensor.name for spec in specs for tensor in spec.outputs}
    for entry in manifest.state:
        missing = {entry.input, entry.is_present} - inputs or {entry.output} - outputs
        if missing:
            raise BundleError(
                f"variant {name!r}: no graph has the state tensor {', '.join(sorted(missing))}; "
                f"{_EXPORT_AGAIN}"
            )


def _check_refsam(manifest: Manifest) -> None:
    _check_refsam_state(manifest)
    for name, variant in manifest.variants.items():
        _check_refsam_graphs(name, variant, has_text_cache=manifest.text_cache is not None)
        _check_refsam_precision(name, variant)
        expected = _refsam_contract(name, variant, manifest.preprocess.image_size)
        for graph, entry in variant.graphs.items():
            where = f"variant {name!r}, graph {graph!r}"
            _check_tensors(f"{where}: input", entry.spec.inputs, expected[graph].inputs)
            _check_tensors(f"{where}: output", entry.spec.outputs, expected[graph].outputs)


def _check_refsam_state(manifest: Manifest) -> None:
    found = [(entry.input, entry.output, entry.is_present) for entry in manifest.state]
    if found != [refsam.STATE]:
        stated = "; ".join(", ".join(names) for names in found) or "none"
        raise BundleError(
            f"state: {stated}; {refsam.FAMILY} keeps {', '.join(refsam.STATE)} (input, output, "
            f"sign of presence) and nothing else; {_EXPORT_AGAIN}"
        )


def _check_refsam_graphs(name: str, variant: Variant, *, has_text_cache: bool) -> None:
    needed = set(refsam.GRAPHS) - ({refsam.TEXT_ENCODER} if has_text_cache else set())
    found = variant.graphs.keys()
    if unknown := found - set(refsam.GRAPHS):
        raise BundleError(
            f"variant {name!r}: graph {', '.join(sorted(unknown))}; {refsam.FAMILY} has "
            f"{', '.join(refsam.GRAPHS)}; {_EXPORT_AGAIN}"
        )
    if missing := needed - found:
        raise BundleError(
            f"variant {name!r}: no graph {', '.join(sorted(missing))}; {refsam.FAMILY} needs it"
            f"{'' if has_text_cache else ' (the text encoder unless there is a text cache)'}; "
            f"{_EXPORT_AGAIN}"
        )


def _check_refsam_precision(name: str, variant: Variant) -> None:
    """Only the text encoder may be of a higher precision than its variant.

    Of a quantised variant, the image encoder alone is quantised; the step has its base's precision.
    """
    stated = {g: variant.graphs[g].precision for g in (refsam.IMAGE_ENCODER, refsam.DECODER_STEP)}
    expected = dict.fromkeys(stated, variant.precision)
    if variant.precision in QUANTISED:
        base = split_precision(stated[refsam.IMAGE_ENCODER])[1]
        base = base if base in BASES else BASES[0]
        expected = {
            refsam.IMAGE_ENCODER: f"{variant.precision}-{base}",
            refsam.DECODER_STEP: base,
        }
    for graph, found in stated.items():
        if found != expected[graph]:
            raise BundleError(
                f"variant {name!r}, graph {graph!r}: precision {found!r}, expected "
                f"{expected[graph]!r}; {_EXPORT_AGAIN}"
            )


def _refsam_contract(name: str, variant: Variant, image_size: int) -> dict[str, GraphSpec]:
    """Return the contract that the variant's split, grid, dtype and levels ask for."""
    outputs = variant.graphs[refsam.IMAGE_ENCODER].spec.outputs
    embedding = outputs[0] if outputs else None
    if embedding is None or len(embedding.dims) != 4 or not isinstance(embedding.dims[3], int):
        raise BundleError(
            f"variant {name!r}, graph {refsam.IMAGE_ENCODER!r}: its first output should be "
            f"image_embedding [M, {refsam.EMBED_DIM}, h, w]; {_EXPORT_AGAIN}"
        )
    if variant.split not in _SPLITS:
        raise BundleError(
            f"variant {name!r}: split {variant.split!r}, expected {' or '.join(_SPLITS)}; "
            f"{_EXPORT_AGAIN}"
        )
    split = _SPLITS[variant.split]
    return refsam.contract(
        image_size, embedding.dims[3], split, embedding.dtype, _hda_levels(variant)
    )


def _hda_levels(variant: Variant) -> refsam.HdaLevels:
    """Return how many maps have Dense Attention, from the tensors that only such maps need.

    In the baseline split 1 and 0 ask for the same tensors.
    """
    names = {tensor.name for tensor in variant.graphs[refsam.DECODER_STEP].spec.inputs}
    if "hda_features" in names:
        return refsam.NUM_HDA_LEVELS
    return 1 if "text_values" in names else 0


def _check_tensors(
    where: str, found: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]
) -> None:
    for tensor, wanted in zip(found, expected, strict=False):
        if tensor != wanted:
            raise BundleError(
                f"{where} {_shown(tensor)}, expected {_shown(wanted)}; {_EXPORT_AGAIN}"
            )
    if len(found) != len(expected):
        raise BundleError(
            f"{where}s: {len(found)} tensors, expected {len(expected)} "
            f"({', '.join(tensor.name for tensor in expected)}); {_EXPORT_AGAIN}"
        )


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.dims)} (scope {tensor.scope})"


CONTRACT_CHECKS: dict[str, Callable[[Manifest], None]] = {refsam.FAMILY: _check_refsam}
"""Per family, the check of what only the family knows."""

__all__ = ["CONTRACT_CHECKS", "check_contract"]
