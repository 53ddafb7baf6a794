"""A calibrated model -> a new bundle: all of the old one, and quantised variants beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from refsam_calibration.quantise.quantised_graphs import check_ranges, write_quantised_encoder
from refsam_calibration.quantise.schemes import SCHEMES, Scheme
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.variants import GraphForm
from refsam_trt.bundle.open import Bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.contract.manifest import Quantisation, Variant
from refsam_trt.contract.refsam import IMAGE_ENCODER
from refsam_trt.errors import UsageError
from refsam_trt.files.target import refuse_folder
from refsam_trt.session.variants import choose_variant

BASES: dict[Scheme, tuple[str, ...]] = {"int8": ("fp32", "fp16"), "fp8": ("fp16",)}
"""What everything else is done in, per scheme: fp32 for ONNX Runtime, fp16 for TensorRT, which
alone has fp8."""

_MERGED = "merged-mlp"


def write_quantised_bundle(
    bundle: Bundle,
    model: RefSam,
    ranges: Mapping[str, float],
    scheme: Scheme,
    record: Mapping[str, Any],
    output: Path,
) -> Bundle:
    """Write a bundle with the variants of `bundle`, and quantised ones of the same form.

    Only the image encoder is quantised: text encoder and step are those of the variants of the same
    base, and are stored once.

    Args:
        bundle: with an fp32 and an fp16 variant, none quantised; it is not changed.
        model: the bundle's weights, fp32, SmoothQuant's factors folded in.
        ranges: largest input magnitude to hold, by module path of the layers to quantise
            (`layers.quantisable_layers`).
        scheme: `int8` or `fp8`.
        record: what calibration found (ranges, ranking, verified accuracy), as JSON has it; goes
            into the manifest.
        output: folder of the new bundle; its parent must exist.

    Raises:
        UsageError: a bundle without those variants or quantised already, an unknown scheme, or
            ranges that cannot be used.
        OutputError: the output exists already, or cannot be written.
    """
    refuse_folder(output)
    bases = base_variants(bundle, scheme)
    checked = check_ranges(model, ranges)
    with tempfile.TemporaryDirectory(prefix=".quantise-", dir=output.parent) as scratch:
        files = _copied(bundle, Path(scratch))
        variants = dict(bundle.manifest.variants)
        for base, variant in bases.items():
            form = form_of(variant)
            name = form.variant(f"{scheme}-{base}")
            file = f"graphs/{name}/{IMAGE_ENCODER}.onnx"
            path = Path(scratch) / file
            entry = write_quantised_encoder(model, checked, scheme, base, form, path, file)
            files |= {file: path, f"{file}.data": path.with_name(f"{path.name}.data")}
            graphs = {**variant.graphs, IMAGE_ENCODER: entry}
            variants[name] = msgspec.structs.replace(
                variant, precision=scheme, rewrites=form.rewrites, graphs=graphs
            )
        quantisation = Quantisation(scheme, bundle.bundle_id, tuple(checked), dict(record))
        manifest = msgspec.structs.replace(
            bundle.manifest, variants=variants, quantisation=quantisation, files={}
        )
        return write_bundle(output, manifest=manifest, files=files)


def base_variants(bundle: Bundle, scheme: Scheme) -> dict[str, Variant]:
    """Return the variants that quantised ones are made from, by their precision.

    Raises:
        UsageError: the bundle is quantised already, lacks such a variant, or there is no such
            scheme.
    """
    manifest = bundle.manifest
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if manifest.quantisation is not None:
        raise UsageError(
            f"{bundle.folder}: quantised already ({manifest.quantisation.scheme}); give the bundle "
            f"that it was made from, {manifest.quantisation.base_bundle}"
        )
    have = sorted({variant.precision for variant in manifest.variants.values()})
    if missing := [base for base in BASES[scheme] if base not in have]:
        raise UsageError(
            f"{bundle.folder}: no {missing[0]} variant to quantise, only {', '.join(have)}; export "
            "the bundle anew with refsam-export ... --precision fp32,fp16"
        )
    return {b: manifest.variants[choose_variant(manifest, None, b)] for b in BASES[scheme]}


def form_of(variant: Variant) -> GraphForm:
    """Return the form of the graphs that are quantised from those of a variant."""
    rewrites = tuple(name for name in variant.rewrites if name != _MERGED)
    storage = "fp16" if variant.weight_storage == "fp16" else "fp32"
    return GraphForm(variant.split, variant.attention, rewrites, storage)  # type: ignore[arg-type]


def _copied(bundle: Bundle, scratch: Path) -> dict[str, Path]:
    """Copy the files of a bundle, whose hashes are checked on the way."""
    files = {}
    for name in bundle.manifest.files:
        target = scratch / "base" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.verify_file(name), target)
        files[name] = target
    return files
