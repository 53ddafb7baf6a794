"""The one place that lists the model families: a family more is a line more."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class FamilyModules(NamedTuple):
    """Where a family lives; imported when a bundle of it is met, and never before.

    `contract` has `check(manifest)`, which raises BundleError where the manifest is not as the
    family's runtime needs it. `runtime` has `open_family(parts)` (see `families.base`).
    """

    contract: str
    runtime: str


REGISTRY = {
    "refsam": FamilyModules("refsam_trt.contract.refsam", "refsam_trt.families.refsam.family"),
}
"""By the manifest's `family`."""


def contract_of(family: str) -> Any:
    """Return the module that checks a family's manifests."""
    return importlib.import_module(REGISTRY[family].contract)


def runtime_of(family: str) -> Any:
    """Return the module that runs a family's graphs."""
    return importlib.import_module(REGISTRY[family].runtime)
