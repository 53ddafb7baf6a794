"""TensorRT and TensorRT-RTX: plans of `refsam-build` on the GPU.

Nothing here has run on a GPU yet (docs/proof/limits.md). Order of events, never another one: the
driver is asked, the plans are compared with the machine, a runtime is made, a plan is deserialised,
its golden inputs are run, and only then does anybody get the graph.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refsam_trt.backends.base import Buffer, check_call
from refsam_trt.backends.cuda.device import CudaDevice
from refsam_trt.backends.cuda.errors import device_errors
from refsam_trt.backends.cuda.memory import CudaBuffer, CudaMemory, cuda_buffer
from refsam_trt.backends.tensorrt import rtx
from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.backends.tensorrt.log import TrtLog, make_logger
from refsam_trt.backends.tensorrt.machine_check import check_machine, check_memory
from refsam_trt.backends.tensorrt.self_test import SelfTests
from refsam_trt.bundle.plans import Plans
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import (
    BackendError,
    DeviceMemoryError,
    PlanDamagedError,
    PlanMemoryError,
)

_NUM_CAPTURES = 16
"""A step reads one of two track-token buffers and writes the other, in turn, for each of the places
of frames in flight: with `session.pipeline.DEPTH` there are some six."""

_Key = tuple[tuple[str, int, tuple[int, ...]], ...]


class TrtBackend(CudaMemory):
    """Runs a folder of plans; which library it needs is written there.

    Args:
        plans: opened, so whole.
        marks: folder that remembers which golden comparisons were passed; None remembers nothing.
        device: index of the GPU.

    Raises:
        BackendError: no driver, or no such GPU.
        MissingExtraError: the library, or cuda-core, is not installed.
        PlanError: the plans are for another version or GPU.
    """

    precision_notes = "that of the plans, whose types were counted when they were built"

    def __init__(self, plans: Plans, marks: Path | None, device: int = 0) -> None:
        super().__init__(CudaDevice(device))
        self.name: str = plans.manifest.builder.backend
        self.flavour = open_flavour(plans.manifest.builder.backend)
        check_machine(plans, self.flavour, self.device.facts)
        self.log = TrtLog()
        self._plans = plans
        self._self_tests = SelfTests(marks, self.device.facts)
        self._logger = make_logger(self.flavour, self.log)
        self.device.stream  # noqa: B018 - makes the GPU current before the library looks for it
        self._runtime = self.flavour.trt.Runtime(self._logger)
        self._lock = threading.Lock()

    def load(self, path: Path, spec: GraphSpec) -> TrtGraph:
        """Deserialise one of the plans, compare its tensors with `spec`, and try it.

        Raises:
            PlanError: it cannot be deserialised, has no room, or computes something else.
        """
        name = path.stem
        check_memory(self._plans, name, self.device.free_bytes())
        plan = path.read_bytes()
        command = self._plans.manifest.build_command
        with self._lock:
            since = len(self.log.lines)
            if self.flavour.is_rtx:
                rtx.check_validity(self.flavour, self._runtime, path, plan, command)
            trt_engine = self._runtime.deserialize_cuda_engine(plan)
        if trt_engine is None:
            raise PlanDamagedError(
                f"{path}: {self.name} {self.flavour.version} refuses this plan: "
                f"{self.log.errors(since)}; build the plans again: {command}"
            )
        graph = TrtGraph(self, path, trt_engine, spec)
        self._self_tests.check(self, graph, self._plans, name)
        return graph


class TrtGraph:
    """A deserialised plan; each of its contexts has scratch memory of its own."""

    def __init__(self, backend: TrtBackend, path: Path, trt_engine: Any, spec: GraphSpec) -> None:
        self.spec = spec
        self.path = path
        self.backend = backend
        self.trt_engine = trt_engine
        names = {trt_engine.get_tensor_name(i) for i in range(trt_engine.num_io_tensors)}
        expected = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
        if names != expected:
            raise PlanDamagedError(
                f"{path}: the plan has the tensors {sorted(names)}, its manifest {sorted(expected)}"
                "; build the plans again with refsam-build"
            )

    def context(self) -> TrtContext:
        """Return a new execution context."""
        return TrtContext(self)


class TrtContext:
    """Runs a plan for one session, on the stream that the caller has entered.

    A captured graph holds addresses and shapes. Whatever comes a second time is captured and from
    then on launched as one; anything else is enqueued as it is. TensorRT-RTX captures by itself.

    Invariant: a slot's context has the shapes and addresses of its key; all slots share the scratch
    memory, so they must run one after the other, as they do on one stream.
    """

    def __init__(self, graph: TrtGraph) -> None:
        self._graph = graph
        self._slots: OrderedDict[_Key, _Slot] = OrderedDict()
        flavour = graph.backend.flavour
        self._num_slots = 1 if flavour.is_rtx else _NUM_CAPTURES
        self._has_own_captures = not flavour.is_rtx
        self._scratch = None if flavour.is_rtx else self._new_scratch()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph (see `backends.base.Context`); returns as soon as it is enqueued."""
        check_call(self._graph.spec, inputs, outputs)
        buffers = {name: cuda_buffer(b) for name, b in {**inputs, **outputs}.items()}
        key = tuple((name, buffer.address, buffer.shape) for name, buffer in buffers.items())
        device = self._graph.backend.device
        slot = self._slots.get(key)
        if slot is None:
            slot = self._bind(key, buffers, tuple(inputs))
            slot.enqueue(device.stream_handle)
            return
        self._slots.move_to_end(key)
        if slot.captured is None and self._has_own_captures:
            slot.captured = device.capture(slot.enqueue)
        if slot.captured is None:
            slot.enqueue(device.stream_handle)
        else:
            device.launch(slot.captured)

    def _bind(self, key: _Key, buffers: Mapping[str, CudaBuffer], inputs: tuple[str, ...]) -> _Slot:
        """Give a new key a slot, the oldest one if all are taken."""
        if len(self._slots) < self._num_slots:
            slot = _Slot(self._graph, self._new_context())
        else:
            self._graph.backend.device.sync()  # its graph may still run
            slot = self._slots.popitem(last=False)[1]
        slot.bind(buffers, inputs)
        self._slots[key] = slot
        return slot

    def _new_scratch(self) -> Any:
        """Allocate scratch memory for the largest shapes; 256-byte aligned, as all is."""
        graph = self._graph
        try:
            return graph.backend.device.allocate(int(graph.trt_engine.device_memory_size_v2))
        except DeviceMemoryError as error:
            raise PlanMemoryError(
                f"{graph.path}: {error}; build smaller plans with refsam-build --max-expressions "
                "NUMBER"
            ) from error

    def _new_context(self) -> Any:
        graph, flavour = self._graph, self._graph.backend.flavour
        since = len(graph.backend.log.lines)
        if flavour.is_rtx:
            return rtx.new_context(flavour, graph.trt_engine, graph.backend.log)
        strategy = flavour.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        trt_context = graph.trt_engine.create_execution_context(strategy)
        if trt_context is None:
            raise PlanMemoryError(
                f"{graph.path}: no execution context ({graph.backend.log.errors(since)}); free GPU "
                "memory, or build smaller plans with refsam-build --max-expressions NUMBER"
            )
        scratch: Any = self._scratch
        trt_context.set_device_memory(int(scratch.handle), int(scratch.size))
        return trt_context


