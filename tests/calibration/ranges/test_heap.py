"""Memory goes back to the system: needs glibc, as nothing else keeps so much."""

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, pathlib
from refsam_calibration.ranges.measure import trim_heap

def resident():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
pieces = [libc.malloc(100_000) for _ in range(1000)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
for piece in pieces[::2]:  # holes, which nothing else gives back
    libc.free(piece)
before = resident()
assert trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_freed_pieces_between_others_are_given_back():
    freed_kib = int(subprocess.check_output([sys.executable, "-c", _PROGRAM], text=True))
    assert freed_kib > 40_000
