"""A stand-in for cuda-core whose GPU is host memory and whose streams are as late as they may be.

What is put on a stream happens when somebody waits for it, not before: whoever reuses memory too
early or reads too soon gets wrong bytes. Memory begins as noise.
"""

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refsam_trt.backends.cuda import driver

GPU = {
    "driver_version": "13.0",
    "devices": [{"name": "Some GPU", "compute_capability": "8.7", "memory_mib": 4096}],
}
_QUEUES: dict[int, list[Callable[[], None]]] = {}


def enqueue(stream_handle: int, work: Callable[[], None]) -> None:
    """Put work on a stream."""
    _QUEUES[stream_handle].append(work)


class Event:
    """A point of a stream: `sync` does what lies before it, and nothing behind it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._is_reached = False
        enqueue(handle, self._reach)

    def _reach(self) -> None:
        self._is_reached = True

    def sync(self) -> None:
        while not self._is_reached:
            _QUEUES[self._handle].pop(0)()


class Stream:
    def __init__(self) -> None:
        self.handle = 1000 + len(_QUEUES)
        _QUEUES[self.handle] = []

    def sync(self) -> None:
        queue = _QUEUES[self.handle]
        while queue:
            queue.pop(0)()

    def record(self) -> Event:
        return Event(self.handle)

    def wait(self, event: Event) -> None:
        enqueue(self.handle, event.sync)

    def create_graph_builder(self) -> "GraphBuilder":
        return GraphBuilder()


class GraphBuilder:
    """Records what is put on its stream."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.is_building = False

    def begin_building(self) -> "GraphBuilder":
        self.is_building = True
        return self

    def end_building(self) -> "GraphBuilder":
        self.is_building = False
        return self

    def close(self) -> None:
        self.is_building = False

    def complete(self) -> Any:
        assert not self.is_building
        work = list(_QUEUES[self.stream.handle])
        state = SimpleNamespace(num_launches=0)

        def launch(stream: Stream) -> None:
            state.num_launches += 1
            _QUEUES[stream.handle].extend(work)

        state.launch, state.upload = launch, lambda stream: None
        return state


class Buffer:
    def __init__(self, handle: int, size: int, owner: Any) -> None:
        self.handle, self.size, self._owner = handle, size, owner

    @staticmethod
    def from_handle(ptr: int, size: int, owner: Any = None) -> "Buffer":
        return Buffer(ptr, size, owner)

    def copy_to(self, dst: "Buffer", *, stream: Stream) -> None:
        assert dst.size == self.size
        enqueue(stream.handle, lambda: ctypes.memmove(dst.handle, self.handle, self.size) and None)

    def copy_from(self, src: "Buffer", *, stream: Stream) -> None:
        src.copy_to(self, stream=stream)


class FakeCuda:
    """The modules, and what a test may change about the GPU."""

    def __init__(self) -> None:
        self.free_bytes = 2**32
        self.num_allocations = 0
        self.current_threads: list[int] = []
        self.core: Any = ModuleType("cuda.core")
        self.core.Device = lambda index: SimpleNamespace(
            set_current=lambda: None, create_stream=Stream, allocate=self._allocate
        )
        self.core.Buffer = Buffer
        self.core.LegacyPinnedMemoryResource = lambda: SimpleNamespace(allocate=self._allocate)
        self.utils: Any = ModuleType("cuda.core.utils")
        self.utils.StridedMemoryView = SimpleNamespace(from_any_interface=self._view)
        self.driver: Any = ModuleType("cuda.bindings.driver")
        self.driver.cuMemGetInfo = lambda: (0, self.free_bytes, 2**33)

    def _allocate(self, size: int, *, stream: Stream) -> Buffer:
        if size > self.free_bytes:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: no room")
        self.num_allocations += 1
        noise = np.full(size, 0xA5, np.uint8)
        return Buffer(noise.ctypes.data, size, noise)

    def _view(self, array: Any, stream_ptr: int) -> Any:
        interface = array.__cuda_array_interface__
        assert stream_ptr in _QUEUES
        enqueue(stream_ptr, array.finish)  # what its own library has still to do to it
        return SimpleNamespace(
            ptr=interface["data"][0],
            shape=interface["shape"],
            dtype=np.dtype(interface["typestr"]),
            strides=array.element_strides,
            device_id=array.device_id,
            is_device_accessible=array.device_id >= 0,
        )


class GpuArray:
    """Another library's array on the fake GPU, by `__cuda_array_interface__`.

    That library has not computed it yet: `finish` does, put on a stream that waits for it.
    """

    def __init__(self, array: np.ndarray, device_id: int = 0) -> None:
        self.array = array
        self.device_id = device_id
        self.shape = array.shape
        self.element_strides: tuple[int, ...] | None = None
        self._content = array.copy()
        array[...] = 0

    def finish(self) -> None:
        """Compute the array."""
        self.array[...] = self._content

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        array = self.array
        data = (array.ctypes.data, False)
        return {"version": 3, "shape": array.shape, "typestr": array.dtype.str, "data": data}


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Make the fake GPU the machine's."""
    fake = FakeCuda()
    parent = ModuleType("cuda")
    parent.core, parent.bindings = fake.core, ModuleType("cuda.bindings")
    modules = {
        "cuda": parent,
        "cuda.core": fake.core,
        "cuda.core.utils": fake.utils,
        "cuda.bindings": parent.bindings,
        "cuda.bindings.driver": fake.driver,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(driver, "describe", lambda: GPU)
    return fake
