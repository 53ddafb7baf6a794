"""The fake device refuses what a real one would silently get wrong; sessions get along with it."""

import operator
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_bundle
import numpy as np
import onnx
import pytest
from onnx import parser
from runtime_twin import random_frames

import refsam_trt
from refsam_trt.backends.base import TransferCounts
from refsam_trt.backends.fake import FakeBackend, FakeContext
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.contract.refsam import Split
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import InternalError


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(num_threads=1)


@pytest.fixture
def context(tmp_path: Path, backend: FakeBackend) -> FakeContext:
    """Runs y = x + x on [B, 2]."""
    text = '<ir_version: 10, opset_import: ["" : 20]> double (float[B, 2] x) => (float[B, 2] y) { y = Add(x, x) }'  # noqa: E501
    onnx.save_model(parser.parse_model(text), tmp_path / "g.onnx")
    x, y = (TensorSpec(name, "float32", ("B", 2), "frame") for name in "xy")
    return backend.load(tmp_path / "g.onnx", GraphSpec((x,), (y,))).context()


@pytest.mark.parametrize(
    "access",
    [
        np.asarray,
        np.from_dlpack,
        len,
        list,
        bool,
        operator.itemgetter(0),
        lambda buffer: operator.setitem(buffer, 0, 1),
    ],
)
def test_host_access_is_refused(backend: FakeBackend, access: Callable[[Any], object]) -> None:
    buffer = backend.upload(np.zeros((2, 3), np.float32))
    with pytest.raises(InternalError, match=r"host access to a float32 \[2, 3\] buffer"):
        access(buffer)


def test_fresh_buffers_are_poisoned(backend: FakeBackend) -> None:
    assert np.isnan(backend.download(backend.empty((3,), "float32"))).all()
    assert np.isnan(backend.download(backend.empty((3,), "float16"))).all()
    assert (backend.download(backend.empty((3,), "int64")) < -(2**60)).all()
    assert backend.download(backend.empty((3,), "bool")).tolist() == [True, False, True]


def test_outputs_are_poisoned_before_a_run(backend: FakeBackend, context: FakeContext) -> None:
    x, y = (backend.upload(np.ones((1, 2), np.float32)) for _ in range(2))
    context._context.run = lambda inputs, outputs: None  # type: ignore[method-assign]
    context.run({"x": x}, {"y": y})
    assert np.isnan(backend.download(y)).all()
    assert not np.isnan(backend.download(x)).any()


def test_memory_shared_by_input_and_output_is_refused(
    backend: FakeBackend, context: FakeContext
) -> None:
    x = backend.upload(np.ones((4, 2), np.float32))
    context.run({"x": x.rows(0, 2)}, {"y": x.rows(2, 4)})
    np.testing.assert_array_equal(backend.download(x), [[1, 1], [1, 1], [2, 2], [2, 2]])
    with pytest.raises(InternalError, match="output 'y' overlaps 'x' in memory"):
        context.run({"x": x.rows(0, 2)}, {"y": x.rows(1, 3)})
    with pytest.raises(InternalError, match="output 'target' overlaps 'source' in memory"):
        backend.copy(x.rows(0, 2), x.rows(1, 3))


def test_one_context_is_for_one_thread(backend: FakeBackend, context: FakeContext) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(inputs: Any, outputs: Any) -> None:
        inside.set()
        leave.wait(10)

    context._context.run = slow  # type: ignore[method-assign]
    x, y = (backend.empty((1, 2), "float32") for _ in range(2))
    thread = threading.Thread(target=context.run, args=({"x": x}, {"y": y}))
    thread.start()
    assert inside.wait(10)
    try:
        with pytest.raises(InternalError, match="one context used by two threads at once"):
            context.run({"x": x}, {"y": y})
    finally:
        leave.set()
        thread.join()


def test_buffers_of_another_backend_are_refused(backend: FakeBackend, context: FakeContext) -> None:
    foreign = OrtCpuBackend().empty((1, 2), "float32")
    with pytest.raises(InternalError, match="backend fake was given a buffer of device cpu"):
        context.run({"x": foreign}, {"y": backend.empty((1, 2), "float32")})
    with pytest.raises(InternalError, match="backend ort-cpu was given a buffer of device fake:0"):
        OrtCpuBackend().download(backend.empty((1,), "float32"))


