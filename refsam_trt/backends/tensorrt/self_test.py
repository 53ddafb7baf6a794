"""Golden self-test: a plan runs its stored inputs once on each machine before anybody uses it.

Once per plan, GPU and driver: what was passed is remembered as an empty file in the user's cache
folder, whose name is a hash of all three.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refsam_trt.backends.base import Backend, Graph
from refsam_trt.bundle.golden import GoldenRun, read_golden, tolerance
from refsam_trt.bundle.plans import Plans
from refsam_trt.errors import PlanDamagedError, PlanMismatchError

if TYPE_CHECKING:
    from refsam_trt.backends.cuda.device import DeviceFacts

_LOG = logging.getLogger("refsam_trt")


class SelfTests:
    """Which plans were found right on which GPU and driver.

    Args:
        folder: of the marks; made when the first one is left. None remembers nothing.
        facts: the GPU and its driver.
    """

    def __init__(self, folder: Path | None, facts: DeviceFacts) -> None:
        self._folder = folder
        self._facts = facts

    def check(self, backend: Backend, graph: Graph, plans: Plans, name: str) -> None:
        """Run the golden inputs of a graph and compare, unless that was done here before.

        Raises:
            PlanMismatchError: the outputs differ by more than the precision explains.
            PlanDamagedError: there are no golden tensors for this graph.
        """
        mark = self._mark(plans, name)
        if mark is not None and mark.exists():
            return
        runs = read_golden(plans.golden)
        if name not in runs:
            raise PlanDamagedError(
                f"{plans.golden}: no golden tensors of graph {name!r}; build the plans again: "
                f"{plans.manifest.build_command}"
            )
        _compare(run_golden(backend, graph, runs[name]), runs[name], plans, name, self._facts.name)
        if mark is not None:
            _leave(mark)

    def _mark(self, plans: Plans, name: str) -> Path | None:
        if self._folder is None:
            return None
        facts = self._facts
        parts = (plans.plan_id, name, facts.name, facts.compute_capability, facts.driver_version)
        return self._folder / hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_golden(backend: Backend, graph: Graph, run: GoldenRun) -> dict[str, np.ndarray]:
    """Run a graph on golden inputs and return its outputs on the host."""
    inputs = {
        name: backend.upload(np.ascontiguousarray(array)) for name, array in run.inputs.items()
    }
    outputs = {
        tensor.name: backend.empty(run.outputs[tensor.name].shape, tensor.dtype)
        for tensor in graph.spec.outputs
    }
    graph.context().run(inputs, outputs)
    return {name: backend.download(buffer) for name, buffer in outputs.items()}


def _compare(
    outputs: dict[str, np.ndarray], run: GoldenRun, plans: Plans, name: str, gpu: str
) -> None:
    precision = plans.manifest.graphs[name].precision
    allowed = tolerance(precision, has_tf32=plans.manifest.builder.has_tf32)
    for tensor, error in run.errors(outputs).items():
        if error > allowed:
            raise PlanMismatchError(
                f"{plans.plan(name)}: on {gpu}, output {tensor!r} differs from the golden one by "
                f"{error:.2g} (relative), {allowed:g} is allowed for {precision}; build the plans "
                f"again: {plans.manifest.build_command}, and if it stays so, use another "
                "--precision"
            )


def _leave(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:  # the test is run again next time, which costs time and nothing else
        _LOG.info("self-test not remembered: %s cannot be written (%s)", mark, error.strerror)
