"""ONNX files written byte by byte to hurt the reader: each is refused with its own text."""

import os
from pathlib import Path

import pytest

from refsam_trt import limits
from refsam_trt.errors import BundleError
from refsam_trt.onnx_file.reader import summarise_onnx


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
    "empty": (b"", "0 bytes; 1 to 2147483647 expected"),
    "text": (b"<html>not found</html>", "not an ONNX model"),
    "cut varint": (OPSET + b"\x3a\x80", "a number is cut off at byte 6"),
    "long varint": (b"\x08" + b"\x80" * 11, "a number of more than 10 bytes"),
    "length beyond end": (b"\x3a\x05\x00", "5 bytes announced at byte 2, 1 left"),
    "huge length": (b"\x3a" + b"\xff" * 9 + b"\x01", "18446744073709551615 bytes announced"),
    "field zero": (b"\x02\x00", "field number 0 at byte 0"),
    "huge field": (varint(2**40), "field number"),
    "group": (b"\x0b\x0c", "wire type 3"),
    "fixed cut": (b"\x09\x00\x00", "8 bytes announced"),
    "graph as number": (OPSET + b"\x38\x01", "field 7 at byte 5 has wire type 0 where 2"),
    "version as string": (block(1, b"ab"), "field 1 at byte 2 has wire type 2 where 0"),
    "no graph": (OPSET, "it holds no graph, or names no operator set"),
    "no opset": (block(7, b""), "it holds no graph, or names no operator set"),
    "nested": (nested(limits.MAX_ONNX_DEPTH + 1), "subgraphs nested more than 24 deep"),
    "not utf-8": (OPSET + block(7, block(1, block(4, b"\xff"))), "is not UTF-8"),
    "long string": (
        OPSET + block(7, block(1, block(4, b"a" * 5000))),
        "a string of 5000 bytes at byte",
    ),
    "many inputs": (OPSET + block(7, block(11, b"") * 257), "more than 256 inputs or outputs"),
    "many dims": (
        OPSET + block(7, block(11, block(2, block(1, block(2, block(1, b"") * 17))))),
        "a tensor of more than 16 dims",
    ),
    "two types": (OPSET + block(7, block(11, block(2, b"") * 2)), "field 2 at byte"),
    "many operators": (
        OPSET + block(7, b"".join(block(1, block(4, b"%d" % i)) for i in range(1025))),
        "more than 1024 different operator types",
    ),
    "many domains": (
        b"".join(block(8, block(1, b"%d" % i)) for i in range(1025)),
        "more than 1024 operator domains",
    ),
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


def test_bounds_the_number_of_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ONNX_FIELDS", 100)
    path = write(tmp_path, OPSET + block(7, block(10, b"") * 200))
    with pytest.raises(BundleError, match="more than 100 fields"):
        summarise_onnx(path)


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


def weight(dims: bytes) -> bytes:
    return OPSET + block(7, block(5, dims + block(8, b"w")))


def test_sizes_of_weights_are_read_packed_and_one_by_one(tmp_path: Path):
    packed = block(1, varint(3) + varint(300)) + varint(1 << 3) + varint(7)
    assert summarise_onnx(write(tmp_path, weight(packed))).dims == {"w": (3, 300, 7)}
    with pytest.raises(BundleError, match="a number is cut off at byte"):
        summarise_onnx(write(tmp_path, weight(block(1, b"\x03\x80"))))
    with pytest.raises(BundleError, match=f"a tensor of more than {limits.MAX_ONNX_DIMS} dims"):
        summarise_onnx(write(tmp_path, weight(block(1, b"\x01" * (limits.MAX_ONNX_DIMS + 1)))))


def test_packed_sizes_count_as_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ONNX_FIELDS", 100)
    with pytest.raises(BundleError, match="more than 100 fields"):
        summarise_onnx(write(tmp_path, weight(block(1, b"\x01" * 200))))


def told(name: bytes, dim: bytes) -> bytes:
    """A `value_info` of one symbolic dim."""
    shape = block(1, block(2, dim))
    return block(13, block(1, name) + block(2, block(1, block(2, shape))))


def test_text_of_shapes_and_equations_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_ONNX_NAME_BYTES", 1000)
    dims = b"".join(told(b"t%d" % index, b"n" * 100) for index in range(20))
    with pytest.raises(BundleError, match="more than 1000 bytes of tensor names"):
        summarise_onnx(write(tmp_path, OPSET + block(7, dims)))
    node = block(1, block(4, b"Einsum") + block(5, block(1, b"equation") + block(4, b"a" * 100)))
    with pytest.raises(BundleError, match="more than 1000 bytes of tensor names"):
        summarise_onnx(write(tmp_path, OPSET + block(7, node * 20)))


def test_a_dim_has_few_characters(tmp_path: Path):
    longest = limits.MAX_ONNX_DIM_LENGTH
    path = write(tmp_path, OPSET + block(7, told(b"t", b"n" * longest)))
    assert summarise_onnx(path).dims == {"t": ("n" * longest,)}
    with pytest.raises(BundleError, match=f"a dim of {longest + 1} characters"):
        summarise_onnx(write(tmp_path, OPSET + block(7, told(b"t", b"n" * (longest + 1)))))
