"""The CUDA module on a stand-in whose streams run as late as they may."""

import ctypes
import importlib
import sys
import threading
from typing import Any

import fake_cuda
import numpy as np
import pytest

from refsam_trt.backends.base import TransferCounts
from refsam_trt.backends.cuda import driver
from refsam_trt.backends.cuda.device import CudaDevice
from refsam_trt.backends.cuda.memory import CudaMemory
from refsam_trt.errors import (
    BackendError,
    DeviceMemoryError,
    InternalError,
    MissingExtraError,
    VideoError,
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    return fake_cuda.install(monkeypatch)


@pytest.fixture
def memory(cuda: fake_cuda.FakeCuda) -> CudaMemory:
    return CudaMemory(CudaDevice())


def test_the_driver_is_asked_before_anything_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    monkeypatch.setattr(driver, "describe", lambda: {"error": "not found (libcuda.so.1)"})
    with pytest.raises(BackendError) as refused:
        CudaDevice()
    assert str(refused.value) == (
        "no GPU can be used: CUDA driver not found (libcuda.so.1); install NVIDIA's driver, or use "
        "backend ort-cpu"
    )
    monkeypatch.setattr(driver, "describe", lambda: fake_cuda.GPU)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[cuda\]"'):
        CudaDevice()
    with pytest.raises(BackendError, match="GPU 1: the CUDA driver has 1 of them; check CUDA_VIS"):
        CudaDevice(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_what_is_uploaded_comes_back(memory: CudaMemory, dtype: type):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    buffer = memory.upload(array.transpose(2, 0, 1))
    assert (buffer.shape, buffer.device) == ((4, 2, 3), "cuda:0")
    np.testing.assert_array_equal(memory.download(buffer), array.transpose(2, 0, 1))
    counts = memory.transfers.counts()
    nbytes = array.nbytes
    assert counts == TransferCounts(1, 1, 0, nbytes, nbytes, 0)


def test_pinned_memory_is_not_reused_too_early(memory: CudaMemory):
    first = memory.upload(np.full(64, 1, np.float32))
    second = memory.upload(np.full(16, 2, np.float32))
    assert memory.download(first).tolist() == [1] * 64
    assert memory.download(second).tolist() == [2] * 16


def test_rows_are_views(memory: CudaMemory):
    buffer = memory.upload(np.arange(12, dtype=np.float32).reshape(4, 3))
    memory.upload(np.full((2, 3), 7, np.float32), buffer.rows(1, 3))
    assert memory.download(buffer)[:, 0].tolist() == [0, 7, 7, 9]
    memory.copy(buffer.rows(1, 2), buffer.rows(3, 4))
    assert memory.download(buffer)[3].tolist() == [7, 7, 7]
    assert memory.transfers.counts().copy_bytes == 12
    with pytest.raises(InternalError, match=r"rows \[3:5\] of a buffer with 4"):
        buffer.rows(3, 5)


def test_empty_arrays_need_no_transfer(memory: CudaMemory):
    buffer = memory.upload(np.empty((0, 4), np.float32))
    assert memory.download(buffer).shape == (0, 4)
    memory.copy(buffer, memory.empty((0, 4), "float32"))


def test_every_thread_has_a_stream_of_its_own(memory: CudaMemory):
    handles = {threading.get_ident(): memory.device.stream_handle}
    assert memory.device.stream_handle == memory.device.stream_handle

    def ask() -> None:
        handles[threading.get_ident()] = memory.device.stream_handle

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(set(handles.values())) == 2


def test_a_stream_of_its_own_goes_from_thread_to_thread(memory: CudaMemory):
    """Work that one thread put on it is done when another one downloads from it."""
    own, other = memory.new_stream(), memory.new_stream()
    buffer = memory.upload(np.zeros(4, np.float32))
    handles: dict[str, int] = {}

    def begin() -> None:
        with own:
            handles["begun"] = memory.device.stream_handle
            fake_cuda.enqueue(memory.device.stream_handle, lambda: _fill(buffer, 7.0))
            with other:
                handles["other"] = memory.device.stream_handle
            assert memory.device.stream_handle == handles["begun"]
        handles["thread"] = memory.device.stream_handle

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert memory.download(buffer).tolist() == [0.0] * 4  # on this thread's stream: not waited for
    with own:
        handles["gone on"] = memory.device.stream_handle
        assert memory.download(buffer).tolist() == [7.0] * 4
    assert handles["begun"] == handles["gone on"]
    assert len({handles[name] for name in ("begun", "other", "thread")}) == 3


def test_an_array_of_another_library_is_computed_before_any_stream_reads_it(memory: CudaMemory):
    frame = fake_cuda.GpuArray(np.arange(4, dtype=np.float32))
    adopted = memory.adopt(frame)  # outside of the session's stream, as a session does
    with memory.new_stream():
        assert memory.download(adopted).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_closing_waits_for_all_streams(memory: CudaMemory):
    done = []
    own = memory.new_stream()
    with own:
        fake_cuda.enqueue(memory.device.stream_handle, lambda: done.append("own"))
    fake_cuda.enqueue(memory.device.stream_handle, lambda: done.append("thread's"))
    memory.close()
    assert sorted(done) == ["own", "thread's"]


def test_a_stream_is_left_after_an_error(memory: CudaMemory):
    before = memory.device.stream_handle
    with pytest.raises(ValueError, match="mine"), memory.new_stream():
        raise ValueError("mine")
    assert memory.device.stream_handle == before


def _fill(buffer: Any, value: float) -> None:
    (ctypes.c_float * 4).from_address(buffer.address)[:] = [value] * 4


def test_no_room_is_an_error_of_its_own(cuda: fake_cuda.FakeCuda, memory: CudaMemory):
    cuda.free_bytes = 100
    assert memory.device.free_bytes() == 100
    with pytest.raises(DeviceMemoryError) as refused:
        memory.empty((26,), "float32")
    assert str(refused.value) == (
        "CUDA: allocating 104 bytes failed, the GPU is out of memory (CUDA_ERROR_OUT_OF_MEMORY: no "
        "room); close other programs on it, or use fewer expressions"
    )
    cuda.driver.cuMemGetInfo = lambda: (3, 0, 0)
    with pytest.raises(BackendError, match=r"free memory cannot be asked for \(3\)"):
        memory.device.free_bytes()


def test_a_captured_graph_runs_when_it_is_launched(memory: CudaMemory):
    ran: list[int] = []
    device = memory.device
    graph = device.capture(lambda handle: fake_cuda.enqueue(handle, lambda: ran.append(1)))
    device.sync()
    assert ran == []
    for _ in range(2):
        device.launch(graph)
    device.sync()
    assert ran == [1, 1]


def test_a_failed_capture_is_ended(memory: CudaMemory, monkeypatch: pytest.MonkeyPatch):
    closed: list[bool] = []
    monkeypatch.setattr(fake_cuda.GraphBuilder, "close", lambda builder: closed.append(True))

    def fail(handle: int) -> None:
        raise ValueError("no kernel")

    with pytest.raises(BackendError) as refused:
        memory.device.capture(fail)
    assert str(refused.value) == (
        "CUDA: capturing a CUDA graph failed (no kernel); run refsam-doctor, and try backend "
        "ort-cpu"
    )
    assert closed == [True]


def test_arrays_of_other_libraries_are_used_where_they_lie(memory: CudaMemory):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer = memory.adopt(fake_cuda.GpuArray(array))
    assert buffer.address == array.ctypes.data
    array[0, 0] = 9
    assert memory.download(buffer).tolist() == array.tolist()
    assert memory.transfers.counts().num_uploads == 0


def test_arrays_that_cannot_be_used_where_they_lie_are_refused(memory: CudaMemory):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(VideoError, match="an array on the host, expected one on cuda:0"):
        memory.adopt(fake_cuda.GpuArray(array, device_id=-1))
    with pytest.raises(VideoError, match="an array on cuda:1, expected one on cuda:0"):
        memory.adopt(fake_cuda.GpuArray(array, device_id=1))
    strided = fake_cuda.GpuArray(array)
    strided.element_strides = (1, 2)
    with pytest.raises(VideoError, match=r"strides \(1, 2\) of shape \(2, 3\), expected a C-cont"):
        memory.adopt(strided)
    strided.element_strides = (3, 1)
    assert memory.adopt(strided).shape == (2, 3)


def test_strides_of_axes_of_size_one_mean_nothing(memory: CudaMemory):
    """DLPack's writers fill them in differently: PyTorch gives 1, others what C order would."""
    array = fake_cuda.GpuArray(np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    for strides in ((1, 3, 1), (6, 3, 1)):
        array.element_strides = strides
        assert memory.adopt(array).shape == (1, 2, 3)


NAMES: dict[str, tuple[str, ...]] = {
    "Device": ("set_current", "create_stream", "allocate"),
    "Stream": ("sync", "handle", "create_graph_builder"),
    "Buffer": ("from_handle", "copy_to", "copy_from", "handle", "size"),
    "LegacyPinnedMemoryResource": ("allocate",),
}
GRAPH_NAMES: dict[str, tuple[str, ...]] = {
    "GraphBuilder": ("begin_building", "end_building", "complete", "close", "stream"),
    "Graph": ("launch", "upload"),
}


def test_every_name_exists_in_the_real_cuda_core():
    """Imported without a driver; elsewhere than in CI it may not be installed."""
    core = pytest.importorskip("cuda.core")
    graph = importlib.import_module("cuda.core.graph")
    utils = importlib.import_module("cuda.core.utils")
    for module, names in ((core, NAMES), (graph, GRAPH_NAMES)):
        for owner, members in names.items():
            missing = [name for name in members if not hasattr(getattr(module, owner), name)]
            assert not missing, owner
    assert hasattr(utils.StridedMemoryView, "from_any_interface")
    view = ("ptr", "shape", "dtype", "strides", "device_id", "is_device_accessible")
    assert not [name for name in view if not hasattr(utils.StridedMemoryView, name)]
    assert hasattr(importlib.import_module("cuda.bindings.driver"), "cuMemGetInfo")
