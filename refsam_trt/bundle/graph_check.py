"""One ONNX file of a bundle against its manifest entry: tensors, nodes, precision, files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refsam_trt.bundle.folder import path_problem
from refsam_trt.contract.manifest import FileEntry, GraphEntry, Quantisation
from refsam_trt.contract.precision import count_dtypes, precision_problem, split_precision
from refsam_trt.contract.specs import TensorSpec
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import ExternalData, OnnxSummary, OnnxTensor, summarise_onnx

_EXPORT_AGAIN = "export the bundle anew with refsam-export"


def check_graph(
    folder: Path,
    entry: GraphEntry,
    opset: int,
    files: Mapping[str, FileEntry],
    quantisation: Quantisation | None = None,
) -> tuple[str, ...]:
    """Check the ONNX file of a graph.

    Args:
        folder: the bundle's.
        entry: the graph, its file one of `files`.
        opset: version of the standard operators that the manifest gives.
        files: the bundle's files by relative path.
        quantisation: the manifest's; quantised graphs have a product for each of its layers.

    Returns:
        Relative paths of the files that hold the graph's external data, sorted.

    Raises:
        BundleError: the file is not as the manifest says, does not compute in the precision that it
            states, uses a custom operator domain, or has external data anywhere but in a file of
            the bundle.
    """
    path = folder / entry.file
    summary = summarise_onnx(path)
    _check_domains(path, summary, opset)
    _check_tensors(path, "input", summary.inputs, entry.spec.inputs)
    _check_tensors(path, "output", summary.outputs, entry.spec.outputs)
    _check_nodes(path, "nodes of type", summary.node_types, entry.node_types)
    _check_nodes(path, "nodes in", count_dtypes(summary.typed_nodes), entry.node_dtypes)
    if problem := precision_problem(entry.precision, summary.typed_nodes):
        raise BundleError(
            f"states the precision {entry.precision}, but {problem}; {_EXPORT_AGAIN}", path
        )
    _check_quantised(path, entry, summary, quantisation)
    parent = entry.file.rpartition("/")[0]
    prefix = f"{parent}/" if parent else ""
    names = (_check_external(path, prefix, data, files) for data in summary.external_data)
    return tuple(sorted(set(names)))


def _check_quantised(
    path: Path, entry: GraphEntry, summary: OnnxSummary, quantisation: Quantisation | None
) -> None:
    dtype = split_precision(entry.precision)[0]
    if dtype is None:
        return
    num_products = summary.typed_nodes["MatMul", dtype]
    expected = len(quantisation.layers) if quantisation else 0
    if num_products != expected:
        raise BundleError(
            f"{num_products} matrix products in {dtype}, the manifest names {expected} quantised "
            "layers; write the bundle anew with refsam-calibrate",
            path,
        )


def _check_domains(path: Path, summary: OnnxSummary, opset: int) -> None:
    if custom := sorted(summary.domains - {""}):
        raise BundleError(
            f"custom operator domain {', '.join(map(repr, custom))}; only ONNX's standard "
            f"operators are run, since others need code from elsewhere: {_EXPORT_AGAIN}",
            path,
        )
    if summary.opsets[""] != opset:
        raise BundleError(
            f"operator set {summary.opsets['']}, the manifest says {opset}; {_EXPORT_AGAIN}", path
        )


def _check_tensors(
    path: Path, kind: str, found: tuple[OnnxTensor, ...], expected: tuple[TensorSpec, ...]
) -> None:
    found_names, expected_names = [t.name for t in found], [t.name for t in expected]
    if found_names != expected_names:
        raise BundleError(
            f"{kind}s {', '.join(found_names)}; the manifest says "
            f"{', '.join(expected_names)}; {_EXPORT_AGAIN}",
            path,
        )
    for tensor, spec in zip(found, expected, strict=True):
        if (tensor.dtype, tensor.dims) != (spec.dtype, spec.dims):
            raise BundleError(
                f"{kind} {tensor.name} is {_shown(tensor)}, the manifest says "
                f"{_shown(spec)}; {_EXPORT_AGAIN}",
                path,
            )


def _shown(tensor: OnnxTensor | TensorSpec) -> str:
    if tensor.dims is None:
        return f"{tensor.dtype or 'no tensor'} without a shape"
    dims = ", ".join("?" if dim is None else str(dim) for dim in tensor.dims)
    return f"{tensor.dtype} [{dims}]"


def _check_nodes(
    path: Path, what: str, found: Mapping[str, int], expected: Mapping[str, int]
) -> None:
    for name in sorted(found.keys() | expected.keys()):
        counts = found.get(name, 0), expected.get(name, 0)
        if counts[0] != counts[1]:
            raise BundleError(
                f"{counts[0]} {what} {name}, the manifest says {counts[1]}; {_EXPORT_AGAIN}", path
            )


def _check_external(
    path: Path, prefix: str, data: ExternalData, files: Mapping[str, FileEntry]
) -> str:
    location = data.location
    if problem := path_problem(location):
        raise BundleError(
            f"external data in {location!r}, a path that {problem}; expected is a file of "
            f"the bundle beside the graph: {_EXPORT_AGAIN}",
            path,
        )
    name = prefix + location
    if name not in files:
        raise BundleError(
            f"external data in {name!r}, which the manifest does not list; {_EXPORT_AGAIN}", path
        )
    if data.length is None:
        raise BundleError(f"external data in {name!r} without a length; {_EXPORT_AGAIN}", path)
    if data.offset + data.length > files[name].size_bytes:
        raise BundleError(
            f"external data at bytes {data.offset} to {data.offset + data.length} of "
            f"{name!r}, which has {files[name].size_bytes}; {_EXPORT_AGAIN}",
            path,
        )
    return name
