"""Which backend `auto` takes on a CPU: ONNX Runtime, or OpenVINO where that was seen to be faster.

Seen once per bundle, variant, CPU, number of threads and versions, on a few frames of noise; what
came out is kept in the user's cache folder, one small file each. Whatever such a file says is
checked before it is used, and where none can be kept, nothing is measured.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from refsam_trt.backends import cpu
from refsam_trt.backends.openvino.backend import CPU as OPENVINO
from refsam_trt.backends.ort import NAME as ORT
from refsam_trt.backends.select import AUTO, REFUSED_PRECISIONS, open_backend
from refsam_trt.bundle.golden import tolerance
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import Manifest, Variant
from refsam_trt.errors import OutputError, RefsamError, UsageError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.files.cache_folder import user_cache_folder
from refsam_trt.session.engine import Engine
from refsam_trt.versions import UNKNOWN, version_of

IS_ON_TRIAL = True
"""A process that ran OpenVINO ended once without a word, for a reason that is not known; until it
is, `auto` must not cost anybody finished work (docs/deploy/cpu.md)."""
MIN_FLOPS = 50e9
"""Per frame with one expression. Below it, a start costs more than any backend can win back soon:
OpenVINO alone takes a second to import and seconds to compile."""
MIN_ADVANTAGE = 1.1
"""How many times as fast OpenVINO must be; less is within what a busy machine makes of equals."""
MAX_RECORDS = 64
"""The oldest go first."""
MAX_RECORD_BYTES = 4096

_SCHEMA = 1
_MAX_FRAMES = 4
_MAX_SECONDS = 10.0
"""After which no other frame is begun on a backend."""
_FRAME_HW = (480, 640)
_PATTERN = "fastest-*.json"
_LOG = logging.getLogger("refsam_trt")


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a measurement depends on; `features` is a hash of the CPU's instruction sets."""

    bundle_id: str
    variant: str
    cpu: str
    features: str
    num_cores: int
    num_threads: int | None
    onnxruntime: str
    openvino: str


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came out: seconds per frame, and how far the logits are apart.

    `refusal` is why OpenVINO did not run, None where it did; the figures of it are then None.
    `allowed` is the largest relative `error` of the variant's precision.
    """

    schema: int
    key: Key
    ort_s: float
    openvino_s: float | None
    error: float | None
    allowed: float
    refusal: str | None = None

    @property
    def backend(self) -> str:
        """The backend that `auto` takes."""
        is_equal = self.error is not None and self.error <= self.allowed
        is_faster = self.openvino_s is not None and self.ort_s >= MIN_ADVANTAGE * self.openvino_s
        return OPENVINO if is_equal and is_faster else ORT

    @property
    def reason(self) -> str:
        """Why, as a clause."""
        if self.openvino_s is None:
            return f"{OPENVINO} does not run it: {self.refusal}"
        times = f"a frame takes {self.openvino_s:.3g} s on {OPENVINO}, {self.ort_s:.3g} s on {ORT}"
        if self.error is None or self.error > self.allowed:
            error = "no number" if self.error is None else f"{self.error:.1g}"
            return f"{times}, but logits differ by {error}, allowed is {self.allowed:g}"
        return f"{times}; logits differ by {self.error:.1g}"


def auto_backend(bundle: Bundle, variant: str, num_threads: int | None) -> str:
    """Return what `auto` stands for, and log it with the reason.

    May measure, which takes the time of loading the variant on both backends and of at most
    `_MAX_FRAMES` frames on each, and needs the memory of one at a time.

    Args:
        bundle: opened.
        variant: name of the variant that is to run.
        num_threads: as `load` takes it.
    """
    entry = bundle.manifest.variants[variant]
    if version_of("openvino") == UNKNOWN or entry.precision in REFUSED_PRECISIONS[ORT]:
        return AUTO
    if IS_ON_TRIAL:
        return _told(ORT, f"{OPENVINO} is on trial, and runs where it is asked for by name")
    if (flops := _frame_flops(entry)) < MIN_FLOPS:
        why = f"{flops / 1e9:.3g} GFLOP a frame, below {MIN_FLOPS / 1e9:g} nothing is measured"
        return _told(ORT, why)
    try:
        folder = records_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, UsageError) as error:
        return _told(ORT, f"no measurement can be kept ({error})")
    if not os.access(folder, os.W_OK):
        return _told(ORT, f"no measurement can be kept: {folder} cannot be written")
    key, allowed = _key(bundle, variant, num_threads), tolerance(entry.precision, has_tf32=False)
    path = folder / f"fastest-{hashlib.sha256(msgspec.json.encode(key)).hexdigest()}.json"
    measurement = _read(path, key, allowed)
    if measurement is None:
        _LOG.info("%s and %s are measured once for this bundle on this CPU", ORT, OPENVINO)
        try:
            measurement = _measure(bundle, key, allowed)
        except RefsamError as error:  # which a session would meet as well
            return _told(ORT, f"the bundle cannot be measured ({error})")
        _keep(path, measurement)
    return _told(measurement.backend, f"{measurement.reason} ({path})")


def records_folder() -> Path:
    """Return the folder of the measurements, which need not exist.

    Raises:
        UsageError: the account has no home folder.
    """
    return user_cache_folder() / "fastest"


def kept_measurements(folder: Path) -> Iterator[Measurement]:
    """Yield the sound measurements of a folder, latest first."""
    for path in _by_age(folder):
        with suppress(OSError, msgspec.MsgspecError, ValueError):
            yield _decoded(path)


def _told(backend: str, reason: str) -> str:
    _LOG.info("backend auto is %s: %s", backend, reason)
    return backend


def _frame_flops(variant: Variant) -> float:
    """Return the arithmetic of a frame: all graphs that read something of the frame."""
    return sum(
        sum(entry.flops.values())
        for entry in variant.graphs.values()
        if any(tensor.scope == "frame" for tensor in entry.spec.inputs)
    )


def _key(bundle: Bundle, variant: str, num_threads: int | None) -> Key:
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    num_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    features = "\n".join(sorted(cpu.features())).encode()
    return Key(
        bundle_id=bundle.bundle_id,
        variant=variant,
        cpu=cpu.processor(),
        features=hashlib.sha256(features).hexdigest()[:16],
        num_cores=num_cores or 1,
        num_threads=num_threads,
        onnxruntime=version_of("onnxruntime"),
        openvino=version_of("openvino"),
    )


def _measure(bundle: Bundle, key: Key, allowed: float) -> Measurement:
    """Run a video on one backend after the other; only OpenVINO may fail.

    Raises:
        RefsamError: ONNX Runtime cannot run the bundle, so nothing here can.
    """
    ort_s, expected = _run(bundle, key, ORT)
    try:
        openvino_s, logits = _run(bundle, key, OPENVINO)
    except RefsamError as error:
        return Measurement(_SCHEMA, key, ort_s, None, None, allowed, str(error)[:1000])
    difference = _relative_error(logits, expected)
    return Measurement(_SCHEMA, key, ort_s, openvino_s, difference, allowed)


def _run(bundle: Bundle, key: Key, name: str) -> tuple[float, list[np.ndarray]]:
    """Return the seconds of a frame on a backend, and the logits of each frame.

    The fastest frame counts: what else the machine does only ever adds to it. The first is left
    out where there are others, as memory is allocated and kernels are made in it.
    """
    random = np.random.default_rng(0)
    backend = open_backend(name, key.num_threads)
    try:
        engine = Engine(bundle, key.variant, backend, "lazy")
    except BaseException:
        backend.close()
        raise
    seconds: list[float] = []
    logits: list[np.ndarray] = []
    with engine, engine.open_video() as video:
        video.add_expression(_expression(bundle.manifest))
        while len(seconds) < _MAX_FRAMES and sum(seconds) < _MAX_SECONDS:
            frame = random.integers(0, 256, (*_FRAME_HW, 3), np.uint8)
            start = time.perf_counter()
            results = video.step(frame)
            seconds.append(time.perf_counter() - start)
            logits.extend(result.low_res_logits for result in results)
    return min(seconds[1:] or seconds), logits


def _expression(manifest: Manifest) -> str:
    """Return words that the model knows, so that nobody is warned of those that it does not."""
    return " ".join((manifest.vocabulary or ("the", "object"))[:3])


def _relative_error(logits: list[np.ndarray], expected: list[np.ndarray]) -> float | None:
    """Compare the frames that both ran (2-norms); None if there is none or it is not finite."""
    pairs = [(a.astype(np.float64), b) for a, b in zip(logits, expected, strict=False)]
    if not pairs:
        return None
    difference = math.hypot(*(float(np.linalg.norm(a - b)) for a, b in pairs))
    size = math.hypot(*(float(np.linalg.norm(b)) for _, b in pairs))
    error = difference / max(size, 1e-12)
    return error if math.isfinite(error) else None


def _read(path: Path, key: Key, allowed: float) -> Measurement | None:
    """Return what was measured before, None if nothing sound was."""
    try:
        measurement = _decoded(path)
        if (measurement.key, measurement.allowed) != (key, allowed):
            raise ValueError("it is of something else")
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        _LOG.info("%s: measured anew (%s)", path, error)
        return None
    return measurement


def _decoded(path: Path) -> Measurement:
    with path.open("rb") as file:
        content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise ValueError(f"more than {MAX_RECORD_BYTES} bytes")
    measurement = msgspec.json.decode(content, type=Measurement)
    figures = [measurement.ort_s, measurement.allowed]
    if measurement.openvino_s is not None:
        figures.append(measurement.openvino_s)
    if measurement.schema != _SCHEMA or min(figures) <= 0 or (measurement.error or 0) < 0:
        raise ValueError("no measurement of this version")
    return measurement


def _keep(path: Path, measurement: Measurement) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(measurement))
        for old in list(_by_age(path.parent))[MAX_RECORDS:]:
            old.unlink(missing_ok=True)
    except (OSError, OutputError) as error:
        _LOG.info("%s: not kept, so it is measured again next time (%s)", path, error)


def _by_age(folder: Path) -> Iterator[Path]:
    """Yield the files of measurements, latest first."""
    ages = {}
    for path in folder.glob(_PATTERN):
        with suppress(OSError):  # another process was faster
            ages[path] = path.stat().st_mtime_ns
    yield from sorted(ages, key=lambda path: ages[path], reverse=True)
