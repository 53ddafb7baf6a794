"""Versions of distributions, ours too where it runs from its source folders, not installed."""

from __future__ import annotations

from importlib import metadata

OWN = "refsam-trt"
FROM_SOURCE = "source"
"""Version of ours where it is not installed."""
UNKNOWN = "unknown"

_OTHER_NAMES = {"onnxruntime": ("onnxruntime-gpu",)}
"""Distributions that install the same module."""


def version_of(name: str) -> str:
    """Return the version of an installed distribution, or of another one with the same module.

    `source` for this project where it is not installed, `unknown` for all else that has no
    metadata.
    """
    for candidate in (name, *_OTHER_NAMES.get(name, ())):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return FROM_SOURCE if name == OWN else UNKNOWN
