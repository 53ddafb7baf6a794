"""`refsam-bench gpu`: everything that only a GPU can tell, in one call."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from refsam_bench.commands import options
from refsam_trt.bundle.shipped import bundle_folder
from refsam_trt.command.types import PATH

_MB = 1e6


def _names(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list, each once."""
    names = dict.fromkeys(name.strip() for name in text.split(","))
    return tuple(name for name in names if name)


@click.command()
@click.argument("bundles", nargs=-1, metavar="[BUNDLE]...")
@click.option("--output", required=True, type=PATH, help="JSON file; replaced if it exists.")
@click.option(
    "--preset",
    "presets",
    default="",
    callback=_names,
    metavar="NAMES",
    help="Make bundles of these presets with random weights, commas between: vitb,vith.",
)
@click.option(
    "--precision",
    "precisions",
    default="fp32,fp16,bf16",
    callback=_names,
    metavar="NAMES",
    help="Variants to measure, commas between.",
)
@click.option(
    "--backend",
    "backends",
    default="tensorrt,tensorrt-rtx,ort-cuda",
    callback=_names,
    metavar="NAMES",
    help="Backends to measure, commas between; those that do not open are listed.",
)
@click.option("--source", type=PATH, help="Folder of the PyTorch weights; checked by hash.")
@click.option("--frames", "num_frames", type=click.IntRange(min=1), default=50)
@click.option("--warmup", "num_warmup", type=click.IntRange(min=0), default=5)
@click.option("--expressions", "num_expressions", type=click.IntRange(min=1, max=64), default=2)
@options.frame_size
@click.option(
    "--num-videos", type=click.IntRange(min=0), default=10, help="Synthetic, for J&F; 0 for none."
)
@click.option(
    "--parity-frames", type=click.IntRange(min=3), default=3, help="Length of the parity chain."
)
@click.option("--seed", default=0, help="Of random weights.")
@click.option(
    "--limit-s",
    type=click.FloatRange(min=1),
    help="Seconds after which nothing more is begun, and what runs is ended.",
)
@click.option("--commit", help="Of the source, where there is no git to ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the record on standard output.")
def gpu(bundles: tuple[str, ...], as_json: bool, **choices: Any) -> None:
    """Measure BUNDLEs, or new ones of presets, on this machine's GPU.

    For every backend and precision: plans are built, held to their golden tensors and to the
    PyTorch reference, their layers and memory measured, J&F scored; all of them race frame by frame
    against PyTorch (fp32 eager, fp16 compiled). Every job runs in a process of its own, and what
    fails is recorded and stops nothing else. Needs no installation, only PYTHONPATH.

    Exit codes: 0 done, 1 a step failed, 2 no GPU or unusable input.
    """
    from refsam_bench.gpu.measure import measure_gpu
    from refsam_bench.gpu.request import GpuRequest

    request = GpuRequest(bundles=tuple(map(bundle_folder, bundles)), **choices)

    with tempfile.TemporaryDirectory(prefix="refsam-gpu-") as scratch:
        record = measure_gpu(request, Path(scratch), options.tell)
    click.echo(json.dumps(record) if as_json else "\n".join(record_lines(record)))
    if record["failures"]:
        raise click.exceptions.Exit(1)


def record_lines(record: dict[str, Any]) -> list[str]:
    """Return the record's figures as text: machine, absent backends, then every subject."""
    machine = record["machine"]
    device = machine["device"]
    lines = [
        f"{device['name']}, compute capability {device['compute_capability']}, driver for CUDA "
        f"{machine['driver_version']}, commit {machine['commit'] or 'unknown'}"
    ]
    lines += [
        f"absent: {name}: {state['reason']}"
        for name, state in record["backends"].items()
        if not state["works"]
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
    figures: dict[str, Any] = entry["steps"].get(step, {}).get("figures", {})
    return figures
