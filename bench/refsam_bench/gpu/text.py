"""The record of `refsam-bench gpu` as a few lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MB = 1e6


def record_lines(record: dict[str, Any]) -> list[str]:
    """Return the record's figures as text: machine, absent backends, then every subject."""
    machine = record["machine"]
    device = machine["device"]
    lines = [
        f"{device['name']}, compute capability {device['compute_capability']}, driver for CUDA "
        f"{machine['driver_version']}, commit {machine['commit'] or 'unknown'}"
    ]
    lines += [
        f"absent: {name}: {found['reason']}"
        for name, found in record["backends"].items()
        if not found["works"]
    ]
    for subject in record["subjects"]:
        lines += _subject_lines(subject)
    lines += [f"failed: {failure}" for failure in record["failures"]]
    return lines


def _subject_lines(subject: dict[str, Any]) -> Iterator[str]:
    bundle = _figures(subject, "bundle")
    is_random = bool(bundle) and bundle.get("random_init_seed") is not None
    yield f"{subject['name']}{': RANDOM WEIGHTS, masks and J&F mean nothing' if is_random else ''}"
    race = _figures(subject, "race")
    racers = race.get("racers", {})
    for name, racer in racers.items():
        if name not in subject["cases"]:
            yield f"  {name:22} {_speed(racer)}"
    for name, case in subject["cases"].items():
        parts = [_speed(racers.get(name)), *_case_parts(case)]
        yield f"  {name:22} {'; '.join(part for part in parts if part)}"


def _case_parts(case: dict[str, Any]) -> Iterator[str]:
    parity, memory = _figures(case, "parity"), _figures(case, "memory")
    if parity:
        yield f"parity {parity['max_graph_error']:.1e}, IoU {parity['min_mask_iou']:.4f}"
    if memory:
        yield f"{memory['running_mib']:.0f} MiB"
    layers = _figures(case, "layers").get("graphs", {})
    if encoder := layers.get("image_encoder"):
        yield f"image encoder's activations {encoder['activation_bytes'] / _MB:.0f} MB"
    if accuracy := _figures(case, "accuracy"):
        yield f"J&F {accuracy['j_and_f']:.4f}"
    if not case["steps"]:
        yield "nothing measured"


def _speed(racer: dict[str, Any] | None) -> str:
    if racer is None:
        return "not timed"
    text = f"{racer['p50_ms']:.2f} ms (p95 {racer['p95_ms']:.2f}), {racer['fps']:.1f} frames/s"
    ratio = racer.get("times_as_fast")
    return f"{text}, {ratio['p50']:.1f}x" if ratio else text


def _figures(entry: dict[str, Any], step: str) -> dict[str, Any]:
    """Return the figures of a step, nothing if it is not done."""
    found: dict[str, Any] = entry["steps"].get(step, {}).get("figures", {})
    return found
