"""What is fuzzed: readers of files that anybody may have written.

A target is made for a scratch folder and then takes bytes, again and again. Errors of ours are its
way of saying no; whatever else it raises is a finding. A target imports what it needs itself, so
that `fuzz_modules.py` can tell which code it depends on. Bytes that begin with `{` stand for a file
by its content where the file itself is hard to mutate: hashes and lengths are then filled in.
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from refsam_trt.errors import RefsamError

Target = Callable[[bytes], None]

MAX_PIXELS = 10_000
MAX_DATA_BYTES = 2**16
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1}
FRAME = np.zeros((24, 40, 3), np.uint8)


class Refusals:
    """Swallows errors of ours, and counts them."""

    num = 0

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        is_ours = isinstance(error, RefsamError)
        self.num += is_ours
        return is_ours


refusals = Refusals()


def manifest(scratch: Path) -> Target:
    """A manifest: as it is, then in canonical form and with the hashes of the bundle around it."""
    import fake_bundle

    import refsam_trt

    folder = fake_bundle.make_bundle(scratch / "bundle")
    true_entries = msgspec.to_builtins(fake_bundle.file_entries(folder))

    def open_and_step() -> None:
        with (
            refusals,
            refsam_trt.load(folder, num_threads=1) as engine,
            engine.open_video() as video,
        ):
            video.add_expression("dog")
            video.step(FRAME)

    def one(data: bytes) -> None:
        fake_bundle.write_manifest(folder, data)
        open_and_step()
        value = from_json(data)
        if isinstance(value, dict):
            if isinstance(files := value.get("files"), dict):
                value["files"] = {name: true_entries.get(name, files[name]) for name in files}
            fake_bundle.rewrite_manifest(folder, value)
            open_and_step()

    return one


def state(scratch: Path) -> Target:
    """A saved session: read, then with the bundle's true name restored and continued."""
    import fake_bundle

    import refsam_trt
    from refsam_trt.session import state_file

    engine = refsam_trt.load(fake_bundle.make_bundle(scratch / "bundle"), num_threads=1)
    identity = {
        "bundle_id": engine.bundle_id,
        "variant": engine.variant,
        "precision": engine.manifest.variants[engine.variant].precision,
    }
    path = scratch / "state.safetensors"

    def one(data: bytes) -> None:
        path.write_bytes(as_safetensors(data, state_file.METADATA_KEY))
        with refusals, engine.open_video() as video:
            saved, tensors = state_file.read_state(path)
            state_file.write_state(path, msgspec.structs.replace(saved, **identity), tensors)
            video.load_state(path)
            video.step(np.zeros((*(video.frame_hw or (24, 40)), 3), np.uint8))

    return one


def cache(scratch: Path) -> Target:
    """A bundle's text cache: some expressions of it are looked for, and a frame with them run."""
    import fake_bundle

    import refsam_trt
    from refsam_trt.text import cache as text_cache
    from refsam_trt.text.encoder import TextEncoder
    from refsam_trt.text.tokenizer import Tokenizer

    folder = fake_bundle.make_bundle(scratch / "bundle")
    engine = refsam_trt.load(folder, num_threads=1)
    tokens = Tokenizer(folder / "tokenizer.json", lowercase=True, max_words=64)
    path = scratch / "text_cache.safetensors"

    def one(data: bytes) -> None:
        path.write_bytes(as_safetensors(data, text_cache.METADATA_KEY))
        with refusals, engine.open_video() as video:
            opened = text_cache.TextCache(path)
            engine.family.text_encoder = TextEncoder(
                tokens,
                engine.family.backend,
                engine.family.text_inputs,
                load_graph=None,
                cache=opened,
                mode="cache-only",
            )
            for text in opened.expressions[:4]:
                with refusals:
                    video.add_expression(text)
            video.step(FRAME)

    return one


def disk_cache(scratch: Path) -> Target:
    """A file among the user's text embeddings: used if it is sound, else passed over."""
    import fake_bundle

    import refsam_trt
    from refsam_trt.text import cache as text_cache
    from refsam_trt.text import disk as text_disk

    with refsam_trt.load(fake_bundle.make_bundle(scratch / "bundle"), num_threads=1) as engine:
        tensors = engine.family.text_inputs
    key = text_disk.TextKey(tokenizer="0" * 64, text_graph="1" * 64, backend="ort-cpu")
    folder = scratch / "cache"
    words = np.zeros((4, 256), np.float32)
    kept = text_disk.TextDiskCache(folder, key, tensors)
    kept.put("dog", text_cache.TextEmbedding(words, words[0], None))
    (path,) = folder.iterdir()

    def one(data: bytes) -> None:
        path.write_bytes(as_safetensors(data, text_disk.METADATA_KEY))
        found = text_disk.TextDiskCache(folder, key, tensors).get("dog", num_words=4)
        if found is None:
            refusals.num += 1
        else:
            assert found.words.shape == (4, 256)
            assert np.isfinite(found.words).all()

    return one


