"""ONNX Runtime's CUDA backend on stand-ins: the provider computes on the CPU, the GPU is memory."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_bundle
import fake_cuda
import fake_ort_cuda
import numpy as np
import onnxruntime
import pytest
from fake_ort_cuda import CUDA, Session

from refsam_trt.backends.cuda.ort import OrtCudaBackend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import BackendError, InternalError, MissingExtraError


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> OrtCudaBackend:
    fake_cuda.install(monkeypatch)
    fake_ort_cuda.install(monkeypatch)
    return OrtCudaBackend()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("ort-cuda") / "bundle")


def test_graphs_run_on_the_memory_they_are_given(backend: OrtCudaBackend, folder: Path):
    bundle = open_bundle(folder)
    (variant,) = bundle.manifest.variants.values()
    entry = variant.graphs["image_encoder"]
    graph = backend.load(bundle.path(entry.file), entry.spec)
    assert Session.asked == ((CUDA, {"device_id": 0, "use_tf32": 0}),)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    inputs = {"image": backend.upload(image)}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in entry.spec.outputs}
    before = backend.transfers.counts()
    context = graph.context()
    context.run(inputs, outputs)
    assert backend.transfers.counts() == before
    expected = fake_bundle.run_graph(folder, "image_encoder", {"image": image})
    for name, array in expected.items():
        np.testing.assert_allclose(backend.download(outputs[name]), array, atol=1e-6)
    with pytest.raises(InternalError, match="graph called with inputs"):
        context.run({}, outputs)


def test_a_graph_that_fails_is_named(
    backend: OrtCudaBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("lost the GPU")

    bundle = open_bundle(folder)
    (variant,) = bundle.manifest.variants.values()
    entry = variant.graphs["image_encoder"]
    graph = backend.load(bundle.path(entry.file), entry.spec)
    inputs = {"image": backend.upload(np.zeros((1, 3, 32, 32), np.float32))}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in entry.spec.outputs}
    monkeypatch.setattr(Session, "run_with_iobinding", fail)
    with pytest.raises(
        BackendError,
        match=r"^ort-cuda: image_encoder\.onnx failed on the GPU: lost the GPU; run refsam-doctor",
    ):
        graph.context().run(inputs, outputs)


def test_a_silent_fallback_to_the_cpu_is_refused(
    backend: OrtCudaBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Session, "provider", "CPUExecutionProvider")
    bundle = open_bundle(folder)
    (variant,) = bundle.manifest.variants.values()
    entry = variant.graphs["image_encoder"]
    path = bundle.path(entry.file)
    with pytest.raises(BackendError) as refused:
        backend.load(path, entry.spec)
    assert str(refused.value) == (
        f"ort-cuda: ONNX Runtime took CPUExecutionProvider for {path}: a library of CUDA is "
        'missing or does not fit; pip install "refsam-trt[cuda]", or use ort-cpu'
    )


def test_an_onnx_runtime_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch):
    fake_cuda.install(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError) as refused:
        OrtCudaBackend()
    assert str(refused.value) == (
        "backend ort-cuda: the ONNX Runtime that is installed has no CUDA; pip uninstall "
        'onnxruntime, then pip install "refsam-trt[cuda]"'
    )


def test_a_run_that_fails_is_told(
    backend: OrtCudaBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(session: Session, binding: Any) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(Session, "run_with_iobinding", fail)
    bundle = open_bundle(folder)
    (variant,) = bundle.manifest.variants.values()
    entry = variant.graphs["image_encoder"]
    context = backend.load(bundle.path(entry.file), entry.spec).context()
    inputs = {"image": backend.empty((1, 3, 32, 32), "float32")}
    outputs = {t.name: backend.empty(t.shape({"M": 1}), t.dtype) for t in entry.spec.outputs}
    with pytest.raises(BackendError) as refused:
        context.run(inputs, outputs)
    assert str(refused.value) == (
        "ort-cuda: image_encoder.onnx failed on the GPU: no kernel image; run refsam-doctor"
    )


def test_a_missing_onnx_runtime_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    fake_cuda.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[cuda\]"'):
        OrtCudaBackend()


def test_a_file_that_cannot_be_loaded_is_named(backend: OrtCudaBackend, tmp_path: Path):
    bundle_spec = SimpleNamespace(inputs=(), outputs=())
    with pytest.raises(BackendError, match=r"ort-cuda: cannot load .*absent\.onnx"):
        backend.load(tmp_path / "absent.onnx", bundle_spec)
