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
        CheckpointError,
        DatasetError,
        ExpressionError,
        InternalError,
        MissingExtraError,
        OutputError,
        ParityError,
        RefsamError,
        StateError,
        UsageError,
        VideoError,
    )
    from refsam_trt.result.polygons import Polygon
    from refsam_trt.result.result import FrameResults, Result
    from refsam_trt.session.engine import Engine, load
    from refsam_trt.session.session import Session

    __version__: str

_HOMES = {
    "session.engine": ("Engine", "load"),
    "errors": (
        "BackendError",
        "BundleError",
        "CheckpointError",
        "DatasetError",
        "ExpressionError",
        "InternalError",
        "MissingExtraError",
        "OutputError",
        "ParityError",
        "RefsamError",
        "StateError",
        "UsageError",
        "VideoError",
    ),
    "result.polygons": ("Polygon",),
    "result.result": ("FrameResults", "Result"),
    "session.session": ("Session",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "Engine",
    "ExpressionError",
    "FrameResults",
    "InternalError",
    "MissingExtraError",
    "OutputError",
    "ParityError",
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
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"refsam_trt.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'refsam_trt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from refsam_trt.versions import OWN, version_of

    return version_of(OWN)
