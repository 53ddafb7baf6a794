"""ONNX Runtime's CUDA provider on the bundle's own graphs; no plans, no build.

Nothing here has run on a GPU yet (docs/proof/limits.md). The provider waits for its work at the
end of a run, so graphs of a session follow each other without a stream in common.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from refsam_trt.backends.base import Buffer, numpy_dtype
from refsam_trt.backends.cuda.device import CudaDevice
from refsam_trt.backends.cuda.memory import CudaMemory, cuda_buffer
from refsam_trt.backends.ort import OrtGraph, check_session
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import BackendError, MissingExtraError

NAME = "ort-cuda"
_PROVIDER = "CUDAExecutionProvider"


class OrtCudaBackend(CudaMemory):
    """ONNX Runtime on a GPU.

    Args:
        device: index of the GPU.

    Raises:
        BackendError: no driver, no such GPU, or an ONNX Runtime without CUDA.
        MissingExtraError: onnxruntime-gpu or cuda-core is not installed.
    """

    name = NAME
    precision_notes = "every type as written in the graph; fp32 products are not rounded to TF32"

    def __init__(self, device: int = 0) -> None:
        super().__init__(CudaDevice(device))
        try:
            self._ort: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("cuda", f"backend {NAME}", str(error)) from error
        if _PROVIDER not in self._ort.get_available_providers():
            raise BackendError(
                f"backend {NAME}: the ONNX Runtime that is installed has no CUDA; pip uninstall "
                'onnxruntime, then pip install "refsam-trt[cuda]"'
            )
        if hasattr(self._ort, "preload_dlls"):  # 1.21: finds CUDA in the wheels of NVIDIA
            self._ort.preload_dlls()
        self._index = device
        self._lock = threading.Lock()

    def load(self, path: Path, spec: GraphSpec) -> OrtCudaGraph:
        """Load an ONNX file and compare its tensors with `spec`."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Products in TF32 would make fp32 graphs something else without a word.
        provider = (_PROVIDER, {"device_id": self._index, "use_tf32": 0})
        try:
            with self._lock:
                session = self._ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            raise BackendError(f"{NAME}: cannot load {path}: {error}") from error
        # It falls back to the CPU without an error when a library of CUDA is missing.
        if session.get_providers()[0] != _PROVIDER:
            raise BackendError(
                f"{NAME}: ONNX Runtime took {session.get_providers()[0]} for {path}: a library of "
                'CUDA is missing or does not fit; pip install "refsam-trt[cuda]", or use ort-cpu'
            )
        check_session(path, session, spec)
        return OrtCudaGraph(path, session, spec)


class OrtCudaGraph(OrtGraph):
    """An ONNX Runtime session on a GPU, whose contexts bind buffers that lie there."""

    def place(self, buffer: Buffer) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
        """Return where a buffer lies, as bindings take it: device, index, dtype, shape, address."""
        memory = cuda_buffer(buffer)
        index = int(memory.device.removeprefix("cuda:"))
        return "cuda", index, numpy_dtype(memory.dtype, NAME), memory.shape, memory.address

    def failed(self, error: Exception) -> BackendError:
        """Return our error for one of ONNX Runtime's."""
        return BackendError(f"{NAME}: {self.name} failed on the GPU: {error}; run refsam-doctor")