def run_lengths(scratch: Path) -> Target:
    """COCO RLE: a JSON object, or two bytes for the size and a string; read, written, read."""
    from refsam_trt.result import rle

    del scratch

    def one(data: bytes) -> None:
        value = from_json(data)
        if not isinstance(value, dict):
            size = [1 + side % 16 for side in data[:2].ljust(2, b"\0")]
            value = {"size": size, "counts": data[2:]}
        elif is_large(value.get("size")):
            return
        with refusals:
            mask = rle.mask_from_rle(value)
            again = rle.mask_from_rle(rle.rle_from_mask(mask))
            np.testing.assert_array_equal(mask, again, strict=True)

    return one


def onnx(scratch: Path) -> Target:
    """A graph's file against what the manifest says of the decoder step."""
    import fake_bundle

    from refsam_trt.bundle.graph_check import check_graph
    from refsam_trt.contract.manifest import GraphEntry

    folder = fake_bundle.make_bundle(scratch / "bundle", external_data=True)
    described = fake_bundle.read_manifest(folder)
    (variant,) = described["variants"].values()
    entry = msgspec.convert(variant["graphs"]["decoder_step"], GraphEntry)
    files = fake_bundle.file_entries(folder)

    def one(data: bytes) -> None:
        (folder / entry.file).write_bytes(data)
        with refusals:
            check_graph(folder, entry, variant["opset"], files)

    return one


def tokenizer(scratch: Path) -> Target:
    """A tokenizer's file, and expressions cut by it."""
    from refsam_trt.text.tokenizer import Tokenizer

    path = scratch / "tokenizer.json"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        with refusals:
            opened = Tokenizer(path, lowercase=True, max_words=64)
            for text in ("The dog!", "a  b\u00e9 \U0001f600"):
                opened.encode(opened.clean(text))

    return one


def dataset(scratch: Path) -> Target:
    """A data set's expression file, in both layouts."""
    from refsam_trt.run.datasets import load_dataset

    path = scratch / "meta_expressions" / "valid" / "meta_expressions.json"
    path.parent.mkdir(parents=True)
    (scratch / "valid" / "JPEGImages" / "a").mkdir(parents=True)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        for kind in ("ref-davis", "ref-youtube-vos"):
            with refusals:
                load_dataset(kind, scratch)

    return one


def image(scratch: Path) -> Target:
    """An image file of any format."""
    return lambda data: read_frames(scratch / "image.png", data)


def video(scratch: Path) -> Target:
    """A video file of any format, three frames of it."""
    return lambda data: read_frames(scratch / "clip.mp4", data)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "manifest": manifest,
    "state": state,
    "text-cache": cache,
    "text-disk": disk_cache,
    "rle": run_lengths,
    "onnx": onnx,
    "tokenizer": tokenizer,
    "dataset": dataset,
    "image": image,
    "video": video,
}
JSON_TARGETS = {"manifest", "state", "text-cache", "text-disk", "rle", "tokenizer", "dataset"}


def read_frames(path: Path, data: bytes) -> None:
    from refsam_trt.media.frames import open_frames

    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it can read all the same
        with refusals, open_frames(path, MAX_PIXELS) as frames:
            for frame in itertools.islice(frames, 3):
                assert frame.dtype == np.uint8
                assert frame.shape == (*frames.original_hw, 3)
                assert frame.size <= 3 * MAX_PIXELS


def from_json(data: bytes) -> Any:
    """Return the JSON value, or None if there is none."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None


def is_large(size: Any) -> bool:
    """Say whether a size is legal but larger than a fuzzer has time for."""
    is_pair = isinstance(size, list) and len(size) == 2
    return is_pair and all(type(side) is int for side in size) and size[0] * size[1] > MAX_PIXELS


def as_safetensors(data: bytes, metadata_key: str) -> bytes:
    """Return the file that `{"metadata": value, "tensors": {name: [dtype, [size, ...]]}}` means.

    Its tensors hold zeros. Bytes that mean nothing of the kind are the file themselves.
    """
    value = from_json(data)
    try:
        header = {"__metadata__": {metadata_key: json.dumps(value["metadata"])}}
        stop = 0
        for name, (dtype, shape) in value["tensors"].items():
            # A size that is no number has no bytes, and stands in the header as it is.
            num_items = math.prod(shape) if all(type(size) is int for size in shape) else 0
            start, stop = stop, stop + num_items * ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        raw = json.dumps(header).encode()
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return data
    return len(raw).to_bytes(8, "little") + raw + bytes(max(0, min(stop, MAX_DATA_BYTES)))
