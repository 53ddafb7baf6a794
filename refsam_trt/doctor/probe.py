"""Questions about this machine that may crash or hang the process that asks them.

`refsam-doctor` runs this module in a process of its own per question, so that a CPU without the
instructions of a wheel, or a wedged driver, becomes an answer:
`python -m refsam_trt.doctor.probe cuda | video | onnxruntime | backend NAME | tensorrt NAME` prints
one JSON object.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from refsam_trt.backends.cuda import driver

TIMEOUT_S = 60.0

_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
_ENCODER = "libx264"
# ONNX, opset 20: one node, y = Add(x, x), both float32 [4].
_ADDITION = bytes.fromhex(
    "08093a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a0808011204"
    "0a020804620f0a0179120a0a08080112040a02080442040a001014"
)


def ask(*question: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run a probe in a process of its own and return its answer.

    Returns:
        What the probe answered, or only `error`: how its process died.
    """
    command = [sys.executable, "-m", "refsam_trt.doctor.probe", *question]
    # From here, `-m` takes this very package, whatever the folder that the user stands in holds.
    package_root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, cwd=package_root
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"error": f"gave no answer within {timeout_s:g} s"}
    except OSError as error:
        return {"error": f"cannot be asked ({error.strerror})"}
    except (ValueError, IndexError):
        return {"error": _cause_of_death(done.returncode, done.stderr)}


def video() -> dict[str, Any]:
    """Ask PyAV which codecs it has."""
    try:
        import av
        import av.codec
    except ImportError as error:
        return {"error": f'PyAV cannot be imported ({error}): pip install "refsam-trt[video]"'}

    def has(name: str, mode: Literal["r", "w"]) -> bool:
        try:
            av.codec.Codec(name, mode)
        except ValueError:  # UnknownCodecError
            return False
        return True

    return {
        "pyav": av.__version__,
        "decoders": [name for name in _DECODERS if has(name, "r")],
        "encoders": [_ENCODER] if has(_ENCODER, "w") else [],
    }


def onnxruntime() -> dict[str, Any]:
    """Ask ONNX Runtime for its version and execution providers."""
    try:
        library = importlib.import_module("onnxruntime")
        return {"version": library.__version__, "providers": library.get_available_providers()}
    # A half-removed package imports as an empty namespace.
    except (ImportError, AttributeError) as error:
        return {
            "error": f'ONNX Runtime cannot be imported ({error}): pip install "refsam-trt[cpu]"'
        }


def backend(name: str) -> dict[str, Any]:
    """Open a backend, run a graph of one addition on it and check the sum."""
    import numpy as np

    from refsam_trt.backends.select import ON_CPUS, open_backend
    from refsam_trt.contract.specs import GraphSpec, TensorSpec
    from refsam_trt.errors import RefsamError

    x = TensorSpec("x", "float32", (4,), "frame")
    y = TensorSpec("y", "float32", (4,), "frame")
    values = np.arange(4, dtype=np.float32)
    try:
        opened = open_backend(name, num_threads=1 if name in ON_CPUS else None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "addition.onnx"
            path.write_bytes(_ADDITION)
            graph = opened.load(path, GraphSpec((x,), (y,)))
            y_dev = opened.empty((4,), "float32")
            graph.context().run({"x": opened.upload(values)}, {"y": y_dev})
            total = opened.download(y_dev)
    except RefsamError as error:
        return {"error": str(error)}
    if not np.array_equal(total, 2 * values):
        return {"error": f"computed {total.tolist()} instead of {(2 * values).tolist()}"}
    return {"precision_notes": opened.precision_notes}


def tensorrt(name: str) -> dict[str, Any]:
    """Open the library and the GPU of a backend that runs plans, and make a runtime of them."""
    from refsam_trt.backends.cuda.device import CudaDevice
    from refsam_trt.backends.tensorrt.flavour import open_flavour
    from refsam_trt.backends.tensorrt.log import TrtLog, make_logger
    from refsam_trt.errors import RefsamError

    log = TrtLog()
    try:
        flavour = open_flavour("tensorrt-rtx" if name == "tensorrt-rtx" else "tensorrt")
        device = CudaDevice()
        device.sync()
        logger = make_logger(flavour, log)
        if flavour.trt.Runtime(logger) is None:
            return {"error": f"{name} {flavour.version} makes no runtime: {log.errors()}"}
    except RefsamError as error:
        return {"error": str(error)}
    return {"version": flavour.version, "gpu": device.facts.name}


def _cause_of_death(code: int, stderr: str) -> str:
    if code >= 0:
        lines = stderr.strip().splitlines() or ["no message"]
        return f"the probe ended with exit code {code}: {lines[-1]}"
    name = signal.Signals(-code).name
    hint = " (this CPU lacks an instruction that the package was built for)"
    return f"the probe was killed by {name}{hint if -code == signal.SIGILL else ''}"


def main(question: list[str]) -> None:
    """Answer one question on standard output."""
    probes: dict[str, Callable[..., dict[str, Any]]] = {
        "cuda": driver.describe,
        "video": video,
        "onnxruntime": onnxruntime,
        "backend": backend,
        "tensorrt": tensorrt,
    }
    print(json.dumps(probes[question[0]](*question[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
