"""What the first 64 bytes of a TensorRT-RTX plan tell, without the library.

Undocumented; seen in version 1.7.1. Anything unexpected gives None, never a guess.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 64
_MAGIC, _HEADER_VERSION = b"vtrt", 2
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", ">12.0")
"""Bit by bit, from the lowest."""


@dataclass(frozen=True)
class RtxHeader:
    """Version that built the plan, its size, and the GPUs that it has code for."""

    version: str
    size_bytes: int
    compute_capabilities: tuple[str, ...]


def read_rtx_header(path: Path) -> RtxHeader | None:
    """Read the header of a plan; None if it is not of the known form."""
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES or raw[:4] != _MAGIC or raw[28:32] != _MAGIC:
        return None
    header_version, size_bytes = struct.unpack_from("<I4xQ", raw, 8)
    (mask,) = struct.unpack_from("<I", raw, 32)
    if header_version != _HEADER_VERSION or mask >> len(_CAPABILITIES):
        return None
    version = ".".join(str(part) for part in raw[24:28])
    names = tuple(name for bit, name in enumerate(_CAPABILITIES) if mask >> bit & 1)
    return RtxHeader(version, size_bytes, names)
