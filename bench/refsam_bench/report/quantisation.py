"""What the manifest of a quantised bundle says of its calibration, as a report shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refsam_trt.bundle.open import Bundle
from refsam_trt.errors import UsageError

BAR_WIDTH = 200
_UNIT = ("unit", "share", "mask_iou", "drop_points")
_FORM = ("relative_error", "mean_mask_iou", "min_mask_iou")
_COST = ("reference_j_and_f", "j_and_f", "drop_points", "mask_iou")


def quantisation_entry(bundle: Bundle) -> dict[str, Any] | None:
    """Return scheme, cost of every unit alone, and what was verified; None if not quantised.

    The manifest's record is calibration's own, so each part of it may be missing: None then.
    """
    quantisation = bundle.manifest.quantisation
    if quantisation is None:
        return None
    record = quantisation.record
    search, verified = record.get("search"), record.get("verified")
    return {
        "scheme": quantisation.scheme,
        "base_bundle": quantisation.base_bundle,
        "num_layers": len(quantisation.layers),
        "share": search and search["share"],
        "left_out": search and search["left_out"],
        "verified": verified and {name: verified[name] for name in _COST},
        "ranking": [{name: row[name] for name in _UNIT} for row in record.get("ranking") or ()],
    }


def forms_entries(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what forms of quantisation cost, from results of the steps `calibration-forms-*`.

    Raises:
        UsageError: a file that is none of these.
    """
    return [_forms_entry(path) for path in paths]


def _forms_entry(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: record[name] for name in ("preset", "num_frames", "random_weights", "commit")}
        forms = {
            name: {figure: float(row[figure]) for figure in _FORM}
            for name, row in record["forms"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{path}: no result of `python -m refsam_prove.steps calibration-forms-vitb` "
            f"({type(error).__name__}: {error}); give the file that it writes to bench/results"
        ) from error
    return {**kept, "forms": forms}


def loss_width(row: dict[str, Any], ranking: list[dict[str, Any]]) -> float:
    """Return how long the bar of a unit's loss of mask IoU is; the largest has `BAR_WIDTH`."""
    largest = max(1.0 - other["mask_iou"] for other in ranking)
    return BAR_WIDTH * (1.0 - row["mask_iou"]) / largest if largest > 0 else 0.0
