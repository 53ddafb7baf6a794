"""A manifest against the contract of its family: graphs, tensors, state and plain values.

What is refused here is well-formed, but no session could run it.
"""

from __future__ import annotations

import msgspec

from refsam_trt import limits
from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.contract.precision import (
    BASES,
    PRECISIONS,
    QUANTISED,
    stated_by_graphs,
)
from refsam_trt.contract.registry import REGISTRY, contract_of
from refsam_trt.contract.specs import EXPORT_AGAIN
from refsam_trt.contract.vocabulary import vocabulary_problem
from refsam_trt.errors import BundleError


def check_contract(manifest: Manifest) -> None:
    """Check that this version can run what the manifest describes.

    Raises:
        BundleError: an unknown family, no variant, graphs or tensors that are not the family's,
            state that no graph has, or a size or constant that makes no sense.
    """
    if manifest.family not in REGISTRY:
        raise BundleError(
            f"model family {manifest.family!r}, this version knows "
            f"{', '.join(sorted(REGISTRY))}; update refsam_trt"
        )
    if not manifest.variants:
        raise BundleError(f"the manifest has no variant, so no graphs; {EXPORT_AGAIN}")
    _check_values(manifest)
    for name, variant in manifest.variants.items():
        _check_precision(name, variant)
        _check_quantisation(manifest, name, variant)
        _check_state(manifest, name, variant)
    contract_of(manifest.family).check(manifest)


def _check_values(manifest: Manifest) -> None:
    for name, value in msgspec.structs.asdict(manifest.limits).items():
        if not 1 <= value <= limits.MAX_BATCH:
            raise BundleError(
                f"limits.{name} is {value}, 1 to {limits.MAX_BATCH} expected; {EXPORT_AGAIN}"
            )
    for name, variant in manifest.variants.items():
        if variant.weight_storage not in (None, "fp16"):
            raise BundleError(
                f"variant {name!r}: weight_storage {variant.weight_storage!r}, null or 'fp16' "
                f"expected; {EXPORT_AGAIN}"
            )
    problem = None if manifest.vocabulary is None else vocabulary_problem(manifest.vocabulary)
    if problem:
        raise BundleError(f"weights.training.vocabulary {problem}; {EXPORT_AGAIN}")


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
                f"{' or '.join(map(repr, allowed))}; {EXPORT_AGAIN}"
            )


def _check_quantisation(manifest: Manifest, name: str, variant: Variant) -> None:
    if variant.precision not in QUANTISED:
        return
    entry = manifest.quantisation
    if entry is None or entry.scheme != variant.precision or not entry.layers:
        stated = "nothing" if entry is None else f"{entry.scheme} of {len(entry.layers)} layers"
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
                f"{EXPORT_AGAIN}"
            )
