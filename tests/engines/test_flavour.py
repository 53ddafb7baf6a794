import sys
from importlib import metadata
from types import ModuleType

import pytest

from refsam_trt.backends.tensorrt.flavour import open_flavour
from refsam_trt.errors import MissingExtraError, PlanVersionError


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Make an empty module of that name and version importable; None makes it absent."""

    def put(name: str, version: str | None) -> ModuleType | None:
        module = None if version is None else ModuleType(name)
        if module is not None:
            module.__version__ = version
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_every_supported_tensorrt_opens(install, version: str):
    module = install("tensorrt", version)
    flavour = open_flavour("tensorrt")
    assert (flavour.trt, flavour.version, flavour.is_rtx) == (module, version, False)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_an_unknown_tensorrt_is_refused(install, version: str):
    install("tensorrt", version)
    with pytest.raises(PlanVersionError) as refused:
        open_flavour("tensorrt")
    assert str(refused.value) == (
        f"tensorrt {version} is installed, supported is 10.3 up to below 12.0; "
        'pip install "refsam-trt[tensorrt]"'
    )


def test_the_bindings_alone_are_enough_for_rtx(install):
    install("tensorrt_rtx", None)
    module = install("tensorrt_rtx_bindings", "1.7.1.116")
    flavour = open_flavour("tensorrt-rtx")
    assert flavour.trt is module
    assert flavour.is_rtx


def test_a_library_that_is_not_there_is_named_with_its_extra(install):
    install("tensorrt_rtx", None)
    install("tensorrt_rtx_bindings", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[tensorrt-rtx\]"'):
        open_flavour("tensorrt-rtx")


def test_a_half_removed_package_is_not_taken_for_the_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(MissingExtraError, match="module tensorrt is empty"):
        open_flavour("tensorrt")


def test_cuda_is_that_of_the_wheel_with_the_same_version(install, monkeypatch: pytest.MonkeyPatch):
    versions = {"tensorrt-cu12-bindings": "10.3.0", "tensorrt-cu13-bindings": "11.4.0.106"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    for found, major in (("11.4.0.106", 13), ("10.3.0", 12), ("10.5.0", None)):
        install("tensorrt", found)
        assert open_flavour("tensorrt").cuda_major == major
