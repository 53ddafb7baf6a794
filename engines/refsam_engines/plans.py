"""Bundle -> folder of plans: one plan per graph, golden tensors, manifest; whole or not at all."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from refsam_engines.build import BuildOptions, GraphSource, build_plan
from refsam_engines.golden import golden_source, write_golden_runs
from refsam_engines.machine import BuildMachine, examine_machine
from refsam_engines.profiles import Sizes, profiles_for, sizes_within
from refsam_engines.rtx_header import read_rtx_header
from refsam_engines.variants import variant_for
from refsam_trt.backends.tensorrt.flavour import Flavour, open_flavour
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.plans import Plans, open_plans
from refsam_trt.bundle.sealed import file_entry, write_seal
from refsam_trt.contract.plan_manifest import (
    GOLDEN_FILE,
    PLAN_SCHEMA_VERSION,
    Builder,
    PlanBackend,
    PlanEntry,
    PlanManifest,
)
from refsam_trt.errors import InternalError, UsageError
from refsam_trt.files.atomic import atomic_folder
from refsam_trt.files.target import refuse_folder
from refsam_trt.versions import version_of

_TOOLS = ("refsam-trt", "onnxruntime", "numpy", "msgspec")

ShowLine = Callable[[str], None]


class BuildStopped(Exception):
    """The build was given up because `BuildOptions.should_stop` said so; nothing is left of it."""


@dataclass(frozen=True)
class PlanRequest:
    """What `refsam-build` was asked for; see its `--help`. None leaves a choice to the program."""

    bundle: Path
    output: Path
    backend: PlanBackend
    precision: str
    attention: str | None = None
    split: str | None = None
    max_frames: int | None = None
    max_texts: int | None = None
    max_expressions: int | None = None
    max_words: int | None = None
    overwrite: bool = False
    options: BuildOptions = field(default_factory=BuildOptions)


def build_plans(request: PlanRequest, show_line: ShowLine) -> Plans:
    """Build the plans of one variant of a bundle.

    Args:
        request: what to build and where to.
        show_line: called with one line per stage.

    Raises:
        BundleError, UsageError: no such bundle or variant, or sizes that it does not have.
        MissingExtraError: the backend's library, or ONNX Runtime, is not installed.
        PlanError: no GPU where one is needed, or a graph that cannot be built as it is.
        OutputError: the output exists already, or cannot be written.
        BuildStopped: asked for by `request.options.should_stop`.
    """
    refuse_folder(request.output, overwrite=request.overwrite, marker=GOLDEN_FILE)
    flavour = open_flavour(request.backend)
    if flavour.is_rtx and request.options.timing_cache:
        raise UsageError(
            f"--timing-cache: backend {flavour.backend} measures no kernels when it builds, so it "
            "has no timing cache; leave the option out"
        )
    bundle = open_bundle(request.bundle)
    variant = variant_for(bundle, request.precision, request.attention, request.split)
    golden = golden_source(bundle, variant)
    sizes = sizes_within(
        bundle.manifest.limits,
        max_frames=request.max_frames,
        max_texts=request.max_texts,
        max_expressions=request.max_expressions,
        max_words=request.max_words,
    )
    machine = examine_machine(flavour)
    with atomic_folder(request.output, request.overwrite) as folder:
        entries = _build_graphs(flavour, bundle, variant, sizes, request.options, folder, show_line)
        show_line(f"running variant {golden} on the CPU, to compare the plans with")
        write_golden_runs(bundle, golden, tuple(entries), sizes, folder / GOLDEN_FILE)
        manifest = PlanManifest(
            schema_version=PLAN_SCHEMA_VERSION,
            bundle_id=bundle.bundle_id,
            variant=variant,
            precision=request.precision,
            builder=_builder(flavour, machine, request.options, sorted(folder.glob("*.plan"))),
            limits=sizes.limits(),
            tools={"python": platform.python_version()} | {t: version_of(t) for t in _TOOLS},
            graphs=entries,
            golden_source=golden,
            files={path.name: file_entry(path) for path in sorted(folder.iterdir())},
        )
        write_seal(folder, manifest)
        if request.options.should_stop():
            raise BuildStopped
    return open_plans(request.output)


def _build_graphs(
    flavour: Flavour,
    bundle: Bundle,
    variant: str,
    sizes: Sizes,
    options: BuildOptions,
    folder: Path,
    show_line: ShowLine,
) -> dict[str, PlanEntry]:
    """Build every graph of the variant into `folder`, one after the other."""
    entries = {}
    for name, graph in sorted(bundle.manifest.variants[variant].graphs.items()):
        show_line(f"building {name}")
        target, profiles = folder / f"{name}.plan", profiles_for(graph.spec, sizes)
        source = GraphSource(bundle.verify_file(graph.file), graph.spec, graph.precision, profiles)
        report = build_plan(flavour, source, options, target)
        if report is None:
            raise BuildStopped
        graph_id = bundle.content_id(graph.file)
        entries[name] = PlanEntry(
            target.name, graph_id, graph.precision, graph.spec, profiles, report
        )
    return entries


def _builder(
    flavour: Flavour,
    machine: BuildMachine,
    options: BuildOptions,
    plans: list[Path],
) -> Builder:
    return Builder(
        backend=flavour.backend,
        version=flavour.version,
        cuda_major=flavour.cuda_major,
        platform=machine.platform,
        compute_capabilities=_capabilities(flavour, machine, plans),
        gpu_name=machine.gpu_name,
        driver_version=machine.driver_version,
        has_tf32=options.has_tf32,
        workspace_mib=options.workspace_mib,
    )


def _capabilities(
    flavour: Flavour, machine: BuildMachine, plans: list[Path]
) -> tuple[str, ...] | None:
    """Return the GPUs that every plan has code for; None where a plan does not say."""
    if not flavour.is_rtx:
        return (machine.compute_capability,) if machine.compute_capability else None
    headers = [header for plan in plans if (header := read_rtx_header(plan))]
    if len(headers) < len(plans):
        return None
    for header in headers:
        if header.version != flavour.version:
            raise InternalError(f"{flavour.version} wrote a plan of version {header.version}")
    common = set.intersection(*(set(header.compute_capabilities) for header in headers))
    return tuple(name for name in headers[0].compute_capabilities if name in common)
