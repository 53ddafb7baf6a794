"""Runs `compare` in a process of its own: no PyTorch beside the engines, nothing shared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from refsam_trt.errors import InternalError


def compare_in_process(bundle: Path, reference: Path, variant: str | None = None) -> dict[str, Any]:
    """Return `compare.Parity` as a JSON object, with `passed`.

    Raises:
        InternalError: the comparison itself failed; the text holds its last words.
    """
    command = [sys.executable, "-m", "refsam_export.parity.compare", str(bundle), str(reference)]
    done = subprocess.run(
        [*command, *([variant] if variant else [])], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InternalError(
            f"the comparison itself failed with exit code {done.returncode}:\n{done.stderr}"
        )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def verdict(figures: dict[str, Any]) -> str:
    """Return the figures of a comparison, or of a range audit, in one line."""
    if "max_abs" in figures:
        return _range_verdict(figures)
    state = "passed" if figures["passed"] else "FAILED"
    return (
        f"parity {state}: worst relative error {figures['max_graph_error']:.1e} per graph, "
        f"{figures['max_chain_error']:.1e} over the chain; mask IoU at least "
        f"{figures['min_mask_iou']:.6f} ({figures['variant']} on {figures['backend']})"
    )


def _range_verdict(figures: dict[str, Any]) -> str:
    state, largest = "passed" if figures["passed"] else "FAILED", figures["largest"][0]
    return (
        f"range {state}: largest of {figures['num_tensors']} fp16 tensors {largest['max_abs']:.4g} "
        f"({largest['tensor']}, {largest['operator']} of {largest['module'] or largest['graph']}), "
        f"at most {figures['bound']:.0f} allowed"
    )
