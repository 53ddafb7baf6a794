"""Copies of a bundle with one number of one graph changed: valid bundles, but not equal ones."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.write import write_bundle

Change = Callable[[np.ndarray], np.ndarray]


def changed_bundle(
    bundle: Path, target: Path, graph: str, is_wanted: Callable[[str, np.ndarray], bool], to: Change
) -> Path:
    """Write a copy in which the initializers of `graph` that are wanted went through `to`."""
    manifest = open_bundle(bundle, verify="deferred").manifest
    manifest = msgspec.structs.replace(manifest, source=None)
    scratch = target.with_name(f"{target.name}-files")
    scratch.mkdir()
    files = {}
    for name in manifest.files:
        if name != "source.safetensors":
            files[name] = Path(shutil.copy(bundle / name, scratch / Path(name).name))
    (variant,) = manifest.variants.values()
    change_graph(files[variant.graphs[graph].file], is_wanted, to)
    return write_bundle(target, manifest=manifest, files=files).folder


def change_graph(path: Path, is_wanted: Callable[[str, np.ndarray], bool], to: Change) -> None:
    """Change initializers of an ONNX file with external data, in place."""
    model = onnx.load(path)
    num_changed = 0
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if is_wanted(tensor.name, value):
            changed = np.array(to(value), value.dtype, order="C")
            assert changed.shape == value.shape
            assert not np.array_equal(changed, value)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            num_changed += 1
    assert num_changed == 1, f"{num_changed} initializers are wanted"
    data = path.with_name(f"{path.name}.data")
    data.unlink()
    onnx.save_model(
        model, path, save_as_external_data=True, location=data.name, size_threshold=1024
    )
