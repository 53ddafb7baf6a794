import struct
from pathlib import Path

import pytest

from refsam_engines.rtx_header import HEADER_BYTES, RtxHeader, read_rtx_header


def header(**changes: bytes) -> bytes:
    """The first 64 bytes as TensorRT-RTX 1.7.1 writes them."""
    raw = bytearray(HEADER_BYTES)
    struct.pack_into("<4sIIIQ", raw, 0, b"vtrt", 0, 2, 0, 12345)
    struct.pack_into("<4B4sI", raw, 24, 1, 7, 1, 116, b"vtrt", 0b1111110)
    for offset, value in changes.items():
        at = int(offset[2:])
        raw[at : at + len(value)] = value
    return bytes(raw)


def test_version_size_and_gpus_are_read(tmp_path: Path):
    (tmp_path / "x.plan").write_bytes(header() + b"more")
    assert read_rtx_header(tmp_path / "x.plan") == RtxHeader(
        "1.7.1.116", 12345, ("8.0", "8.6", "8.9", "12.0", "12.1", ">12.0")
    )


@pytest.mark.parametrize(
    "raw",
    [
        header()[:63],
        header(at0=b"ftrt"),
        header(at28=b"xxxx"),
        header(at8=b"\3"),
        header(at32=b"\xff"),
    ],
    ids=["short", "other magic", "no second magic", "newer header", "unknown GPU"],
)
def test_whatever_is_not_known_gives_nothing(tmp_path: Path, raw: bytes):
    (tmp_path / "x.plan").write_bytes(raw)
    assert read_rtx_header(tmp_path / "x.plan") is None
