"""One case: its plans, its memory, and whether it is right (jobs `plans`, `memory`, `checks`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec

from refsam_bench.datasets.synthetic import SyntheticRequest, score_synthetic, to_json
from refsam_bench.gpu.bundles import OpenedCase, open_case
from refsam_bench.gpu.plans import measure_layers, self_test, validity
from refsam_bench.gpu.request import GpuRequest, Job
from refsam_bench.gpu.steps import StepRunner
from refsam_bench.speed.gate import time_in_turn
from refsam_bench.speed.request import expressions
from refsam_bench.speed.timing import Summary
from refsam_bench.synthetic import EVALUATE_SEED
from refsam_bench.trackers.reference import EngineTracker
from refsam_engines.plans import PlanRequest, build_plans
from refsam_export.parity.compare import compare, read_reference
from refsam_export.parity.graph_runs import graph_calls
from refsam_export.parity.inputs import EXPRESSIONS, moving_frames
from refsam_trt.backends.cuda.device import CudaDevice
from refsam_trt.backends.select import open_backend
from refsam_trt.bundle.plans import open_plans
from refsam_trt.errors import ParityError

MEMORY_FRAMES = 3
LATENCY_WARMUP, LATENCY_RUNS = 5, 30
_MIB = 2**20


def build(job: Job, steps: StepRunner) -> None:
    """Build the plans of a case."""
    steps.run("build", lambda: _build(job))


def measure_memory(job: Job, steps: StepRunner) -> None:
    """Measure what a case takes of the GPU's memory; in a process that has done nothing else."""
    steps.run("memory", lambda: _memory(job))


def check(job: Job, steps: StepRunner) -> None:
    """Hold a case to golden tensors and reference; time its graphs; profile its layers; score."""
    opened = steps.keep(
        "open", lambda: (case := open_case(job, job.only_case), {"variant": case.variant})
    )
    actions: dict[str, Callable[[OpenedCase], dict[str, Any]]] = {
        "parity": _parity,
        "latency": _latency,
    }
    if job.only_case.has_plans:
        actions = {
            "validity": validity,
            "self-test": self_test,
            "layers": measure_layers,
            **actions,
        }
    if job.request.num_videos:
        actions["accuracy"] = lambda case: _accuracy(case, job.request)
    for name, action in actions.items():
        if opened is None:
            steps.skip(name, "the case cannot be opened")
        else:
            steps.run(name, functools.partial(action, opened))


def _build(job: Job) -> dict[str, Any]:
    case = job.only_case
    target = case.plans(job.subject)
    assert target is not None
    request = PlanRequest(
        job.subject.bundle,
        target,
        case.backend,  # type: ignore[arg-type]
        case.precision,
        max_expressions=max(job.request.num_expressions, len(EXPRESSIONS)),
    )
    plans = build_plans(request, print)
    manifest = plans.manifest
    return {
        "plan_id": plans.plan_id,
        "builder": msgspec.to_builtins(manifest.builder),
        "limits": msgspec.to_builtins(manifest.limits),
        "plan_bytes": {n: manifest.files[e.file].size_bytes for n, e in manifest.graphs.items()},
        "graphs": {n: msgspec.to_builtins(e.report) for n, e in manifest.graphs.items()},
    }


def _memory(job: Job) -> dict[str, Any]:
    """Return MiB taken by loading, and in all once frames have been decoded."""
    opened = open_case(job, job.only_case)
    request, device = job.request, CudaDevice()
    before = device.free_bytes()
    with opened.load() as engine, engine.open_video() as video:
        loaded = device.free_bytes()
        for text in expressions(request.num_expressions):
            video.add_expression(text)
        for frame in moving_frames(MEMORY_FRAMES, 0, request.frame_hw):
            video.step(frame)
        after = device.free_bytes()
    return {
        "loaded_mib": (before - loaded) / _MIB,
        "running_mib": (before - after) / _MIB,
        "num_expressions": request.num_expressions,
    }


def _parity(opened: OpenedCase) -> dict[str, Any]:
    parity = compare(
        opened.bundle.folder,
        opened.reference,
        opened.variant,
        backend=opened.case.backend,
        plans=opened.plans,
    )
    if not parity.passed:
        bounds = asdict(parity.bounds)
        raise ParityError(f"{parity.verdict}; bounds {bounds}; per graph {parity.graphs}")
    return parity.to_json()


def _latency(opened: OpenedCase) -> dict[str, Any]:
    """Time each graph alone, from its call to the end of its work on the GPU."""
    tensors, _ = read_reference(opened.reference)
    plans = open_plans(opened.plans) if opened.plans else None
    backend: Any = open_backend(opened.case.backend, plans=plans)
    variant = opened.bundle.manifest.variants[opened.variant]
    figures = {}
    for name, entry in variant.graphs.items():
        path = plans.plan(name) if plans else opened.bundle.verify_file(entry.file)
        call = next(graph_calls(name, entry.spec, tensors, plans))
        inputs = {key: backend.upload(array) for key, array in call.inputs.items()}
        shapes = {t.name: (call.outputs[t.name].shape, t.dtype) for t in entry.spec.outputs}
        outputs = {key: backend.empty(*shape) for key, shape in shapes.items()}
        context = backend.load(path, entry.spec).context()

        def run(context: Any = context, inputs: Any = inputs, out: Any = outputs) -> None:
            context.run(inputs, out)
            backend.device.sync()

        (seconds,) = time_in_turn({name: run}, LATENCY_RUNS, LATENCY_WARMUP).values()
        sizes = {key: list(array.shape) for key, array in call.inputs.items()}
        figures[name] = {**asdict(Summary.of(seconds)), "inputs": sizes}
    backend.close()
    return {"scope": "one call to the end of its work on the GPU", "graphs": figures}


def _accuracy(opened: OpenedCase, request: GpuRequest) -> dict[str, Any]:
    with opened.load() as engine:
        return score(EngineTracker(engine), request)


def score(tracker: Any, request: GpuRequest) -> dict[str, Any]:
    """Return J&F of a tracker on synthetic evaluation videos."""
    videos = SyntheticRequest(EVALUATE_SEED, request.num_videos)
    figures = to_json(score_synthetic(tracker, videos, lambda: None), videos)
    return {key: value for key, value in figures.items() if key != "sequences"}
