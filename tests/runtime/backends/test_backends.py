"""ONNX Runtime behind the Buffer and Graph protocols, and how a backend is chosen."""

import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import fake_bundle
import msgspec
import numpy as np
import onnx
import pytest
from onnx import parser
from runtime_twin import Twin

from refsam_trt.backends import select
from refsam_trt.backends.base import Backend, check_call
from refsam_trt.backends.host import HostBuffer, HostMemory
from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.backends.select import ON_CPUS, open_backend
from refsam_trt.bundle.open import open_bundle
from refsam_trt.contract.refsam import TEXT_ENCODER
from refsam_trt.contract.specs import DType, GraphSpec, TensorSpec
from refsam_trt.errors import BackendError, InternalError, MissingExtraError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_bundle.make_bundle(tmp_path_factory.mktemp("bundles") / "baseline")


@pytest.fixture(params=["ort-cpu", "openvino-cpu"])
def backend(request: pytest.FixtureRequest) -> HostMemory:
    """Every backend of the CPU keeps the same promises."""
    if request.param == "openvino-cpu" and find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    opened = open_backend(request.param, num_threads=1)
    assert isinstance(opened, HostMemory)
    return opened


def double_graph(path: Path, dtype: DType = "float32") -> GraphSpec:
    """Write y = x + x with x [B, 2]."""
    onnx_type = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[dtype]
    text = f'<ir_version: 10, opset_import: ["" : 20]> double ({onnx_type}[B, 2] x) => ({onnx_type}[B, 2] y) {{ y = Add(x, x) }}'  # noqa: E501
    onnx.save_model(parser.parse_model(text), path)
    return GraphSpec(
        (TensorSpec("x", dtype, ("B", 2), "frame"),), (TensorSpec("y", dtype, ("B", 2), "frame"),)
    )


def test_a_graph_writes_into_the_given_memory(folder: Path, backend: Backend) -> None:
    bundle = open_bundle(folder)
    entry = bundle.manifest.variants["fp32-plain-baseline"].graphs[TEXT_ENCODER]
    ids = np.array([[5, 6, 1], [7, 1, 0]])
    feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    outputs = {
        t.name: backend.empty(t.shape({"B": 2, "N": 3}), t.dtype) for t in entry.spec.outputs
    }
    memory = {name: buffer.array.ctypes.data for name, buffer in outputs.items()}

    context = backend.load(bundle.path(entry.file), entry.spec).context()
    context.run({name: backend.upload(array) for name, array in feeds.items()}, outputs)

    for name, expected in Twin(folder).run(TEXT_ENCODER, feeds).items():
        # Both add up the same products; only ONNX Runtime does it in the twin's order.
        tolerance = 0 if backend.name == "ort-cpu" else 1e-6
        result = backend.download(outputs[name])
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
        assert outputs[name].array.ctypes.data == memory[name]


def test_rows_of_a_buffer_run_in_place(tmp_path: Path, backend: Backend) -> None:
    spec = double_graph(tmp_path / "g.onnx")
    x = backend.upload(np.arange(8, dtype=np.float32).reshape(4, 2))
    y = backend.upload(np.zeros((4, 2), np.float32))
    context = backend.load(tmp_path / "g.onnx", spec).context()
    context.run({"x": x.rows(1, 3)}, {"y": y.rows(2, 4)})
    np.testing.assert_array_equal(y.array, [[0, 0], [0, 0], [4, 6], [8, 10]])
    assert np.shares_memory(y.rows(2, 4).array, y.array)
    with pytest.raises(InternalError, match=r"rows \[3:5\] of a buffer with 4"):
        y.rows(3, 5)


def test_uploads_and_downloads_are_counted_copies(backend: Backend) -> None:
    source = np.ones((2, 3), np.float32)
    buffer = backend.upload(source)
    source[:] = 2
    copy = backend.download(buffer)
    copy[:] = 3
    np.testing.assert_array_equal(backend.download(buffer), np.ones((2, 3)))
    other = backend.empty((2, 3), "float32")
    backend.copy(buffer, other)
    assert backend.upload(source, other) is other
    counts = backend.transfers.counts()
    assert (counts.num_uploads, counts.num_downloads, counts.num_copies) == (2, 2, 1)
    assert (counts.upload_bytes, counts.download_bytes, counts.copy_bytes) == (48, 48, 24)


def test_transfers_between_different_tensors_are_refused(backend: Backend) -> None:
    buffer = backend.empty((2, 3), "float32")
    with pytest.raises(InternalError, match=r"upload of float32 \[3, 2\] into float32 \[2, 3\]"):
        backend.upload(np.zeros((3, 2), np.float32), buffer)
    with pytest.raises(InternalError, match=r"copy of float16 \[2, 3\] into float32 \[2, 3\]"):
        backend.copy(backend.empty((2, 3), "float16"), buffer)
    with pytest.raises(InternalError, match="no buffer holds float64 elements"):
        backend.upload(np.zeros(1))


def test_half_precision_graphs_run(tmp_path: Path, backend: Backend) -> None:
    spec = double_graph(tmp_path / "g.onnx", "float16")
    y = backend.empty((1, 2), "float16")
    x = backend.upload(np.array([[1.5, 2]], np.float16))
    backend.load(tmp_path / "g.onnx", spec).context().run({"x": x}, {"y": y})
    np.testing.assert_array_equal(backend.download(y), np.array([[3, 4]], np.float16))


