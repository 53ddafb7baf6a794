"""Who is measured: variants of bundles, and the PyTorch references that they came from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import refsam_trt
from refsam_bench.report.quantisation import quantisation_entry
from refsam_bench.report.request import ReportRequest
from refsam_bench.trackers.reference import EngineTracker, ReferenceTracker
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract.precision import split_precision
from refsam_trt.session.variants import choose_variant, suited_variants


@dataclass(frozen=True)
class Side:
    """Who is measured; `label` is its name on the page, unlike all others."""

    key: str
    label: str
    bundle: Bundle

    @property
    def has_random_weights(self) -> bool:
        """Whether weights were made up at export."""
        return self.bundle.manifest.weights.random_init_seed is not None


@dataclass(frozen=True)
class Candidate(Side):
    """A variant of a bundle.

    `reference` is the key of its reference, None if there is none: `reference_absent` says why.
    """

    variant: str
    reference: str | None
    reference_absent: str | None

    @property
    def size_bytes(self) -> int:
        """Size of the files that this variant needs to run."""
        manifest = self.bundle.manifest
        names = {manifest.tokenizer.file, manifest.text_cache} - {None}
        for graph in manifest.variants[self.variant].graphs.values():
            names |= {graph.file, *self.bundle.external_data(graph.file)}
        return sum(manifest.files[name].size_bytes for name in names if name is not None)

    @property
    def quantised_share(self) -> float | None:
        """Share of the image encoder's operations that are done in eight bits, None if none are.

        Attention, norms and convolutions count too, so it is 1 of no bundle.
        """
        graphs = self.bundle.manifest.variants[self.variant].graphs.values()
        for graph in graphs:
            quantised, _ = split_precision(graph.precision)
            if quantised:
                return graph.flops[quantised] / sum(graph.flops.values())
        return None

    @property
    def left_out(self) -> list[str] | None:
        """Units that calibration left in the base's type: some make it mixed precision.

        None where nothing is quantised, or where the bundle does not tell.
        """
        entry = quantisation_entry(self.bundle) if self.quantised_share is not None else None
        return None if entry is None else entry["left_out"]


@dataclass(frozen=True)
class Reference(Side):
    """The PyTorch model of one or more bundles; `source` is the folder of its weights, if any."""

    source: Path | None


def find_sides(request: ReportRequest) -> tuple[tuple[Reference, ...], tuple[Candidate, ...]]:
    """Open all bundles; return their references, each once, and all variants asked for.

    Raises:
        BundleError: a bundle cannot be used.
        UsageError: a bundle has not a variant that was named.
    """
    bundles = [open_bundle(folder) for folder in request.bundles]
    variants = [(bundle, name) for bundle in bundles for name in _variants(bundle, request)]
    references = _references(bundles, request.source)
    candidates = []
    for number, (label, (bundle, name)) in enumerate(zip(_labels(variants), variants, strict=True)):
        reference = references.get(_weights_id(bundle))
        absent = None if reference else _why_no_reference(bundle)
        key = reference.key if reference else None
        candidates.append(Candidate(f"engine-{number}", label, bundle, name, key, absent))
    return tuple(references.values()), tuple(candidates)


@contextmanager
def open_engine(candidate: Candidate, request: ReportRequest) -> Iterator[tuple[str, Any]]:
    """Yield the backend's name and the tracker of a candidate."""
    with refsam_trt.load(
        candidate.bundle,
        backend=request.backend,
        variant=candidate.variant,
        text="resident",
        num_threads=request.num_threads,
        verify="deferred",
    ) as engine:
        yield engine.backend, EngineTracker(engine)


def open_reference(reference: Reference, request: ReportRequest) -> ReferenceTracker:
    """Return the tracker of a reference.

    Raises:
        CheckpointError: its weights are not where they were said to be.
    """
    import torch

    from refsam_export.source import load_source

    if request.num_threads:
        torch.set_num_threads(request.num_threads)
    return ReferenceTracker(load_source(reference.bundle, reference.source))


def _variants(bundle: Bundle, request: ReportRequest) -> list[str]:
    names = request.variants or suited_variants(bundle.manifest, request.backend)
    return [choose_variant(bundle.manifest, name) for name in dict.fromkeys(names)]


def _references(bundles: Sequence[Bundle], source: Path | None) -> dict[str, Reference]:
    """Return one reference per set of weights that can be had."""
    bundle_of_weights: dict[str, Bundle] = {}
    for bundle in bundles:
        is_better = bundle.manifest.source is not None
        if can_load(bundle, source) and (_weights_id(bundle) not in bundle_of_weights or is_better):
            bundle_of_weights[_weights_id(bundle)] = bundle
    references = {}
    for number, (weights, bundle) in enumerate(bundle_of_weights.items()):
        name = bundle.folder.resolve().name
        label = "PyTorch" if len(bundle_of_weights) == 1 else f"PyTorch of {name}"
        folder = source if needs_folder(bundle) else None
        references[weights] = Reference(f"reference-{number}", label, bundle, folder)
    return references


def can_load(bundle: Bundle, source: Path | None) -> bool:
    """Tell whether the PyTorch weights of this very bundle can be had."""
    return source is not None or not needs_folder(bundle)


def needs_folder(bundle: Bundle) -> bool:
    """Tell whether the weights come from files that are not in the bundle."""
    return bundle.manifest.source is None and bool(bundle.manifest.weights.sources)


def _why_no_reference(bundle: Bundle) -> str:
    names = ", ".join(source.name for source in bundle.manifest.weights.sources)
    return (
        f"the bundle holds no PyTorch weights and --source was not given: give --source FOLDER "
        f"with {names}, or export with --include-source"
    )


def _weights_id(bundle: Bundle) -> str:
    """Return what is equal for bundles that were made from the same PyTorch model."""
    model = bundle.manifest.configuration.get("model", {})
    known = msgspec.json.encode([bundle.manifest.weights, model], order="sorted")
    return hashlib.sha256(known).hexdigest()


def _labels(variants: Sequence[tuple[Bundle, str]]) -> list[str]:
    """Name each by folder and precision, or by folder and variant where that is not enough."""
    short = [
        f"{bundle.folder.resolve().name} {bundle.manifest.variants[name].precision}"
        for bundle, name in variants
    ]
    long = [f"{bundle.folder.resolve().name} {name}" for bundle, name in variants]
    counts, long_counts = Counter(short), Counter(long)
    labels = []
    for number, (brief, full) in enumerate(zip(short, long, strict=True), start=1):
        unique = brief if counts[brief] == 1 else full
        labels.append(unique if long_counts[full] == 1 else f"{full} #{number}")
    return labels
