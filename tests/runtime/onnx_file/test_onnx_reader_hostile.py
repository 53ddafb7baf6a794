"""ONNX files written byte by byte to hurt the reader: each is refused with its own text."""

import os
from pathlib import Path

import pytest

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import OnnxTensor, summarise_onnx


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    return path


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def block(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


OPSET = block(8, b"\x10\x14")


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = block(1, block(5, block(6, graph)))
    return OPSET + block(7, graph)


def tensor_with(*pairs: tuple[str, str]) -> bytes:
    entries = [block(13, block(1, k.encode()) + block(2, v.encode())) for k, v in pairs]
    return OPSET + block(7, block(5, b"".join(entries)))


HOSTILE = {
    "empty": (b"", "0 bytes; 1 to 33554432 expected"),
    "text": (b"<html>not found</html>", "not an ONNX model"),
    "cut varint": (OPSET + b"\x3a\x80", "Error parsing message"),
    "long varint": (b"\x08" + b"\x80" * 11, "Error parsing message"),
    "length beyond end": (b"\x3a\x05\x00", "Error parsing message"),
    "huge length": (b"\x3a" + b"\xff" * 9 + b"\x01", "Error parsing message"),
    "field zero": (b"\x02\x00", "Error parsing message"),
    "huge field": (varint(2**40), "Error parsing message"),
    "group": (b"\x0b\x0c", "it holds no graph"),
    "fixed cut": (b"\x09\x00\x00", "Error parsing message"),
    "graph as number": (OPSET + b"\x38\x01", "it holds no graph, or names"),
    "version as string": (block(1, b"ab"), "it holds no graph, or names"),
    "no graph": (OPSET, "it holds no graph, or names no operator set"),
    "no opset": (block(7, b""), "it holds no graph, or names no operator set"),
    "nested": (nested(limits.MAX_ONNX_DEPTH + 1), "subgraphs nested more than 24 deep"),
    "nested beyond protobuf": (nested(40), "Error parsing message"),
    "nested without end": (nested(5000), "Error parsing message"),
    "not utf-8": (OPSET + block(7, block(1, block(4, b"\xff"))), "Error parsing message"),
    "long string": (
        OPSET + block(7, block(1, block(4, b"a" * 5000))),
        "a string of 5000 characters, more than the 4096 allowed",
    ),
    "many inputs": (OPSET + block(7, block(11, b"") * 257), "more than 256 inputs or outputs"),
    "many dims": (
        OPSET + block(7, block(11, block(2, block(1, block(2, block(1, b"") * 17))))),
        "a tensor of more than 16 dims",
    ),
    "many operators": (
        OPSET + block(7, b"".join(block(1, block(4, b"%d" % i)) for i in range(1025))),
        "more than 1024 different operator types",
    ),
    "many domains": (
        b"".join(block(8, block(1, b"%d" % i)) for i in range(1025)),
        "more than 1024 operator domains",
    ),
    "external without a place": (OPSET + block(7, block(5, b"\x70\x01")), "without a location"),
    "no location": (tensor_with(("offset", "1")), "external data without a location"),
    "two locations": (tensor_with(("location", "a"), ("location", "b")), "gives 'location' twice"),
    "negative offset": (tensor_with(("location", "a"), ("offset", "-1")), "offset '-1'"),
    "odd digits": (tensor_with(("location", "a"), ("length", "²")), "length '²'"),
    "huge offset": (tensor_with(("location", "a"), ("offset", "9" * 20)), "with offset '999"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_hostile_bytes(tmp_path: Path, case: str):
    content, problem = HOSTILE[case]
    path = write(tmp_path, content)
    with pytest.raises(BundleError) as caught:
        summarise_onnx(path)
    text = str(caught.value)
    assert problem in text
    assert text.startswith(f"{path}: not an ONNX model that can be read (")
    assert text.endswith("copy the bundle again, or export it anew with refsam-export")


def test_accepts_subgraphs_up_to_the_limit(tmp_path: Path):
    summary = summarise_onnx(write(tmp_path, nested(limits.MAX_ONNX_DEPTH)))
    assert summary.node_types.total() == limits.MAX_ONNX_DEPTH


@pytest.mark.parametrize("part", ["weight", "sparse", "name", "attribute", "tensor", "pair"])
def test_bounds_the_number_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    monkeypatch.setattr(limits, "MAX_ONNX_PARTS", 100)
    parts = {
        "weight": lambda times: block(5, b"") * times,
        "sparse": lambda times: block(15, b"") * times,
        "name": lambda times: block(1, block(1, b"") * times),
        "attribute": lambda times: block(1, block(5, b"") * times),
        "tensor": lambda times: block(1, block(5, block(10, b"") * times)),
        "pair": lambda times: block(5, block(13, block(1, b"location")) * times),
    }
    summarise_onnx(write(tmp_path, OPSET + block(7, parts[part](45))))
    with pytest.raises(BundleError, match="more than 100 parts"):
        summarise_onnx(write(tmp_path, OPSET + block(7, parts[part](200))))


def test_bounds_the_size_before_anything_is_read(tmp_path: Path):
    path = tmp_path / "graph.onnx"
    with path.open("wb") as file:
        file.truncate(limits.MAX_ONNX_BYTES + 1)
    with pytest.raises(BundleError, match=f"{limits.MAX_ONNX_BYTES + 1} bytes; 1 to"):
        summarise_onnx(path)


def test_text_of_names_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ONNX_NAME_CHARS", 1000)
    names = block(1, block(1, b"a" * 100) * 6 + block(2, b"b" * 100) * 6)
    for content in (names, block(5, block(8, b"c" * 100)) * 12):
        with pytest.raises(BundleError, match="more than 1000 characters of tensor names"):
            summarise_onnx(write(tmp_path, OPSET + block(7, content)))


def test_bounds_the_number_of_external_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_EXTERNAL_TENSORS", 3)
    location = block(13, block(1, b"location") + block(2, b"w.data"))
    path = write(tmp_path, OPSET + block(7, block(5, location) * 4))
    with pytest.raises(BundleError, match="more than 3 external tensors"):
        summarise_onnx(path)


def test_refuses_what_is_no_file(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, problem in [
        (fifo, "it is no regular file"),
        (tmp_path, "it is no regular file"),
        (tmp_path / "absent.onnx", "No such file"),
        (tmp_path / "nul\0.onnx", "cannot be read"),
    ]:
        with pytest.raises(BundleError, match=problem):
            summarise_onnx(path)


def told(dim: bytes) -> bytes:
    """An input of one symbolic dim."""
    return block(11, block(2, block(1, block(2, block(1, block(2, dim))))))


def test_a_dim_has_few_characters(tmp_path: Path):
    longest = limits.MAX_ONNX_DIM_LENGTH
    path = write(tmp_path, OPSET + block(7, told(b"n" * longest)))
    (tensor,) = summarise_onnx(path).inputs
    assert tensor.dims == ("n" * longest,)
    with pytest.raises(BundleError, match=f"a dim of {longest + 1} characters"):
        summarise_onnx(write(tmp_path, OPSET + block(7, told(b"n" * (longest + 1)))))


def test_what_comes_twice_is_merged_as_by_every_parser(tmp_path: Path):
    node = block(1, block(4, b"Relu"))
    summary = summarise_onnx(write(tmp_path, OPSET + block(7, node) * 2 + block(8, b"\x10\x15")))
    assert summary.node_types == {"Relu": 2}
    assert summary.opsets == {"": 21}
    # Of kinds of type the last counts.
    kinds = [block(1, b"\x08\x01"), block(4, b"")]
    path = write(tmp_path, OPSET + block(7, block(11, block(2, b"".join(kinds)))))
    assert summarise_onnx(path).inputs == (OnnxTensor("", "", None),)
    path = write(tmp_path, OPSET + block(7, block(11, block(2, b"".join(reversed(kinds))))))
    assert summarise_onnx(path).inputs == (OnnxTensor("", "float32", None),)
