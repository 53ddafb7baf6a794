"""Exported bundles, one export per test run however many processes share it."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from refsam_export.exporter import export_bundle
from refsam_export.request import ExportRequest
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.bundle.write import write_bundle

BOTH = ("fp32", "fp16")
HALF_FRAMES = 3
"""Of the chain that half precisions are judged on, which is the slow part: as few as there can be,
since an expression joins at the third. Bundles of fp32 alone are proven over the usual five."""


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a path that was made in this test run, by this process or by another worker.

    Args:
        factory: of the process.
        name: of the file or folder, "/" between the parts of a path.
        make: called with the path, which is not there yet, and has to make it whole or fail.
    """
    base = factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    target = shared / name
    target.parent.mkdir(exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second worker waits for the first one's
        if not target.exists():
            make(target)
    return target


def exported(
    factory: pytest.TempPathFactory,
    preset: str,
    split: str = "optimised",
    precisions: tuple[str, ...] = ("fp32",),
) -> Path:
    """Return a bundle of random weights (seed 0), exported now or by another worker.

    That of fp16 alone is what an export of fp32 and fp16 gave, less the fp32 variant.
    """

    def export(target: Path) -> None:
        if precisions == ("fp16",):
            both = open_bundle(exported(factory, preset, split, BOTH))
            write_less(both, target, "fp16")
            return
        frames = {} if precisions == ("fp32",) else {"parity_frames": HALF_FRAMES}
        request = ExportRequest(
            preset,
            target,
            random_init=0,
            split=split,
            precisions=precisions,
            include_source=True,
            **frames,
        )
        export_bundle(request, lambda line: None)

    return once(factory, "-".join(["bundle", preset, split, *precisions]), export)


def write_less(bundle: Bundle, target: Path, precision: str) -> Bundle:
    """Write a bundle that has only the variants of one precision, and the files that these need."""
    manifest = bundle.manifest
    kept = {name: v for name, v in manifest.variants.items() if v.precision == precision}
    graphs = {entry.file for variant in kept.values() for entry in variant.graphs.values()}
    needed = [
        name
        for name in manifest.files
        if not name.startswith("graphs/") or name.removesuffix(".data") in graphs
    ]
    less = msgspec.structs.replace(
        manifest, variants=kept, parity={name: manifest.parity[name] for name in kept}, files={}
    )
    scratch = target.with_name(f"{target.name}-files")
    return write_bundle(target, manifest=less, files=copied_files(bundle, needed, scratch))


def copied_files(bundle: Bundle, names: list[str], folder: Path) -> dict[str, Path]:
    """Copy files of a bundle, since `write_bundle` takes them away."""
    copies = {name: folder / name for name in names}
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), path)
    return copies
