"""Ranges of the inputs of layers, as a file: what they are and what they follow from.

What they follow from is in the file: hashes of the image encoder, of the clips and of the options.
Only the image encoder counts of the model, as nothing else has layers that are quantised.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
from torch import nn

from refsam_calibration.quantise.schemes import Scheme
from refsam_calibration.ranges.clipping import Method
from refsam_calibration.ranges.histogram import NUM_BINS
from refsam_calibration.ranges.smoothing import Smoothing, fold_smoothing
from refsam_export.refsam.model.refsam import RefSam
from refsam_trt.errors import CalibrationError, UsageError
from refsam_trt.files.atomic import atomic_path

SCHEMA = 1
Alpha = float | Literal["auto", "none"]


class _StrictStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class RangeOptions(_StrictStruct, frozen=True):
    """How ranges are chosen.

    scheme: which eight bits. method: `clipping.Method`. percentile: of that method, in percent.
    alpha: of SmoothQuant, 0 to 1; `auto` searches it per norm, `none` leaves the norms alone.
    layers: module paths of the linear layers, in the order that they run in.
    """

    scheme: Scheme
    layers: tuple[str, ...]
    method: Method = "mse"
    percentile: float = 99.99
    alpha: Alpha = "auto"
    num_bins: int = NUM_BINS

    def __post_init__(self) -> None:
        if self.method == "entropy" and self.scheme == "fp8":
            raise UsageError(
                "method entropy counts int8's 128 equal steps, which fp8 does not have; give "
                "minmax, percentile or mse"
            )
        if not 0.0 < self.percentile <= 100.0:
            raise UsageError(f"percentile {self.percentile}: expected above 0 to 100")
        if not isinstance(self.alpha, str) and not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha {self.alpha}: expected 0 to 1, auto or none")
        if not self.layers:
            raise UsageError("no layer to quantise; name kinds or layers with --layers")


class LayerRange(_StrictStruct, frozen=True):
    """The range of one layer's input. amax: what is represented; largest: what was seen."""

    amax: float
    largest: float


class Ranges(_StrictStruct, frozen=True):
    """Ranges with all that they follow from, and the smoothing that they hold for.

    The hashes are SHA-256 in hexadecimal, those of the options of their canonical JSON.
    """

    schema: int
    model_sha256: str
    data_sha256: str
    options_sha256: str
    options: RangeOptions
    num_frames: int
    smoothing: dict[str, Smoothing]
    layers: dict[str, LayerRange]

    @property
    def amax(self) -> dict[str, float]:
        """The largest magnitude to represent, by module path of the layer."""
        return {name: layer.amax for name, layer in self.layers.items()}

    @property
    def key(self) -> str:
        """What they follow from, as one hash."""
        return ranges_key(self.model_sha256, self.data_sha256, self.options)


def ranges_key(model_sha256: str, data_sha256: str, options: RangeOptions) -> str:
    """Return one hash of everything that ranges follow from."""
    return hashlib.sha256(
        f"{model_sha256}{data_sha256}{options_digest(options)}".encode()
    ).hexdigest()


def sha256_of(module: nn.Module) -> str:
    """Return a SHA-256 of names, shapes and values of all tensors of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(ranges), indent=1))


def read_ranges(path: Path, model: RefSam) -> Ranges:
    """Read ranges of this model, which must not be smoothed yet.

    Raises:
        CalibrationError: no such file, not ranges, or those of another model.
    """
    try:
        ranges = msgspec.json.decode(path.read_bytes(), type=Ranges)
    except OSError as error:
        raise CalibrationError(
            f"{path}: no readable file of ranges ({error.strerror}); leave --ranges out to measure "
            "them"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, UsageError) as error:
        raise CalibrationError(
            f"{path}: not ranges of refsam-calibrate ({error}); measure them anew"
        ) from error
    if problem := _contradiction(ranges):
        raise CalibrationError(
            f"{path}: not ranges of refsam-calibrate ({problem}); measure them anew"
        )
    expected = sha256_of(model.image_encoder)
    if ranges.model_sha256 != expected:
        raise CalibrationError(
            f"{path}: ranges of another model (image encoder {ranges.model_sha256[:16]}, this "
            f"bundle's is {expected[:16]}); measure them anew, or give the bundle they are of"
        )
    return ranges


def _contradiction(ranges: Ranges) -> str | None:
    if ranges.schema != SCHEMA:
        return f"schema {ranges.schema}, this version reads {SCHEMA}"
    if ranges.options_sha256 != options_digest(ranges.options):
        return "the hash of its options is that of others"
    if set(ranges.layers) != set(ranges.options.layers):
        return "it has ranges of other layers than its options name"
    return None


def fold_ranges(model: RefSam, ranges: Ranges) -> None:
    """Smooth a model, in place, as the one was that the ranges were measured on."""
    fold_smoothing(model, {name: norm.exponents for name, norm in ranges.smoothing.items()})


def options_digest(options: RangeOptions) -> str:
    """Return a SHA-256 of the options' canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(options, order="sorted")).hexdigest()
