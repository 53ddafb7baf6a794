"""Ends a process at the first socket that it opens, be it from Python or from a library in C.

Python tells of its sockets by audit events. What FFmpeg or ONNX Runtime do is seen by Linux alone,
which is asked by a filter of system calls (seccomp) to kill the process.
"""

import ctypes
import os
import platform
import sys

EXIT_CODE = 99
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
# Machine -> its number in <linux/audit.h>, number of socket(2).
_NUMBERS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_uint16),
        ("instructions", ctypes.POINTER(_Instruction)),
    ]


def forbid() -> bool:
    """Forbid sockets to this process and say whether libraries in C are watched too."""
    sys.addaudithook(_end_at_socket_events)
    return sys.platform == "linux" and platform.machine() in _NUMBERS and _kill_at_socket_calls()


def _end_at_socket_events(event: str, arguments: object) -> None:
    if event.startswith("socket."):
        os.write(2, f"opened a socket: {event} {arguments}\n".encode())
        os._exit(EXIT_CODE)


def _kill_at_socket_calls() -> bool:
    machine, socket_call = _NUMBERS[platform.machine()]
    steps = (
        _Instruction(_LOAD, 0, 0, 4),
        _Instruction(_JUMP_IF_EQUAL, 0, 3, machine),
        _Instruction(_LOAD, 0, 0, 0),
        _Instruction(_JUMP_IF_EQUAL, 0, 1, socket_call),
        _Instruction(_RETURN, 0, 0, _KILL_PROCESS),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(steps), (_Instruction * len(steps))(*steps))
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
