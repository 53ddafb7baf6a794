"""Runs the graphs once with ONNX Runtime on the CPU, for plans to be compared with later.

A real chain: the step decodes what the encoders made of a random image and a sentence, for one
expression that has a track token and one that has none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refsam_engines.profiles import Sizes
from refsam_trt.backends.base import Backend, numpy_dtype
from refsam_trt.backends.select import REFUSED_PRECISIONS, open_backend
from refsam_trt.bundle.golden import GoldenRun, write_golden
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import Variant
from refsam_trt.contract.precision import QUANTISED
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import UsageError
from refsam_trt.session.variants import only_variant
from refsam_trt.text.tokenizer import Tokenizer

_REFEREE = "ort-cpu"
_SENTENCE = "the small dog on the left"
_SEED = 0


def golden_source(bundle: Bundle, variant_name: str) -> str:
    """Return the variant to compare with: the fp32 one of the same split, else the one itself.

    An int8 variant is compared with one that has the same int8 products between fp32 nodes. No CPU
    has fp8 products, so an fp8 variant is compared with the fp32 one.

    Raises:
        UsageError: a bf16 variant alone, which nothing on a CPU can run.
    """
    variants = bundle.manifest.variants
    built = variants[variant_name]
    if built.precision in QUANTISED and built.precision not in REFUSED_PRECISIONS[_REFEREE]:
        alike = [
            name
            for name, variant in sorted(variants.items())
            if (variant.precision, variant.split) == (built.precision, built.split)
            and variant.attention == built.attention
        ]
        return str(only_variant(bundle.manifest, alike, _REFEREE))
    for name, variant in sorted(variants.items()):
        if variant.precision == "fp32" and variant.split == built.split:
            return name
    if built.precision == "bf16":
        raise UsageError(
            f"{bundle.folder}: no fp32 variant that bf16 plans could be compared with; export the "
            "bundle anew with --precision fp32,bf16"
        )
    return variant_name


def write_golden_runs(
    bundle: Bundle, source: str, graphs: tuple[str, ...], sizes: Sizes, target: Path
) -> None:
    """Run the named graphs of variant `source` and write inputs and outputs.

    Raises:
        MissingExtraError: no ONNX Runtime.
        BackendError: it cannot run them.
    """
    variant = bundle.manifest.variants[source]
    backend = open_backend(_REFEREE)
    try:
        values = _Values(bundle, sizes)
        runs = {}
        for name in _in_order(variant, graphs):
            entry = variant.graphs[name]
            path = bundle.verify_file(entry.file)
            runs[name] = _run(backend, path, entry.spec, values)
    finally:
        backend.close()
    write_golden(target, runs)


class _Values:
    """Values for inputs: outputs of graphs that ran before, else drawn; the same for one bundle."""

    def __init__(self, bundle: Bundle, sizes: Sizes) -> None:
        tokenizer = bundle.manifest.tokenizer
        path = bundle.verify_file(tokenizer.file)
        encoder = Tokenizer(
            path, lowercase=tokenizer.lowercase, max_words=bundle.manifest.limits.max_words
        )
        self.ids = encoder.encode(encoder.clean(_SENTENCE))[: sizes.max_words]
        self.num_expressions = min(2, sizes.max_expressions)
        self.outputs: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(_SEED)

    def of(self, tensor: TensorSpec, num_rows: int) -> np.ndarray:
        """Return the value of an input; `num_rows` stands for B."""
        shape = tensor.shape({"M": 1, "B": num_rows, "N": len(self.ids)})
        if tensor.name in self.outputs:
            value = self.outputs[tensor.name]
            return value if len(value) == shape[0] else np.repeat(value, num_rows, axis=0)
        if tensor.name == "input_ids":
            return np.broadcast_to(self.ids, shape).astype(np.int64)
        dtype = numpy_dtype(tensor.dtype, _REFEREE)
        if dtype.kind in "ib":  # masks: every second track is there, the last word is padding
            present = np.ones(shape, dtype)
            if tensor.scope == "video":
                present[::2] = 0
            elif shape[-1] > 1:
                present[..., -1] = 0
            return present
        return self._random.standard_normal(shape).astype(dtype)


def _in_order(variant: Variant, graphs: tuple[str, ...]) -> list[str]:
    """Return the graphs so that each comes after those that make its inputs."""
    specs = {name: variant.graphs[name].spec for name in graphs}
    outputs = {tensor.name for spec in specs.values() for tensor in spec.outputs}

    def num_inputs_from_graphs(name: str) -> int:
        return sum(tensor.name in outputs for tensor in specs[name].inputs)

    return sorted(graphs, key=lambda name: (num_inputs_from_graphs(name), name))


def _run(backend: Backend, path: Path, spec: GraphSpec, values: _Values) -> GoldenRun:
    is_text = {tensor.scope for tensor in spec.inputs} == {"expression"}
    num_rows = 1 if is_text else values.num_expressions
    inputs = {tensor.name: values.of(tensor, num_rows) for tensor in spec.inputs}
    sizes = {"M": 1, "B": num_rows, "N": len(values.ids)}
    outputs = {t.name: backend.empty(t.shape(sizes), t.dtype) for t in spec.outputs}
    uploaded = {name: backend.upload(np.ascontiguousarray(a)) for name, a in inputs.items()}
    backend.load(path, spec).context().run(uploaded, outputs)
    arrays = {name: backend.download(buffer) for name, buffer in outputs.items()}
    values.outputs.update(arrays)
    return GoldenRun(inputs, {name: array.astype(np.float32) for name, array in arrays.items()})
