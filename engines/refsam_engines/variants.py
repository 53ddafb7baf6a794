"""Which variant of a bundle is built, and the command that would make one that is missing."""

from __future__ import annotations

import shlex

from refsam_trt.backends.select import DEFAULT_BASE
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import Manifest
from refsam_trt.contract.precision import FLOAT_PRECISIONS, QUANTISED
from refsam_trt.errors import UsageError
from refsam_trt.session.variants import base_precision

_ATTENTION, _SPLIT = "augmented", "optimised"
"""Chosen where a precision has several variants: the forms that fuse and that save most work."""
_OPTIONS = {
    "sam_checkpoint": "--sam-checkpoint",
    "checkpoint": "--checkpoint",
    "part": "--part",
}


def variant_for(
    bundle: Bundle, precision: str, attention: str | None = None, split: str | None = None
) -> str:
    """Return the name of the variant to build.

    Args:
        bundle: what to build from.
        precision: of a variant; of quantised ones, an fp16 base is preferred.
        attention: form of the attention; None prefers `augmented`.
        split: split of the graphs; None prefers `optimised`.

    Raises:
        UsageError: the bundle has none; the text holds the export command that makes it.
    """
    manifest = bundle.manifest
    fitting = {
        name: variant
        for name, variant in manifest.variants.items()
        if variant.precision == precision
        and attention in (None, variant.attention)
        and split in (None, variant.split)
    }
    if not fitting:
        asked = "-".join([precision, attention or _ATTENTION, split or _SPLIT])
        if precision in QUANTISED:
            remedy = (
                f"make it: refsam-calibrate BUNDLE --scheme {precision} ... --output NEW_BUNDLE"
            )
        else:
            remedy = f"export it: {export_command(manifest, precision, attention, split)}"
        raise UsageError(
            f"{bundle.folder}: no variant {asked}, only {', '.join(sorted(manifest.variants))}; "
            f"{remedy}"
        )
    return min(
        fitting,
        key=lambda n: (
            fitting[n].attention != _ATTENTION,
            fitting[n].split != _SPLIT,
            base_precision(fitting[n]) not in (None, DEFAULT_BASE[0]),
            n,
        ),
    )


def export_command(
    manifest: Manifest, precision: str, attention: str | None = None, split: str | None = None
) -> str:
    """Return the command that exports the model again with `precision` added."""
    have = {variant.precision for variant in manifest.variants.values()}
    precisions = [name for name in FLOAT_PRECISIONS if name in have | {precision}]
    arguments = ["--backbone", manifest.preset]
    sources = manifest.weights.sources
    for source in sources:
        if source.role in _OPTIONS:
            arguments += [_OPTIONS[source.role], source.name]
    if any(source.role == "text_encoder" for source in sources):
        arguments += ["--text-encoder", "FOLDER"]
    if manifest.weights.random_init_seed is not None:
        arguments += ["--random-init", str(manifest.weights.random_init_seed)]
    arguments += ["--precision", ",".join(precisions)]
    for option, value in (("--attention", attention), ("--split", split)):
        arguments += [option, value] if value else []
    return f"refsam-export {shlex.join(arguments)} --output NEW_BUNDLE"