@pytest.mark.parametrize("split", ["baseline", "optimised"])
def test_a_frame_costs_one_upload_and_two_downloads(tmp_path: Path, split: Split) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle", split=split)
    num_text_tensors = {"baseline": 3, "optimised": 4}[split]
    image_bytes, logits_bytes = 4 * 3 * 32 * 32, 4 * 8 * 8
    frames = random_frames(6)
    steady = TransferCounts(1, 2, 0, image_bytes, 2 * (logits_bytes + 4), 0)

    with refsam_trt.load(folder, backend="fake") as engine, engine.open_video() as video:

        def cost(frame: np.ndarray) -> TransferCounts:
            before = engine.transfers
            video.step(frame)
            return engine.transfers - before

        assert cost(frames[0]) == TransferCounts()  # nothing to look for: no graph runs
        video.add_expression("a dog")
        second = video.add_expression("the red one")
        first_frame = cost(frames[1])
        assert first_frame.num_uploads == 1 + num_text_tensors + 1  # has_track: false
        assert (first_frame.num_downloads, first_frame.num_copies) == (2, 0)
        assert cost(frames[2]).num_uploads == 2  # has_track: true
        assert [cost(frame) for frame in frames[3:5]] == [steady, steady]

        before = engine.transfers
        video.add_expression("a cat")
        video.remove_expression(second)
        changed = engine.transfers - before
        assert changed.num_copies == 2, "the rows around the removed one move on the device"
        assert changed.num_downloads == num_text_tensors - 1, "the new text embedding, once"


@pytest.mark.parametrize("split", ["baseline", "optimised"])
def test_sessions_never_read_poison(tmp_path: Path, split: Split) -> None:
    folder = fake_bundle.make_bundle(tmp_path / "bundle", split=split)
    results = {}
    for backend in ("fake", "ort-cpu"):
        with refsam_trt.load(folder, backend=backend) as engine, engine.open_video() as video:
            first = video.add_expression("a dog")
            rows = []
            for index, frame in enumerate(random_frames(8)):
                if index in (2, 3, 4, 5):
                    video.add_expression("late " * index)
                if index == 4:
                    video.remove_expression(first)
                if index == 6:
                    video.reset_track(2)
                rows += [(r.low_res_logits, r.predicted_iou) for r in video.step(frame)]
            results[backend] = rows
    for (logits, iou), (expected, expected_iou) in zip(*results.values(), strict=True):
        np.testing.assert_array_equal(logits, expected)
        assert iou == expected_iou
        assert np.isfinite(logits).all()


def test_work_on_two_streams_must_be_put_in_order(
    backend: FakeBackend, context: FakeContext
) -> None:
    one, other = backend.new_stream(), backend.new_stream()
    x = backend.upload(np.ones((1, 2), np.float32))
    y, z = (backend.empty((1, 2), "float32") for _ in range(2))
    with one:
        context.run({"x": x}, {"y": y})
    with other:
        with pytest.raises(InternalError, match="still being written on a stream that nobody wait"):
            context.run({"x": y}, {"y": z})
        other.wait(one.record())
        context.run({"x": y}, {"y": z})
    with one:
        with pytest.raises(InternalError, match="still being read on a stream that nobody waited"):
            backend.upload(np.zeros((1, 2), np.float32), y)
        one.wait(other.record())
        backend.upload(np.zeros((1, 2), np.float32), y)
    with other:
        assert backend.download(z).tolist() == [[4.0, 4.0]]


def test_a_download_that_has_arrived_puts_its_stream_in_order(
    backend: FakeBackend, context: FakeContext
) -> None:
    one, x = backend.new_stream(), backend.upload(np.ones((1, 2), np.float32))
    y, z = (backend.empty((1, 2), "float32") for _ in range(2))
    with one:
        context.run({"x": x}, {"y": y})
        pending = backend.begin_download(y)
    with pytest.raises(InternalError, match="still being written"):
        context.run({"x": y}, {"y": z})
    assert pending.result().tolist() == [[2.0, 2.0]]
    context.run({"x": y}, {"y": z})


def test_one_stream_is_entered_by_one_thread(backend: FakeBackend) -> None:
    stream = backend.new_stream()
    with stream, pytest.raises(InternalError, match="one stream entered by two threads"):
        stream.__enter__()
