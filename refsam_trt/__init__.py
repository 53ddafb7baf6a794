"""RefSAM, deployable: a sentence goes in, the masks of that object come out, frame by frame.

Names are imported when first used, so that `import refsam_trt` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refsam_trt.errors import (
        BackendError,
        BundleError,
        DeviceMemoryError,
        ExpressionError,
        InternalError,
        MissingExtraError,
        OutputError,
        PlanError,
        RefsamError,
        StateError,
        UsageError,
        VideoError,
    )
    from refsam_trt.result.polygons import Polygon
    from refsam_trt.result.result import FrameResults, Result
    from refsam_trt.session.encoding import EncodedFrame
    from refsam_trt.session.engine import Engine
    from refsam_trt.session.load import load
    from refsam_trt.session.session import Session

    __version__: str

_HOMES = {
    "EncodedFrame": "session.encoding",
    "Engine": "session.engine",
    "FrameResults": "result.result",
    "Polygon": "result.polygons",
    "Result": "result.result",
    "Session": "session.session",
    "load": "session.load",
}
"""Modules of the names in `__all__`; the others are of `errors`."""

__all__ = [
    "BackendError",
    "BundleError",
    "DeviceMemoryError",
    "EncodedFrame",
    "Engine",
    "ExpressionError",
    "FrameResults",
    "InternalError",
    "MissingExtraError",
    "OutputError",
    "PlanError",
    "Polygon",
    "RefsamError",
    "Result",
    "Session",
    "StateError",
    "UsageError",
    "VideoError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = getattr(importlib.import_module(f"refsam_trt.{_HOMES.get(name, 'errors')}"), name)
    else:
        raise AttributeError(f"module 'refsam_trt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from refsam_trt.versions import OWN, version_of

    return version_of(OWN)
