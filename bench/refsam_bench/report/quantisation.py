"""What the manifest of a quantised bundle says of its calibration, as a report shows it."""

from __future__ import annotations

from typing import Any

from refsam_trt.bundle import Bundle

BAR_WIDTH = 200
_UNIT = ("unit", "share", "mask_iou", "drop_points")
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


def loss_width(row: dict[str, Any], ranking: list[dict[str, Any]]) -> float:
    """Return how long the bar of a unit's loss of mask IoU is; the largest has `BAR_WIDTH`."""
    largest = max(1.0 - other["mask_iou"] for other in ranking)
    return BAR_WIDTH * (1.0 - row["mask_iou"]) / largest if largest > 0 else 0.0
