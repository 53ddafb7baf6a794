"""A fake device over ONNX Runtime: proves without a GPU that device memory stays on the device.

Its buffers refuse every host access, start poisoned, and are poisoned again before a graph writes
into them, so whatever is read too early, too late or through the back door shows. Work on two
streams that nobody put in order is refused where a GPU would race.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from refsam_trt.backends.base import Buffer, Context, Download, Graph, numpy_dtype
from refsam_trt.backends.fake_streams import (
    FakeDownload,
    FakeStream,
    FakeStreams,
    History,
)
from refsam_trt.backends.host import HostBuffer
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.contract.specs import DType, GraphSpec
from refsam_trt.errors import InternalError

NAME = "fake"


class FakeBuffer:
    """Memory that only `FakeBackend` may look into; `history` is shared by all its views."""

    device = "fake:0"

    def __init__(self, memory: HostBuffer, history: History | None = None) -> None:
        self._memory = memory
        self.history = history or History()
        self.dtype: DType = memory.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self._memory.shape

    def rows(self, start: int, stop: int) -> FakeBuffer:
        """Return a view of `[start:stop]` on the leading axis."""
        return FakeBuffer(self._memory.rows(start, stop), self.history)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InternalError(f"host access to a {self.dtype} {list(self.shape)} buffer on a device")

    __array__ = __getitem__ = __setitem__ = __len__ = __iter__ = __bool__ = __dlpack__ = _refuse


class FakeContext:
    """Runs the graph on the hidden memory, one thread at a time."""

    def __init__(self, context: Context, streams: FakeStreams) -> None:
        self._context, self._streams = context, streams
        self._busy = threading.Lock()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Poison the outputs, then run; refuses outputs that overlap inputs or each other."""
        if not self._busy.acquire(blocking=False):
            raise InternalError("one context used by two threads at once")
        try:
            sources = {name: memory_of(buffer) for name, buffer in inputs.items()}
            targets = {name: memory_of(buffer) for name, buffer in outputs.items()}
            _refuse_overlap(sources, targets)
            reads, writes = map(_histories, (inputs, outputs))
            self._streams.current.begin(reads, writes)
            for target in targets.values():
                _poison(target.array)
            self._context.run(sources, targets)
        finally:
            self._busy.release()


class FakeGraph:
    """A graph whose contexts take fake buffers."""

    def __init__(self, graph: Graph, streams: FakeStreams) -> None:
        self.spec: GraphSpec = graph.spec
        self._graph, self._streams = graph, streams

    def context(self) -> FakeContext:
        """Return a new execution context."""
        return FakeContext(self._graph.context(), self._streams)


class FakeBackend(OrtCpuBackend):
    """A device for tests: ONNX Runtime computes, but nobody else gets at the memory."""

    name = NAME
    precision_notes = "as ort-cpu, which computes; for tests only"

    def __init__(self, num_threads: int | None = None) -> None:
        super().__init__(num_threads)
        self._streams = FakeStreams()

    def load(self, path: Path, spec: GraphSpec) -> FakeGraph:
        """Load an ONNX file."""
        return FakeGraph(super().load(path, spec), self._streams)

    def new_stream(self) -> FakeStream:
        """Return a stream that remembers which work it is behind."""
        return FakeStream(self._streams)

    def empty(self, shape: Sequence[int], dtype: DType) -> FakeBuffer:
        """Return a new, poisoned buffer."""
        array = np.empty(shape, numpy_dtype(dtype, NAME))
        _poison(array)
        return FakeBuffer(HostBuffer(array))

    def upload(self, array: np.ndarray, out: Buffer | None = None) -> Buffer:
        """Copy a host array and wait for the stream."""
        target = super().upload(array, out)
        self._transfer(writes=[target])
        return target

    def begin_download(self, buffer: Buffer) -> Download:
        """Copy to the host; the copy may be asked for on any thread."""
        stream = self._streams.current
        stream.begin(_histories({"source": buffer}), [])
        return FakeDownload(super().download(buffer), stream.record())

    def download(self, buffer: Buffer) -> np.ndarray:
        """Return a copy on the host."""
        return self.begin_download(buffer).result()

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy between two buffers; refuses memory shared by both."""
        _refuse_overlap({"source": memory_of(source)}, {"target": memory_of(target)})
        super().copy(source, target)
        self._transfer(reads=[source], writes=[target])

    def _transfer(self, reads: Sequence[Buffer] = (), writes: Sequence[Buffer] = ()) -> None:
        stream = self._streams.current
        stream.begin(*(_histories(dict(enumerate(buffers))) for buffers in (reads, writes)))
        stream.record().sync()

    def _array_of(self, buffer: Buffer) -> np.ndarray:
        return memory_of(buffer).array


def memory_of(buffer: Buffer) -> HostBuffer:
    """Return the memory behind a fake buffer, or refuse a buffer of another backend."""
    if not isinstance(buffer, FakeBuffer):
        raise InternalError(f"backend {NAME} was given a buffer of device {buffer.device}")
    return buffer._memory


def _histories(buffers: Mapping[Any, Buffer]) -> list[History]:
    return [buffer.history for buffer in buffers.values() if isinstance(buffer, FakeBuffer)]


def _poison(array: np.ndarray) -> None:
    if array.dtype.kind == "f":
        array.fill(np.nan)
    elif array.dtype.kind == "b":
        array.reshape(-1)[::2] = True
        array.reshape(-1)[1::2] = False
    else:
        array.fill(np.iinfo(array.dtype).min // 3)


def _refuse_overlap(sources: Mapping[str, HostBuffer], targets: Mapping[str, HostBuffer]) -> None:
    for name, target in targets.items():
        others = {**sources, **{n: t for n, t in targets.items() if n != name}}
        for other_name, other in others.items():
            if np.may_share_memory(target.array, other.array):
                raise InternalError(f"output {name!r} overlaps {other_name!r} in memory")
