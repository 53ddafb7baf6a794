from importlib import metadata

import pytest

import refsam_trt
from refsam_trt.versions import FROM_SOURCE, OWN, UNKNOWN, version_of


def test_versions_are_those_of_the_distributions():
    assert version_of("numpy") == metadata.version("numpy")
    assert version_of("no-such-distribution") == UNKNOWN


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch):
    """As where source folders lie on PYTHONPATH, with ONNX Runtime for GPUs."""

    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "9.8"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delattr(refsam_trt, "__version__", raising=False)
    assert refsam_trt.__version__ == version_of(OWN) == FROM_SOURCE
    assert version_of("onnxruntime") == "9.8"
    assert version_of("torch") == UNKNOWN
    monkeypatch.delattr(refsam_trt, "__version__", raising=False)
