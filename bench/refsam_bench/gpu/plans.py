"""Plans on their GPU: does the library take them, are they right, and where does the time go?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from refsam_bench.gpu.bundles import OpenedCase
from refsam_trt.backends.cuda.memory import CudaBuffer
from refsam_trt.backends.tensorrt import rtx
from refsam_trt.backends.tensorrt.backend import TrtBackend, TrtGraph
from refsam_trt.backends.tensorrt.flavour import Flavour, open_flavour
from refsam_trt.backends.tensorrt.log import TrtLog, make_logger
from refsam_trt.backends.tensorrt.self_test import run_golden
from refsam_trt.bundle.golden import GoldenRun, read_golden, tolerance
from refsam_trt.bundle.plans import Plans, open_plans
from refsam_trt.errors import BackendError

NUM_RUNS = 10
NUM_SHOWN = 25


def opened_plans(opened: OpenedCase) -> Plans:
    """Open the plans of a case."""
    assert opened.plans is not None
    return open_plans(opened.plans)


def validity(opened: OpenedCase) -> dict[str, Any]:
    """Ask TensorRT-RTX what it thinks of each plan, before our own checks refuse any.

    TensorRT proper cannot be asked: `null`.
    """
    plans = opened_plans(opened)
    flavour = open_flavour(plans.manifest.builder.backend)
    if not flavour.is_rtx:
        return {"verdicts": None}
    log = TrtLog()
    logger = make_logger(flavour, log)
    runtime = flavour.trt.Runtime(logger)
    verdicts = {}
    for name in plans.manifest.graphs:
        answer, diagnostics = rtx.engine_validity(runtime, plans.plan(name).read_bytes())
        verdicts[name] = {"validity": answer.name, "diagnostics": diagnostics}
    return {"verdicts": verdicts, "log": log.of("ERROR")}


def self_test(opened: OpenedCase) -> dict[str, Any]:
    """Load every plan, which compares it with its golden outputs, and tell how near it comes."""
    plans = opened_plans(opened)
    backend = TrtBackend(plans, marks=None)  # remembers nothing, so that it is really run
    golden = read_golden(plans.golden)
    errors, allowed = {}, {}
    has_tf32 = plans.manifest.builder.has_tf32
    for name, entry in plans.manifest.graphs.items():
        graph = backend.load(plans.plan(name), entry.spec)
        errors[name] = golden[name].errors(run_golden(backend, graph, golden[name]))
        allowed[name] = tolerance(entry.precision, has_tf32=has_tf32)
    backend.close()
    return {"errors": errors, "tolerances": allowed}


def measure_layers(opened: OpenedCase) -> dict[str, Any]:
    """Return per graph what its engine says of itself, and its slowest layers on golden inputs.

    `mean_ms` is per call, with a profiler that waits after every layer: shares count, not sums.
    `num_attention_kernels` counts layers whose description names a fused attention kernel.
    """
    plans = opened_plans(opened)
    backend = TrtBackend(plans, marks=None)
    golden = read_golden(plans.golden)
    figures = {}
    for name, entry in plans.manifest.graphs.items():
        graph = backend.load(plans.plan(name), entry.spec)
        figures[name] = {**_facts(backend.flavour, graph), **_profile(backend, graph, golden[name])}
    backend.close()
    return {"num_runs": NUM_RUNS, "graphs": figures}


def _facts(flavour: Flavour, graph: TrtGraph) -> dict[str, Any]:
    trt, trt_engine = flavour.trt, graph.trt_engine
    inspector = trt_engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return {
        "num_engine_layers": int(trt_engine.num_layers),
        "activation_bytes": int(trt_engine.device_memory_size_v2),
        "num_attention_kernels": sum("mha" in json.dumps(layer).lower() for layer in layers),
    }


def _profile(backend: TrtBackend, graph: TrtGraph, run: GoldenRun) -> dict[str, Any]:
    """Run with a profiler, in a context of its own that captures nothing."""
    device = backend.device
    trt_context = graph.trt_engine.create_execution_context()
    if trt_context is None:
        raise BackendError(f"{graph.path}: no execution context ({backend.log.errors()})")
    buffers = _bound(backend, graph, run, trt_context)

    def enqueue() -> None:
        if not trt_context.execute_async_v3(device.stream_handle):
            raise BackendError(f"{graph.path}: could not be run: {backend.log.errors()}")
        device.sync()

    enqueue()  # what is done once only would count as some layer's time
    profiler = make_profiler(backend.flavour)
    trt_context.profiler = profiler
    for _ in range(NUM_RUNS):
        enqueue()
    del buffers
    times = {name: total / NUM_RUNS for name, total in profiler.totals.items()}
    slowest = sorted(times.items(), key=lambda item: -item[1])[:NUM_SHOWN]
    return {
        "num_profiled_layers": len(times),
        "mean_ms": sum(times.values()),
        "slowest": [{"layer": name[:200], "mean_ms": ms} for name, ms in slowest],
    }


def _bound(
    backend: TrtBackend, graph: TrtGraph, run: GoldenRun, trt_context: Any
) -> dict[str, CudaBuffer]:
    """Give the context inputs and room for outputs; what is returned must live as long."""
    buffers = {
        name: backend.upload(np.ascontiguousarray(array)) for name, array in run.inputs.items()
    }
    for name, buffer in buffers.items():
        trt_context.set_input_shape(name, buffer.shape)
    for tensor in graph.spec.outputs:
        buffers[tensor.name] = backend.empty(run.outputs[tensor.name].shape, tensor.dtype)
    for name, buffer in buffers.items():
        trt_context.set_tensor_address(name, buffer.address)
    return buffers


def make_profiler(flavour: Flavour) -> Any:
    """Return a profiler of that library; `totals` holds milliseconds per layer, over all runs."""
    trt = flavour.trt

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return Profiler()
