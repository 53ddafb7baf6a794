"""Plans on their GPU: does the library take them, and do they compute the golden outputs?"""

from __future__ import annotations

from typing import Any

from refsam_bench.gpu.opened import OpenedCase
from refsam_trt.backends.tensorrt import rtx
from refsam_trt.backends.tensorrt.backend import TrtBackend
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.backends.tensorrt.log import TrtLog, make_logger
from refsam_trt.backends.tensorrt.self_test import run_golden
from refsam_trt.bundle.golden import read_golden, tolerance
from refsam_trt.bundle.plans import Plans, open_plans


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
    found = {}
    for name in plans.manifest.graphs:
        answer, diagnostics = rtx.engine_validity(runtime, plans.plan(name).read_bytes())
        found[name] = {"validity": answer.name, "diagnostics": diagnostics}
    return {"verdicts": found, "log": log.of("ERROR")}


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
