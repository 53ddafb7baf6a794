"""Which variant of a bundle runs: by name, or by precision and by what suits the backend."""

from __future__ import annotations

from collections.abc import Sequence

from refsam_trt.backends.select import AUTO, DEFAULT_ATTENTION, PREFERRED_ATTENTION
from refsam_trt.errors import UsageError
from refsam_trt.manifest import Manifest

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
    found = {variant.precision for variant in variants.values()}
    if name is not None:
        wanted = precision or variants[name].precision
    else:
        wanted = precision or (_DEFAULT_PRECISION if len(found) > 1 else min(found))
    fitting = [n for n in names if variants[n].precision == wanted and name in (None, n)]
    if not fitting and name is not None:
        raise UsageError(
            f"variant {name!r} is {variants[name].precision}, not {wanted}; leave one of the two "
            "options out"
        )
    if not fitting:
        raise UsageError(
            f"the bundle has no {wanted} variant; it has: {', '.join(names)}; name one of them, or "
            f"export the bundle anew with `refsam-export ... --precision {wanted}`"
        )
    return fitting


def only_variant(manifest: Manifest, names: Sequence[str], backend: str) -> str:
    """Return which of some variants of one precision suits a backend.

    Raises:
        UsageError: several do.
    """
    forms = {name: manifest.variants[name].attention for name in names}
    for form in PREFERRED_ATTENTION.get(backend, DEFAULT_ATTENTION):
        if form in forms.values():
            names = [name for name in names if forms[name] == form]
            break
    if len(names) > 1:
        raise UsageError(
            f"the bundle has several variants, name one of them: {', '.join(sorted(names))}"
        )
    return names[0]
