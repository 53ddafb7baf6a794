"""Which variant of a bundle runs: by name, or by precision and by what suits the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refsam_trt.backends.select import (
    AUTO,
    DEFAULT_ATTENTION,
    DEFAULT_BASE,
    PREFERRED_ATTENTION,
    PREFERRED_BASE,
)
from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.contract.precision import QUANTISED, split_precision
from refsam_trt.errors import UsageError

_DEFAULT_PRECISION = "fp32"


def choose_variant(
    manifest: Manifest, name: str | None, precision: str | None = None, backend: str = AUTO
) -> str:
    """Return the variant that `load` takes.

    Raises:
        UsageError: unknown name or precision, or more than one fits.
    """
    return only_variant(manifest, fitting_variants(manifest, name, precision), backend)


def fitting_variants(manifest: Manifest, name: str | None, precision: str | None) -> list[str]:
    """Return the variants of that name and precision, all of one precision; at least one.

    Raises:
        UsageError: there is none.
    """
    variants = manifest.variants
    names = sorted(variants)
    if name is not None and name not in variants:
        raise UsageError(f"the bundle has no variant {name!r}; it has: {', '.join(names)}")
    if precision is None:
        candidates = {variants[n].precision for n in names if name in (None, n)}
        precision = _DEFAULT_PRECISION if len(candidates) > 1 else min(candidates)
    fitting = [n for n in names if variants[n].precision == precision and name in (None, n)]
    if not fitting and name is not None:
        raise UsageError(
            f"variant {name!r} is {variants[name].precision}, not {precision}; leave one of the "
            "two options out"
        )
    if not fitting:
        command = (
            f"quantise it with `refsam-calibrate BUNDLE --scheme {precision} ...`"
            if precision in QUANTISED
            else f"export the bundle anew with `refsam-export ... --precision {precision}`"
        )
        if precision == "bf16":
            command += ", or use backend openvino-cpu, which runs fp32 variants in bf16"
        raise UsageError(
            f"the bundle has no {precision} variant; it has: {', '.join(names)}; name one of "
            f"them, or {command}"
        )
    return fitting


def base_precision(variant: Variant) -> str | None:
    """Return the floating-point precision around quantised products, None where there are none."""
    bases = (split_precision(entry.precision) for entry in variant.graphs.values())
    return next((base for quantised, base in bases if quantised), None)


def only_variant(manifest: Manifest, names: Sequence[str], backend: str) -> str:
    """Return which of some variants of one precision suits a backend.

    Of quantised ones those whose base suits it best, then those whose form of attention does.

    Raises:
        UsageError: several do.
    """
    variants = manifest.variants
    bases = {name: base_precision(variants[name]) for name in names}
    names = _best(names, bases, PREFERRED_BASE.get(backend, DEFAULT_BASE))
    forms = {name: variants[name].attention for name in names}
    names = _best(names, forms, PREFERRED_ATTENTION.get(backend, DEFAULT_ATTENTION))
    if len(names) > 1:
        raise UsageError(
            f"the bundle has several variants, name one of them: {', '.join(sorted(names))}"
        )
    return names[0]


def suited_variants(manifest: Manifest, backend: str) -> list[str]:
    """Return all variants, sorted; of quantised ones that differ in their base alone, one.

    It is the one that suits the backend, which is what `load` takes for the precision.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, variant in sorted(manifest.variants.items()):
        form = (variant.precision, variant.attention, variant.split)
        groups.setdefault(form if base_precision(variant) else (name,), []).append(name)
    return sorted(only_variant(manifest, names, backend) for names in groups.values())


def _best(
    names: Sequence[str], kinds: Mapping[str, str | None], order: Sequence[str]
) -> Sequence[str]:
    """Return the names of the first kind of `order` that there is, all of them if there is none."""
    for kind in order:
        if of_kind := [name for name in names if kinds[name] == kind]:
            return of_kind
    return names