class _Slot:
    """An execution context of the library, and the CUDA graph of what it is bound to."""

    def __init__(self, graph: TrtGraph, trt_context: Any) -> None:
        self.captured: Any = None
        self._graph = graph
        self._trt_context = trt_context
        self._buffers: Mapping[str, CudaBuffer] = {}

    def bind(self, buffers: Mapping[str, CudaBuffer], inputs: tuple[str, ...]) -> None:
        """Set shapes and addresses, and keep the buffers."""
        self.captured = None
        self._buffers = buffers
        trt_context, since = self._trt_context, len(self._graph.backend.log.lines)
        for name, buffer in buffers.items():
            if name in inputs and not trt_context.set_input_shape(name, buffer.shape):
                raise BackendError(
                    f"{self._graph.path}: {name} {list(buffer.shape)} is outside of what the plan "
                    "was built for; build it with larger --max-expressions or --max-words"
                )
            if not trt_context.set_tensor_address(name, buffer.address):
                raise self._failed(f"refused the address of {name}", since)

    def enqueue(self, stream_handle: int) -> None:
        """Put the work on a stream."""
        since = len(self._graph.backend.log.lines)
        with device_errors("running a plan"):
            if not self._trt_context.execute_async_v3(stream_handle):
                raise self._failed("could not be run", since)

    def _failed(self, what: str, since: int) -> BackendError:
        backend = self._graph.backend
        return BackendError(
            f"{self._graph.path}: {what} by {backend.name}: {backend.log.errors(since)}; run "
            "refsam-doctor"
        )
