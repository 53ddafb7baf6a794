"""What all CUDA backends share: buffers on the GPU, and transfers through pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refsam_trt.backends.base import Buffer, Download, Transfers, check_same, dtype_of, numpy_dtype
from refsam_trt.backends.cuda.device import CudaDevice
from refsam_trt.backends.cuda.streams import OwnStream
from refsam_trt.contract.specs import DType
from refsam_trt.errors import InternalError, VideoError


class CudaBuffer:
    """Dense memory on the GPU; `owner` keeps it alive for the buffer and its views."""

    def __init__(
        self, device: str, address: int, shape: tuple[int, ...], dtype: DType, owner: Any
    ) -> None:
        self.device = device
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self._owner = owner

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * numpy_dtype(self.dtype, self.device).itemsize

    def rows(self, start: int, stop: int) -> CudaBuffer:
        """Return a view of `[start:stop]` on the leading axis."""
        if not 0 <= start < stop <= self.shape[0]:
            raise InternalError(f"rows [{start}:{stop}] of a buffer with {self.shape[0]}")
        offset = start * (self.num_bytes // self.shape[0])
        shape = (stop - start, *self.shape[1:])
        return CudaBuffer(self.device, self.address + offset, shape, self.dtype, self._owner)


class CudaMemory:
    """The memory half of a backend; a subclass has `name`, `precision_notes` and `load`."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.transfers = Transfers()

    def new_stream(self) -> OwnStream:
        """Return a stream that any thread may enter, one at a time."""
        return self.device.new_stream()

    def empty(self, shape: Sequence[int], dtype: DType) -> CudaBuffer:
        """Return a new buffer with undefined content."""
        sizes = tuple(shape)
        num_bytes = int(np.prod(sizes)) * numpy_dtype(dtype, self.device.name).itemsize
        memory = self.device.allocate(num_bytes)
        return CudaBuffer(self.device.name, int(memory.handle), sizes, dtype, memory)

    def upload(self, array: np.ndarray, out: Buffer | None = None) -> CudaBuffer:
        """Copy a host array into `out` or a new buffer."""
        target = self.empty(array.shape, dtype_of(array)) if out is None else cuda_buffer(out)
        check_same(array, target, "upload")
        self.device.upload(array, target.address)
        self.transfers.uploaded(array.nbytes)
        return target

    def begin_download(self, buffer: Buffer) -> Download:
        """Begin a copy to the host behind the work of this stream."""
        source = cuda_buffer(buffer)
        dtype = numpy_dtype(source.dtype, source.device)
        self.transfers.downloaded(source.num_bytes)
        return self.device.begin_download(source.address, source.shape, dtype)

    def download(self, buffer: Buffer) -> np.ndarray:
        """Return a copy on the host, after waiting for the work of this stream."""
        return self.begin_download(buffer).result()

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy device to device."""
        check_same(source, target, "copy")
        from_, to = cuda_buffer(source), cuda_buffer(target)
        self.device.copy(from_.address, to.address, from_.num_bytes)
        self.transfers.copied(from_.num_bytes)

    def adopt(self, array: Any) -> CudaBuffer:
        """Return a buffer that is another library's array on this GPU; nothing is copied.

        Args:
            array: with `__dlpack__` or `__cuda_array_interface__` (PyTorch, CuPy, PyCUDA), dense.
                Kept alive with the buffer; must not be written to while it is in use.

        Raises:
            VideoError: not on this GPU, or not dense.
        """
        view, device = self.device.view(array), self.device.name
        shape, strides = tuple(view.shape), view.strides
        where = f"cuda:{view.device_id}" if view.is_device_accessible else "the host"
        if where != device:
            raise VideoError(f"frame: an array on {where}, expected one on {device}")
        if strides is not None and not _is_dense(shape, tuple(strides)):
            raise VideoError(
                f"frame: strides {tuple(strides)} of shape {shape}, expected a C-contiguous "
                "array; make a contiguous copy first"
            )
        dtype = dtype_of(np.empty(0, view.dtype))
        return CudaBuffer(device, int(view.ptr), shape, dtype, (view, array))

    def close(self) -> None:
        """Wait for the work of all streams; memory goes with the last reference."""
        self.device.sync_all()


def cuda_buffer(buffer: Buffer) -> CudaBuffer:
    """Return `buffer`, or refuse one that is not on a GPU."""
    if not isinstance(buffer, CudaBuffer):
        raise InternalError(f"a CUDA backend was given a buffer of device {buffer.device}")
    return buffer


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Say whether strides, counted in elements, are those of a C-contiguous array.

    Those of axes of size 1 mean nothing, and DLPack's writers fill them in differently.
    """
    dense = (int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return all(
        size == 1 or stride == expected
        for size, stride, expected in zip(shape, strides, dense, strict=True)
    )
