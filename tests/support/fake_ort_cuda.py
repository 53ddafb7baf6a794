"""A stand-in for ONNX Runtime's CUDA provider: it computes on the CPU, on addresses it is given."""

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

CUDA = "CUDAExecutionProvider"
_InferenceSession = onnxruntime.InferenceSession


class Session:
    """A real session on the CPU that says it is on the GPU, and takes the GPU's addresses."""

    provider = CUDA
    asked: tuple[Any, ...] = ()

    def __init__(self, path: str, options: Any, providers: Any) -> None:
        type(self).asked = tuple(providers)
        self._session = _InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_providers(self) -> list[str]:
        return [self.provider]

    def io_binding(self) -> Any:
        binding = self._session.io_binding()

        def bind(real: Any) -> Any:
            def on_gpu(name: str, device: str, index: int, *rest: Any) -> None:
                assert (device, index) == ("cuda", 0)
                real(name, "cpu", 0, *rest)

            return on_gpu

        return SimpleNamespace(
            real=binding,
            bind_input=bind(binding.bind_input),
            bind_output=bind(binding.bind_output),
            synchronize_outputs=binding.synchronize_outputs,
            clear_binding_inputs=binding.clear_binding_inputs,
            clear_binding_outputs=binding.clear_binding_outputs,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding.real)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give ONNX Runtime the provider; sessions on other providers stay as they are."""

    def session(path: str, options: Any = None, providers: Any = None) -> Any:
        is_cuda = bool(providers) and providers[0][0] == CUDA
        made = Session if is_cuda else _InferenceSession
        return made(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