def test_bfloat16_is_refused_by_name(tmp_path: Path, backend: Backend) -> None:
    spec = double_graph(tmp_path / "g.onnx", "bfloat16")
    with pytest.raises(BackendError, match=f"backend {backend.name} cannot hold bfloat16 tensors"):
        backend.load(tmp_path / "g.onnx", spec)


def test_other_tensors_than_declared_are_refused(tmp_path: Path, backend: Backend) -> None:
    spec = double_graph(tmp_path / "g.onnx")
    renamed = msgspec.structs.replace(spec, inputs=(TensorSpec("z", "float32", (), "frame"),))
    with pytest.raises(BackendError, match=r"g.onnx: the graph has inputs .*'x'.* declares .*'z'"):
        backend.load(tmp_path / "g.onnx", renamed)


def test_an_unreadable_graph_is_refused(tmp_path: Path, backend: Backend) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name in ("bad.onnx", "absent.onnx"):
        with pytest.raises(BackendError, match=f"{backend.name}: cannot load .*{name}"):
            backend.load(tmp_path / name, GraphSpec((), ()))


def test_a_failing_run_is_a_backend_error(tmp_path: Path, backend: Backend) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> bad (float[B, 2] x, int64[2] s) => (float[B, 2] y) { y = Reshape(x, s) }'  # noqa: E501
    onnx.save_model(parser.parse_model(text), tmp_path / "bad.onnx")
    x, y = (TensorSpec(name, "float32", ("B", 2), "frame") for name in "xy")
    spec = GraphSpec((x, TensorSpec("s", "int64", (2,), "frame")), (y,))
    context = backend.load(tmp_path / "bad.onnx", spec).context()
    inputs = {
        "x": backend.upload(np.zeros((2, 2), np.float32)),
        "s": backend.upload(np.array([5, 5])),
    }
    with pytest.raises(BackendError, match=rf"{backend.name}: graph bad\.onnx failed"):
        context.run(inputs, {"y": backend.empty((2, 2), "float32")})


def test_calls_are_checked_against_the_declared_tensors(backend: Backend) -> None:
    x = TensorSpec("x", "float32", ("B", "N+1"), "frame")
    spec = GraphSpec((x,), (TensorSpec("y", "float32", ("B", "N"), "frame"),))

    def buffer(*shape: int, dtype: DType = "float32") -> HostBuffer:
        return backend.empty(shape, dtype)

    check_call(spec, {"x": buffer(2, 4)}, {"y": buffer(2, 3)})
    with pytest.raises(InternalError, match=r"called with inputs \['z'\], expected \['x'\]"):
        check_call(spec, {"z": buffer(2, 4)}, {"y": buffer(2, 3)})
    for wrong in (buffer(2, 4), buffer(3, 3), buffer(2), buffer(2, 3, dtype="int64")):
        with pytest.raises(InternalError, match=r"tensor 'y': expected float32 \['B', 'N'\]"):
            check_call(spec, {"x": buffer(2, 4)}, {"y": wrong})


def test_threads_are_set_and_do_not_spin() -> None:
    options = OrtCpuBackend(num_threads=3)._options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    # Products of int8 saturate without it where there is no VNNI, which no test machine shows.
    assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[cpu\]"'):
        open_backend("ort-cpu")


def test_auto_takes_the_first_that_opens_and_tells_what_it_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(OrtCpuBackend):
        def __init__(self, num_threads: int | None = None) -> None:
            raise BackendError("no such device")

    assert open_backend("auto").name == "ort-cpu"
    monkeypatch.setitem(select._BACKENDS, "broken", Broken)
    monkeypatch.setattr(select, "AUTO_ORDER", ("broken", "ort-cpu"))
    with caplog.at_level(logging.INFO, "refsam_trt"):
        assert open_backend("auto").name == "ort-cpu"
    assert caplog.messages == ["backend broken skipped: no such device"]

    with pytest.raises(BackendError, match=r"^no such device$"):
        open_backend("broken")
    monkeypatch.setattr(select, "AUTO_ORDER", ("broken",))
    with pytest.raises(BackendError, match=r"no backend works .*: broken \(no such device\)"):
        open_backend("auto")


@pytest.mark.parametrize("name", ["abacus", ""])
def test_a_backend_this_version_lacks_is_refused(name: str) -> None:
    expected = (
        f"this version has no backend '{name}'; it has: auto, ort-cpu, ort-cuda, "
        "openvino-cpu, openvino-gpu, openvino-npu, tensorrt, tensorrt-rtx"
    )
    with pytest.raises(BackendError, match=f"^{expected}$"):
        open_backend(name)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_backends_that_run_plans_ask_for_them(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_backend(name)
    assert str(refused.value) == (
        f"backend {name} runs plans, and none were given: refsam-build BUNDLE --backend {name} "
        "--precision fp16 --output PLANS, then plans=PLANS (--plans PLANS)"
    )


def test_every_backend_states_its_precision() -> None:
    for name in ON_CPUS:
        if name == "openvino-cpu" and find_spec("openvino") is None:
            continue
        opened: Backend = open_backend(name)
        assert opened.name == name
        assert opened.precision_notes
        opened.close()


def test_activations_are_not_planned_a_second_time() -> None:
    """ONNX Runtime's memory pattern takes as much again from a graph's second run on."""
    assert OrtCpuBackend()._options().enable_mem_pattern is False
