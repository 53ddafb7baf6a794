"""Timing a session stage by stage without touching it: a backend that counts seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refsam_trt.backends.base import Backend, Buffer, Context, Download, Graph, Stream, Transfers
from refsam_trt.contract.specs import DType, GraphSpec

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Summary:
    """Distribution of one duration, milliseconds; `num_samples` of them after warm-up."""

    num_samples: int
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Summarise durations in seconds."""
        ms = np.asarray(seconds, np.float64) * 1e3
        p50, p90, p95, p99 = (float(value) for value in np.percentile(ms, PERCENTILES))
        return cls(len(ms), float(ms.mean()), float(ms.min()), p50, p90, p95, p99, float(ms.max()))


@dataclass(frozen=True)
class FrameSummary(Summary):
    """Distribution of the time of a frame; `fps` is the rate at the median."""

    fps: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> FrameSummary:
        """Summarise durations in seconds."""
        summary = Summary.of(seconds)
        return cls(**asdict(summary), fps=1e3 / summary.p50_ms)


@dataclass(frozen=True)
class Ratio:
    """Distribution of how many times as fast one side is as another, sample by sample."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, slow_s: Sequence[float], fast_s: Sequence[float]) -> Ratio:
        """Compare durations in seconds, as many of each side."""
        ratios = np.asarray(slow_s) / np.asarray(fast_s)
        return cls(*(float(value) for value in np.percentile(ratios, (10, 50, 90))))


class Stopwatch:
    """Seconds per stage, summed within a lap (a frame)."""

    def __init__(self) -> None:
        self._laps: list[dict[str, float]] = []
        self._current: dict[str, float] = defaultdict(float)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of any lap, in the order in which they first ended."""
        return tuple(dict.fromkeys(name for lap in self._laps for name in lap))

    def seconds(self, name: str) -> list[float]:
        """Return the time of a stage in each lap, 0 in a lap without it."""
        return [lap.get(name, 0.0) for lap in self._laps]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a stage of the current lap."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._current[name] += time.perf_counter() - start

    def lap(self) -> None:
        """End the lap."""
        self._laps.append(dict(self._current))
        self._current.clear()

    def discard(self) -> None:
        """Forget the current lap: warm-up."""
        self._current.clear()


class TimedBackend:
    """Times uploads, downloads and graph runs of another backend; everything else is its own."""

    def __init__(self, backend: Backend, stopwatch: Stopwatch) -> None:
        self._backend, self._stopwatch = backend, stopwatch
        self.name: str = backend.name
        self.precision_notes: str = backend.precision_notes
        self.transfers: Transfers = backend.transfers

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load a graph; its runs count as a stage named after the file."""
        return _TimedGraph(self._backend.load(path, spec), path.stem, self._stopwatch)

    def new_stream(self) -> Stream:
        """Return a stream of the other backend."""
        return self._backend.new_stream()

    def empty(self, shape: Sequence[int], dtype: DType) -> Buffer:
        """Return a new buffer."""
        return self._backend.empty(shape, dtype)

    def upload(self, array: np.ndarray[Any, Any], out: Buffer | None = None) -> Buffer:
        """Copy to the device, timed."""
        with self._stopwatch.stage("upload"):
            return self._backend.upload(array, out)

    def begin_download(self, buffer: Buffer) -> Download:
        """Begin a copy to the host; waiting for it is timed."""
        return _TimedDownload(self._backend.begin_download(buffer), self._stopwatch)

    def download(self, buffer: Buffer) -> np.ndarray[Any, Any]:
        """Copy to the host, timed; includes waiting for the device."""
        with self._stopwatch.stage("download"):
            return self._backend.download(buffer)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy device to device."""
        self._backend.copy(source, target)

    def adopt(self, array: Any) -> Buffer:
        """Return a buffer of the other backend."""
        return self._backend.adopt(array)

    def close(self) -> None:
        """Close the other backend."""
        self._backend.close()


class _TimedDownload:
    def __init__(self, download: Download, stopwatch: Stopwatch) -> None:
        self._download, self._stopwatch = download, stopwatch

    def result(self) -> np.ndarray[Any, Any]:
        with self._stopwatch.stage("download"):
            return self._download.result()


class _TimedGraph:
    def __init__(self, graph: Graph, name: str, stopwatch: Stopwatch) -> None:
        self._graph, self._name, self._stopwatch = graph, name, stopwatch
        self.spec = graph.spec

    def context(self) -> Context:
        return _TimedContext(self._graph.context(), self._name, self._stopwatch)


class _TimedContext:
    def __init__(self, context: Context, name: str, stopwatch: Stopwatch) -> None:
        self._context, self._name, self._stopwatch = context, name, stopwatch

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        with self._stopwatch.stage(self._name):
            self._context.run(inputs, outputs)
