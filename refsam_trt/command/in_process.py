"""Runs one function in a process of its own, which has nothing of this one.

Not `concurrent.futures.ProcessPoolExecutor`: its processes import the main program again, with all
that it imports, so that their memory is not their own; and it does not say how one died.
"""

from __future__ import annotations

import json
import logging
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from refsam_trt.errors import InternalError, RefsamError

_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")
# `sys.path` comes first: whatever is imported afterwards is what this process would import.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from refsam_trt.command.in_process import answer; answer(sys.argv[2])"
)
_CALL, _ANSWER = "call", "answer"


def in_process(
    function: Callable[_Arguments, _Value],
    *arguments: _Arguments.args,
    **options: _Arguments.kwargs,
) -> _Value:
    """Return what a function returns in a fresh interpreter, and wait for it.

    The process imports only what the function and its arguments need. It writes to this process's
    standard output and error, and ends with this process's interruption.

    Args:
        function: of a module that can be imported, which the main program itself cannot.
        arguments: that can be pickled, as must be what the function returns.
        options: likewise, by name.

    Raises:
        RefsamError, OSError: as the function raised it.
        InternalError: it raised anything else, or the process died; the text says how.
    """
    with tempfile.TemporaryDirectory(prefix="refsam-process-") as folder:
        (Path(folder) / _CALL).write_bytes(pickle.dumps((function, arguments, options)))
        command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), folder]
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            name = f"{function.__module__}.{function.__qualname__}"
            raise InternalError(f"the process of {name} {_death(code)}")
        value, error = pickle.loads((Path(folder) / _ANSWER).read_bytes())
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def answer(folder: str) -> None:
    """Make the call that lies in a folder and leave beside it what came of it."""
    # The parent ends this process; an interruption is told once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What our packages warn of is said by the command, not by the processes that it starts.
    logging.getLogger("refsam_trt").addHandler(logging.NullHandler())
    try:
        function, arguments, options = pickle.loads((Path(folder) / _CALL).read_bytes())
        told = pickle.dumps((function(*arguments, **options), None))
    except (RefsamError, OSError) as error:
        told = pickle.dumps((None, error))
    except Exception:
        text = f"in a process of its own:\n{traceback.format_exc()}"
        told = pickle.dumps((None, InternalError(text)))
    (Path(folder) / _ANSWER).write_bytes(told)


def _death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
