"""Which TensorRT is at hand: TensorRT 10.3 to 11.x or TensorRT-RTX, one API with known gaps.

Features that not every version has are asked for with `hasattr`, never by version and never by an
enum's integer (those moved between versions). Tests hold all names to the lists of the real APIs.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from refsam_trt.contract.plan_manifest import PlanBackend
from refsam_trt.errors import MissingExtraError, PlanVersionError

_MODULES: dict[PlanBackend, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    # The bindings' own module is there without the meta-package that makes the other one.
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_SUPPORTED: dict[PlanBackend, tuple[tuple[int, int], tuple[int, int]]] = {
    "tensorrt": ((10, 3), (12, 0)),
    "tensorrt-rtx": ((1, 7), (2, 0)),
}
"""First version that is known to have every name we use, and the first that may lack some."""
_CUDA_MAJORS = (11, 12, 13, 14)


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        trt: the module.
        version: its full version; plans are bound to it.
        cuda_major: CUDA that its wheel was built for; None where it is no wheel (Jetson).
    """

    backend: PlanBackend
    trt: Any
    version: str
    cuda_major: int | None

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which builds without a GPU."""
        return self.backend == "tensorrt-rtx"


def open_flavour(backend: PlanBackend) -> Flavour:
    """Import the library of a backend.

    Raises:
        MissingExtraError: it is not installed, or not whole.
        PlanVersionError: a version that this project does not know.
    """
    trt = _imported(backend)
    version = str(trt.__version__)
    first, last = _SUPPORTED[backend]
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not first <= number < last:
        raise PlanVersionError(
            f"{backend} {version} is installed, supported is {first[0]}.{first[1]} up to below "
            f'{last[0]}.{last[1]}; pip install "refsam-trt[{backend}]"'
        )
    return Flavour(backend, trt, version, _cuda_major(backend, version))


def _imported(backend: PlanBackend) -> Any:
    errors = []
    for name in _MODULES[backend]:
        try:
            module = importlib.import_module(name)
            if hasattr(module, "__version__"):  # a half-removed package imports as an empty one
                return module
            errors.append(f"module {name} is empty")
        # The bindings load shared libraries, which may be missing.
        except (ImportError, OSError) as error:
            errors.append(str(error))
    raise MissingExtraError(backend, f"backend {backend}", "; ".join(errors))


def _cuda_major(backend: PlanBackend, version: str) -> int | None:
    for major in _CUDA_MAJORS:
        try:
            if metadata.version(f"{backend}-cu{major}-bindings") == version:
                return major
        except metadata.PackageNotFoundError:
            continue
    return None
