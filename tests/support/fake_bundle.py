"""A minimal valid RefSAM bundle of tiny graphs, and the means to spoil it.

Writes what `docs/format/bundle.md` describes with none of our own writing code, so that reader and
writer are tested against something independent of them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import fake_graphs
import msgspec
import numpy as np
import onnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from refsam_export.onnx.flops import count_flops
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    GraphEntry,
    Limits,
    Manifest,
    PreprocessConfig,
    StateEntry,
    Variant,
    Weights,
)
from refsam_trt.contract.manifest import Tokenizer as TokenizerEntry
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.onnx_file.reader import summarise_onnx

PAD_ID, END_ID, FIRST_BYTE_ID = 0, 1, 3
_UNTOLD = {"score_map": "B", "rest": "N", "clean_rest": "N"}


def make_bundle(
    folder: Path,
    *,
    split: refsam.Split = "baseline",
    image_size: int = 32,
    grid_size: int = 2,
    downscale_short_side: int | None = None,
    external_data: bool = False,
    text_encoder: bool = True,
    **changes: Any,
) -> Path:
    """Write a bundle to `folder`, which must not exist, and return `folder`.

    Its tokenizer gives one token per UTF-8 byte and an end token. `changes` replace fields of the
    manifest before it is written, unchecked: `make_bundle(folder, family="other")`.
    """
    variant = make_variant(
        folder, split, image_size, grid_size, external_data=external_data, text_encoder=text_encoder
    )
    write_tokenizer(folder / "tokenizer.json")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        family=refsam.FAMILY,
        preset="fake",
        configuration={"hda_levels": 4},
        weights=Weights(sources=(), random_init_seed=0, num_random_tensors=1),
        tools={"fake_bundle": "1"},
        preprocess=PreprocessConfig(
            image_size=image_size,
            downscale_short_side=downscale_short_side,
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
        ),
        tokenizer=TokenizerEntry(file="tokenizer.json", lowercase=True, pad_id=PAD_ID),
        variants={f"fp32-plain-{split}": variant},
        state=(StateEntry("track_token", "next_track_token", "has_track"),),
        limits=Limits(max_frames=8, max_expressions=64, max_words=64),
        parity={},
        files=file_entries(folder),
    )
    write_manifest(folder, msgspec.structs.replace(manifest, **changes).to_bytes())
    return folder


def make_variant(
    folder: Path,
    split: refsam.Split,
    image_size: int,
    grid_size: int,
    *,
    external_data: bool,
    text_encoder: bool,
) -> Variant:
    """Write the graphs into `graphs/fp32-plain-<split>/` and return their manifest entry."""
    where = f"graphs/fp32-plain-{split}"
    (folder / where).mkdir(parents=True)
    entries = {}
    for name, (model, spec) in fake_graphs.make_graphs(image_size, grid_size, split).items():
        if name == refsam.TEXT_ENCODER and not text_encoder:
            continue
        file = f"{where}/{name}.onnx"
        save_onnx(with_shapes(model), folder / file, external_data=external_data)
        entries[name] = entry_of(folder, file, spec, model)
    return Variant("fp32", "plain", split, (), fake_graphs.OPSET, entries)


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model telling the shape of every tensor, as exported ones do."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):  # what ONNX cannot tell
                if value.name == "first":
                    dim.dim_value = 1
                else:
                    dim.dim_param = _UNTOLD.get(value.name, "N+1")
    return model


def entry_of(folder: Path, file: str, spec: GraphSpec, model: onnx.ModelProto) -> GraphEntry:
    """Return the manifest entry of a graph that was written."""
    path = folder / file
    flops = count_flops(path, summarise_onnx(path), spec)
    return GraphEntry(file, spec, "fp32", *count_nodes(model), flops)


def count_again(folder: Path, entry: dict[str, Any], model: onnx.ModelProto) -> None:
    """Make an entry of a manifest tell of another model, which was written to its file."""
    spec = msgspec.convert(entry["spec"], GraphSpec)
    found = msgspec.to_builtins(entry_of(folder, entry["file"], spec, model))
    entry |= {name: found[name] for name in ("node_types", "node_dtypes", "flops")}


def count_nodes(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many nodes there are per operator type, and per type of their first output.

    The types are those that ONNX's own shape inference tells.
    """
    graph = with_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for node in graph.node:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[node.output[0]]).name
        for found, key in zip(counts, (node.op_type, dtype), strict=True):
            found[key] = found.get(key, 0) + 1
    return counts


def save_onnx(model: onnx.ModelProto, path: Path, *, external_data: bool) -> None:
    """Save a model, with `external_data` its larger weights in `<name>.onnx.data` beside it."""
    onnx.save_model(
        model,
        path,
        save_as_external_data=external_data,
        location=f"{path.name}.data",
        size_threshold=1024,
    )


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer that gives each byte b of the text the id b + 3, then the end id 1."""
    letters = byte_letters()
    vocabulary = {"<pad>": PAD_ID, "</s>": END_ID, "<unk>": 2}
    vocabulary |= {letter: FIRST_BYTE_ID + byte for byte, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", END_ID)]
    )
    tokenizer.save(str(path))


def byte_letters() -> list[str]:
    """Return the 256 letters by which byte-level tokenizers write bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return size and SHA-256 of every file below `folder` except the manifest's own two."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"manifest.json", "manifest.sha256"}
    }


def write_manifest(folder: Path, manifest_bytes: bytes) -> None:
    """Write `manifest.json` and the `manifest.sha256` that fits it."""
    (folder / "manifest.json").write_bytes(manifest_bytes)
    digest = hashlib.sha256(manifest_bytes).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest as plain JSON values, to be changed and given to `rewrite_manifest`."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def rewrite_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a changed manifest in canonical form, its hash fitting: only its content is wrong."""
    raw = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2)
    write_manifest(folder, raw + b"\n")


def refresh_files(folder: Path) -> None:
    """Make the manifest describe the files as they now are: their hashes are right again."""
    manifest = read_manifest(folder)
    manifest["files"] = msgspec.to_builtins(file_entries(folder))
    rewrite_manifest(folder, manifest)


def run_graph(folder: Path, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run one graph of the bundle's first variant in ONNX Runtime, on the CPU with one thread."""
    import onnxruntime

    entry = next(iter(read_manifest(folder)["variants"].values()))["graphs"][graph]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / entry["file"]), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
