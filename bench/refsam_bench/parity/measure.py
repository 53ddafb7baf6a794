"""A bundle against the PyTorch reference it was exported from (`refsam-bench parity`)."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refsam_export.parity.compare import compare
from refsam_export.parity.figures import Parity
from refsam_export.parity.reference import write_reference
from refsam_export.source import load_source
from refsam_trt.bundle.open import open_bundle
from refsam_trt.command.in_process import in_process
from refsam_trt.session.variants import choose_variant


def measure_parity(
    folder: Path,
    *,
    source: Path | None,
    variant: str | None,
    num_frames: int,
    report: Callable[[str], None],
) -> tuple[str, Parity]:
    """Run the reference, free it, run the bundle in a process of its own, compare.

    Args:
        folder: the bundle.
        source: folder of the PyTorch weights; None takes those inside the bundle.
        variant: which graphs; None takes the bundle's default.
        num_frames: length of the chain.
        report: called with one line per stage.

    Returns:
        The bundle's id, and the figures of that variant.
    """
    bundle = open_bundle(folder)
    name = choose_variant(bundle.manifest, variant)
    report("loading the PyTorch weights")
    loaded = load_source(bundle, source)
    with tempfile.TemporaryDirectory(prefix="refsam-parity-") as scratch:
        reference = Path(scratch)
        report(f"running the PyTorch reference over {num_frames} frames")
        split: Any = bundle.manifest.variants[name].split
        write_reference(loaded, split, num_frames, reference)
        del loaded
        gc.collect()
        report("comparing in a process of its own")
        return bundle.bundle_id, in_process(compare, folder, reference, name)
