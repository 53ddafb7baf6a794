"""One graph -> one plan: the single, strongly typed path for every TensorRT.

No precision flag is ever set. TF32 is off unless asked for: TensorRT's own default silently rounds
the products of fp32 graphs to 10 bits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refsam_engines.inspect import report_on
from refsam_engines.network import (
    check_precision,
    check_tensors,
    count_types,
    parse_graph,
    stated_types,
)
from refsam_trt.backends.tensorrt.flavour import Flavour
from refsam_trt.backends.tensorrt.log import TrtLog, make_logger
from refsam_trt.contract.plan_manifest import GraphReport, Profile
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import PlanBuildError
from refsam_trt.files.atomic import atomic_path

_MIB = 2**20


@dataclass(frozen=True)
class BuildOptions:
    """How plans are built.

    Attributes:
        has_tf32: allow fp32 products to be rounded to TF32.
        workspace_mib: limit on scratch memory; None leaves it to the library.
        timing_cache: file that keeps measured kernel times from build to build, None for none.
        on_progress: called with the name of the phase at every step of the builder.
        should_stop: asked at every step whether to give up.
    """

    has_tf32: bool = False
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    on_progress: Callable[[str], None] = field(default=lambda phase: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)


@dataclass(frozen=True)
class GraphSource:
    """What a plan is built from; `precision` is what the graph itself states."""

    path: Path
    spec: GraphSpec
    precision: str
    profiles: Mapping[str, Profile]


def build_plan(
    flavour: Flavour, source: GraphSource, options: BuildOptions, target: Path
) -> GraphReport | None:
    """Build the plan of one graph and write it to `target`.

    Returns:
        What is known about it; None if `options.should_stop` ended the build.

    Raises:
        PlanBuildError: TensorRT refuses the graph, or it is not of the stated types.
        OutputError: the plan or the timing cache cannot be written.
    """
    try:
        return _built(flavour, source, options, target)
    except BaseException as error:
        _let_go(error)
        raise


def _let_go(error: BaseException) -> None:
    """Free what the frames of an error hold: TensorRT's objects, as if the error had none.

    TensorRT-RTX 1.7.1: a builder that is destroyed while another one builds waits for ever for a
    lock that the other one holds. Left to an error's frames, it is destroyed whenever the garbage
    collector runs, which may be in a callback of the next build.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _built(
    flavour: Flavour, source: GraphSource, options: BuildOptions, target: Path
) -> GraphReport | None:
    log = TrtLog()
    logger = make_logger(flavour, log)
    builder = flavour.trt.Builder(logger)
    # Always through the enum: its integer is 1 in TensorRT 10 and 0 in 11, where 1 is another flag.
    flag = flavour.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parse_graph(flavour, network, logger, log, source.path)
    layers = count_types(network)
    check_tensors(source.path, network, source.spec)
    check_precision(source.path, source.precision, layers, stated_types(source.path))
    config = _config(flavour, builder, source, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        # A builder that was told to stop returns nothing either.
        if options.should_stop():
            return None
        raise PlanBuildError(
            f"{source.path}: {flavour.backend} {flavour.version} cannot build this graph: "
            f"{log.errors()}; try smaller --max-frames, --max-expressions or --workspace-mib, or "
            "another --precision"
        )
    target.write_bytes(plan)
    _save_timing_cache(config, options.timing_cache)
    num_engine_layers = _count_engine_layers(flavour, logger, plan)
    return report_on(flavour, layers, log, target, num_engine_layers)


def _count_engine_layers(flavour: Flavour, logger: Any, plan: bytes) -> int | None:
    """Return how many layers a plan has, from the plan as it runs; None where no GPU need be.

    TensorRT proper has just built it on a GPU; TensorRT-RTX builds without one.
    """
    if flavour.is_rtx:
        return None
    runtime = flavour.trt.Runtime(logger)
    trt_engine = runtime.deserialize_cuda_engine(plan)
    return None if trt_engine is None else int(trt_engine.num_layers)


def _config(flavour: Flavour, builder: Any, source: GraphSource, options: BuildOptions) -> Any:
    trt = flavour.trt
    config = builder.create_builder_config()
    # Layers keep their names and types, without which a plan cannot be inspected.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not options.has_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if source.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in source.profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise PlanBuildError(
                f"{source.path}: TensorRT refuses the profile {dict(source.profiles)}; try smaller "
                "--max-frames, --max-expressions and --max-words"
            )
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    config.progress_monitor = _monitor(flavour, options)
    return config


def _load_timing_cache(config: Any, path: Path) -> None:
    try:
        raw = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise PlanBuildError(
            f"{path}: cannot be read ({error.strerror}); give another --timing-cache"
        ) from error
    cache = config.create_timing_cache(raw)
    # False: a cache that another GPU or version has written is refused, not ignored.
    if cache is None or not config.set_timing_cache(cache, False):
        raise PlanBuildError(
            f"{path}: no timing cache of this TensorRT and GPU; remove it, or give another "
            "--timing-cache"
        )


def _save_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None and (cache := config.get_timing_cache()) is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(cache.serialize())


def _monitor(flavour: Flavour, options: BuildOptions) -> Any:
    """Return a progress monitor; it must not raise, since it is called from inside the builder."""
    trt = flavour.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            options.on_progress(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            options.on_progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            options.on_progress(phase_name)
            return not options.should_stop()

    return Monitor()
