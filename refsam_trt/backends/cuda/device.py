"""CUDA through cuda-core: one GPU, streams, memory, transfers, captured graphs.

The only module that knows cuda-core. Nothing here has run on a GPU yet (docs/proof/limits.md).

Ordering: every transfer waits for its end, so whatever lies on the GPU may be used by any thread.
Only work that is enqueued runs on, in the order of its stream; `download` waits for it.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refsam_trt.backends.cuda import driver
from refsam_trt.backends.cuda.errors import device_errors
from refsam_trt.backends.cuda.streams import OwnStream, PendingCopy
from refsam_trt.errors import BackendError, MissingExtraError


@dataclass(frozen=True)
class DeviceFacts:
    """What the driver says of a GPU; `driver_version` is the newest CUDA that it runs."""

    name: str
    compute_capability: str
    driver_version: str


class CudaDevice:
    """One GPU. May be shared by threads; each has a stream of its own beside those it enters.

    Args:
        index: of the GPU, as the driver counts them.

    Raises:
        BackendError: no driver, or no such GPU.
        MissingExtraError: cuda-core is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        # First of all: TensorRT 11 without a driver ends the process instead of raising an error.
        answer = driver.describe()
        if "error" in answer:
            raise BackendError(
                f"no GPU can be used: CUDA driver {answer['error']}; install NVIDIA's driver, or "
                "use backend ort-cpu"
            )
        if index >= len(answer["devices"]):
            raise BackendError(
                f"GPU {index}: the CUDA driver has {len(answer['devices'])} of them; check "
                "CUDA_VISIBLE_DEVICES, or use backend ort-cpu"
            )
        gpu = answer["devices"][index]
        self.facts = DeviceFacts(gpu["name"], gpu["compute_capability"], answer["driver_version"])
        self.name = f"cuda:{index}"
        core = _imported("cuda.core")
        with device_errors("opening the GPU"):
            self._core = core
            self._device = core.Device(index)
            self._pinned = core.LegacyPinnedMemoryResource()
        self._landings: list[Any] = []
        self._local = threading.local()
        self._own_streams: weakref.WeakSet[OwnStream] = weakref.WeakSet()

    @property
    def stream(self) -> Any:
        """The stream that was entered last, else that of this thread; the GPU becomes current."""
        local = self._thread()
        if local.entered:
            return local.entered[-1]
        if local.own is None:
            local.own = self._new_stream()
        return local.own

    def new_stream(self) -> OwnStream:
        """Return a stream that belongs to no thread."""
        self._thread()
        stream = OwnStream(self._new_stream(), self.enter, self.leave)
        self._own_streams.add(stream)
        return stream

    def enter(self, stream: Any) -> None:
        """Let this thread work on a stream until it leaves it."""
        self._thread().entered.append(stream)

    def leave(self) -> None:
        """Go back to the stream before."""
        self._thread().entered.pop()

    @property
    def stream_handle(self) -> int:
        """Address of the stream."""
        return int(self.stream.handle)

    def free_bytes(self) -> int:
        """Return how much memory of the GPU is free now."""
        driver = _imported("cuda.bindings.driver")
        self.stream  # noqa: B018 - makes the GPU current
        status, free_bytes, _ = driver.cuMemGetInfo()
        if int(status):
            raise BackendError(f"{self.name}: free memory cannot be asked for ({status})")
        return int(free_bytes)

    def allocate(self, num_bytes: int) -> Any:
        """Return memory of the GPU with undefined content; it is given back when unreferenced.

        Raises:
            DeviceMemoryError: there is no room.
        """
        with device_errors(f"allocating {num_bytes} bytes"):
            # CUDA has no allocation of 0 bytes. Allocation is ordered on the stream: waiting makes
            # the memory fit for any other one.
            memory = self._device.allocate(max(num_bytes, 1), stream=self.stream)
            self.stream.sync()
        return memory

    def upload(self, array: np.ndarray, address: int) -> None:
        """Copy a host array, any strides, to the GPU; returns when it is there."""
        if array.nbytes == 0:
            return
        with device_errors("uploading"):
            staging, host = self._staging(array.nbytes)
            np.copyto(host.view(array.dtype).reshape(array.shape), array)
            staging.copy_to(self._region(address, array.nbytes, self), stream=self.stream)
            self.stream.sync()

    def begin_download(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> PendingCopy:
        """Put a copy to the host on this stream and return at once."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        with device_errors("downloading"):
            stream = self.stream
            pinned = self._landing(num_bytes)
            if num_bytes:
                landing = self._region(int(pinned.handle), num_bytes, pinned)
                landing.copy_from(self._region(address, num_bytes, self), stream=stream)
            raw = (ctypes.c_uint8 * num_bytes).from_address(int(pinned.handle))
            array = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
            return PendingCopy(array, stream.record(), lambda: self._landings.append(pinned))

    def download(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return a host copy, after waiting for the work of this stream."""
        return self.begin_download(address, shape, dtype).result()

    def copy(self, source: int, target: int, num_bytes: int) -> None:
        """Copy from address to address of the GPU; returns when it is done."""
        if num_bytes == 0:
            return
        with device_errors("copying"):
            region = self._region(target, num_bytes, self)
            self._region(source, num_bytes, self).copy_to(region, stream=self.stream)
            self.stream.sync()

    def sync(self) -> None:
        """Wait for everything that was put on this stream."""
        with device_errors("waiting"):
            self.stream.sync()

    def sync_all(self) -> None:
        """Wait for everything on this thread's stream and on all of `new_stream`."""
        for stream in list(self._own_streams):
            with stream:
                self.sync()
        self.sync()

    def capture(self, enqueue: Callable[[int], None]) -> Any:
        """Return a graph of the work that `enqueue` puts on its stream; the graph has not run yet.

        That work must have run once before, so that nothing is allocated while it is captured.
        """
        with device_errors("capturing a CUDA graph"):
            builder = self.stream.create_graph_builder()
            builder.begin_building()
            try:
                enqueue(int(builder.stream.handle))
            except BaseException:
                builder.close()  # the stream would stay in capture mode for ever
                raise
            graph = builder.end_building().complete()
            graph.upload(self.stream)
        return graph

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        with device_errors("launching a CUDA graph"):
            graph.launch(self.stream)

    def view(self, array: Any) -> Any:
        """Return cuda-core's view of another library's array; the array's stream is waited for."""
        utils = _imported("cuda.core.utils")
        with device_errors("reading an array on the GPU"):
            view = utils.StridedMemoryView.from_any_interface(array, stream_ptr=self.stream_handle)
            self.stream.sync()  # the array may be read on another stream than this one
        return view

    def _landing(self, num_bytes: int) -> Any:
        """Return pinned memory that no download uses; making it anew makes the GPU wait."""
        try:
            pinned = self._landings.pop()
        except IndexError:
            pinned = None
        if pinned is None or pinned.size < num_bytes:
            pinned = self._pinned.allocate(max(num_bytes, 1), stream=self.stream)
        return pinned

    def _staging(self, num_bytes: int) -> tuple[Any, np.ndarray]:
        """Return this thread's pinned memory, exactly `num_bytes` of it, and as uint8 [num_bytes].

        The GPU copies from and to pinned memory only; a driver that is given other memory copies
        through pinned memory of its own, a piece at a time. Free again once the transfer is done.
        """
        local = self._thread()
        if local.staging is None or local.staging.size < num_bytes:
            local.staging = self._pinned.allocate(num_bytes, stream=self.stream)
        address = int(local.staging.handle)
        raw = (ctypes.c_uint8 * num_bytes).from_address(address)
        return self._region(address, num_bytes, local.staging), np.ctypeslib.as_array(raw)

    def _thread(self) -> Any:
        """Return what this thread has for itself; the GPU becomes current there."""
        local = self._local
        if not hasattr(local, "entered"):
            with device_errors("making the GPU current"):
                self._device.set_current()
            local.entered, local.own, local.staging = [], None, None
        return local

    def _new_stream(self) -> Any:
        with device_errors("making a stream"):
            return self._device.create_stream()

    def _region(self, address: int, num_bytes: int, owner: Any) -> Any:
        return self._core.Buffer.from_handle(address, num_bytes, owner=owner)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("cuda", f"module {name}", str(error)) from error
