"""OpenVINO: what it is told, what is read back, and what it must not get to run."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from refsam_trt.backends import cpu
from refsam_trt.backends.fake import FakeBackend
from refsam_trt.backends.openvino.backend import OpenVinoBackend
from refsam_trt.backends.select import open_backend
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import BackendError, InternalError, MissingExtraError, UsageError

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")

DEPTH = 64


@pytest.fixture
def backend() -> OpenVinoBackend:
    return OpenVinoBackend(num_threads=1)


def write(path: Path, text: str, inputs: str, **dims: tuple[int | str, ...]) -> GraphSpec:
    """Write a graph of float tensors; `dims` of each, those named in `inputs` being inputs."""
    onnx.save_model(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'), path)
    specs = {n: TensorSpec(n, "float32", shape, "frame") for n, shape in dims.items()}
    return GraphSpec(
        tuple(spec for name, spec in specs.items() if name in inputs),
        tuple(spec for name, spec in specs.items() if name not in inputs),
    )


def doubling(path: Path) -> GraphSpec:
    text = "double (float[B, 2] x) => (float[B, 2] y) { y = Add(x, x) }"
    return write(path, text, "x", x=("B", 2), y=("B", 2))


def quantised(path: Path) -> GraphSpec:
    """Write y = x @ w [DEPTH, DEPTH] in int8, with the largest weights there are."""
    arrays: dict[str, Any] = {
        "sx": np.float32(1),
        "zx": np.int8(0),
        "w": np.full((DEPTH, DEPTH), 127, np.int8),
        "sw": np.full(DEPTH, 1 / 127, np.float32),
        "zw": np.zeros(DEPTH, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=1),
        helper.make_node("MatMul", ["dx", "dw"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 16, DEPTH]) for n in ("x", "y")
    )
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "quantised", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path)
    x_spec, y_spec = (TensorSpec(n, "float32", ("B", 16, DEPTH), "frame") for n in ("x", "y"))
    return GraphSpec((x_spec,), (y_spec,))


def run(backend: OpenVinoBackend, path: Path, spec: GraphSpec, x: np.ndarray) -> np.ndarray:
    y = backend.empty(x.shape, "float32")
    backend.load(path, spec).context().run({"x": backend.upload(x)}, {"y": y})
    return backend.download(y)


def test_importing_it_tells_nobody(tmp_path: Path) -> None:
    """`import openvino` alone writes to the home folder, and calls home."""
    code = (
        "import sys; from refsam_trt.backends.select import open_backend as o; o('openvino-cpu');"
        "assert not [n for n in sys.modules if n.startswith('openvino_telemetry')];"
        "import openvino; openvino.convert_model"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "refsam-trt\[openvino\]"'):
        open_backend("openvino-cpu")
    assert "openvino_telemetry" not in sys.modules


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_and_precision_are_as_asked_for(tmp_path: Path, num_threads: int) -> None:
    backend = OpenVinoBackend(num_threads)
    graph: Any = backend.load(tmp_path / "g.onnx", doubling(tmp_path / "g.onnx"))
    options = {
        name: graph.compiled(True).get_property(name)
        for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    }
    assert options == {
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    hint = graph.compiled(True).get_property("INFERENCE_PRECISION_HINT")
    assert hint.get_type_name() == "f32"


def test_a_precision_that_is_not_the_one_asked_for_is_refused(backend: OpenVinoBackend) -> None:
    compiled = SimpleNamespace(get_property=lambda name: "bf16")
    expected = r"openvino-cpu: g\.onnx was compiled for bf16, not for f32; use another backend"
    with pytest.raises(BackendError, match=expected):
        backend._check_hint(Path("g.onnx"), compiled, "fp32")


def test_bf16_needs_a_cpu_that_has_it(backend: OpenVinoBackend) -> None:
    if backend._has_bf16:
        assert OpenVinoBackend(1, arithmetic="bf16").precision_notes.startswith("fp32 graphs in bf")
        return
    expected = (
        r"backend openvino-cpu cannot compute in bf16: this CPU has no instructions for it "
        r"\(OpenVINO lists FP32, .*\); leave the precision out, or take fp32"
    )
    with pytest.raises(BackendError, match=expected):
        open_backend("openvino-cpu", 1, None, "fp32", "bf16")
    assert "bf16: not on this CPU" in backend.precision_notes


def test_bf16_is_for_what_depends_on_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU turns it into fp32 after all, that is no bf16 either."""
    monkeypatch.setattr(OpenVinoBackend, "_capabilities", property(lambda self: ["FP32", "BF16"]))
    opened = OpenVinoBackend(1, arithmetic="bf16")
    asked: list[str] = []
    monkeypatch.setattr(opened, "_check_hint", lambda path, compiled, name: asked.append(name))
    spec = doubling(tmp_path / "g.onnx")
    opened.load(tmp_path / "g.onnx", spec)
    of_text = GraphSpec((TensorSpec("x", "float32", ("B", 2), "expression"),), spec.outputs)
    opened.load(tmp_path / "g.onnx", of_text)
    assert asked == ["bf16", "fp32"]
    with pytest.raises(BackendError, match=r"is quantised; bf16 is for fp32 graphs"):
        opened.load(tmp_path / "q.onnx", quantised(tmp_path / "q.onnx"))


def test_graphs_that_are_written_in_bf16_are_refused(
    tmp_path: Path, backend: OpenVinoBackend
) -> None:
    text = (
        "half (float[B, 2] x) => (float[B, 2] y) { h = Cast<to=16>(x) s = Add(h, h) "
        "y = Cast<to=1>(s) }"
    )
    spec = write(tmp_path / "g.onnx", text, "x", x=("B", 2), y=("B", 2))
    with pytest.raises(BackendError, match=r"g\.onnx is written in bf16, which would run in fp32;"):
        backend.load(tmp_path / "g.onnx", spec)
    for precision in ("bf16", "fp8"):
        with pytest.raises(BackendError, match=f"openvino-cpu cannot run {precision} graphs: "):
            open_backend("openvino-cpu", 1, None, precision)


def test_quantised_graphs_run_exactly_or_not_at_all(
    tmp_path: Path, backend: OpenVinoBackend, caplog: pytest.LogCaptureFixture
) -> None:
    spec = quantised(tmp_path / "q.onnx")
    x = np.full((1, 16, DEPTH), 127, np.float32)
    if {"avx512_vnni", "avx_vnni"} & cpu.features():
        assert backend._has_exact_int8
    if not backend._has_exact_int8:
        with pytest.raises(BackendError, match=r"q\.onnx: it is quantised, and .* overflow here"):
            run(backend, tmp_path / "q.onnx", spec, x)
        assert "int8: refused" in backend.precision_notes
        return
    with caplog.at_level(logging.INFO, "refsam_trt"):
        y = run(backend, tmp_path / "q.onnx", spec, x)
    np.testing.assert_allclose(y, 127 * DEPTH, rtol=1e-4)
    assert "int8: integer kernels" in backend.precision_notes
    assert caplog.messages == ["openvino-cpu: q.onnx multiplies in 1 i8"]


def test_what_is_refused_would_indeed_be_wrong(
    tmp_path: Path,
    backend: OpenVinoBackend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if backend._has_exact_int8:
        pytest.skip("this CPU adds up 8-bit products exactly")
    monkeypatch.setitem(backend.__dict__, "_has_exact_int8", True)
    x = np.full((1, 16, DEPTH), 127, np.float32)
    with caplog.at_level(logging.INFO, "refsam_trt"):
        y = run(backend, tmp_path / "q.onnx", quantised(tmp_path / "q.onnx"), x)
    assert np.abs(y - 127 * DEPTH).max() > DEPTH
    assert caplog.messages == ["openvino-cpu: q.onnx multiplies in 1 i8"]


def test_one_context_takes_other_sizes_from_call_to_call(
    tmp_path: Path, backend: OpenVinoBackend
) -> None:
    spec = doubling(tmp_path / "g.onnx")
    context = backend.load(tmp_path / "g.onnx", spec).context()
    for num_rows in (1, 5, 2, 5):
        x = np.random.default_rng(num_rows).standard_normal((num_rows, 2)).astype(np.float32)
        y: Any = backend.upload(np.full_like(x, np.nan))
        context.run({"x": backend.upload(x)}, {"y": y})
        np.testing.assert_array_equal(y.array, 2 * x)


def test_an_output_of_another_size_is_refused(tmp_path: Path, backend: OpenVinoBackend) -> None:
    """Smaller is the dangerous one: OpenVINO leaves the rest of the memory as it was."""
    text = "double (float[B, 2] x) => (float[C, 2] y) { y = Add(x, x) }"
    spec = write(tmp_path / "g.onnx", text, "x", x=("B", 2), y=("B+1", 2))
    context = backend.load(tmp_path / "g.onnx", spec).context()
    x, y = backend.empty((2, 2), "float32"), backend.empty((3, 2), "float32")
    with pytest.raises(BackendError, match=r"output 'y' is \(2, 2\), expected was \(3, 2\)"):
        context.run({"x": x}, {"y": y})
    text = "twice (float[B, 2] x) => (float[C, 2] y) { y = Concat<axis=0>(x, x) }"
    spec = write(tmp_path / "h.onnx", text, "x", x=("B", 2), y=("B", 2))
    context = backend.load(tmp_path / "h.onnx", spec).context()
    with pytest.raises(BackendError, match=r"openvino-cpu: graph h\.onnx failed: ") as refused:
        context.run({"x": x}, {"y": backend.empty((2, 2), "float32")})
    assert "\n" not in str(refused.value)
    assert ".cpp:" not in str(refused.value).partition("Could")[0]


def test_weights_beside_the_graph_are_read(tmp_path: Path, backend: OpenVinoBackend) -> None:
    weights = np.arange(512, dtype=np.float32).reshape(256, 2)
    text = "sum (float[256, 2] x) => (float[256, 2] y) { y = Add(x, w) }"
    spec = write(tmp_path / "g.onnx", text, "x", x=(256, 2), y=(256, 2))
    model = onnx.load_model(tmp_path / "g.onnx")
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save_model(
        model,
        tmp_path / "g.onnx",
        save_as_external_data=True,
        location="g.onnx.data",
        size_threshold=0,
    )
    y = run(backend, tmp_path / "g.onnx", spec, np.ones((256, 2), np.float32))
    np.testing.assert_array_equal(y, weights + 1)
    (tmp_path / "g.onnx.data").unlink()
    with pytest.raises(BackendError, match=r"openvino-cpu: cannot load .*g\.onnx: "):
        backend.load(tmp_path / "g.onnx", spec)


def test_buffers_of_another_device_are_refused(tmp_path: Path, backend: OpenVinoBackend) -> None:
    context = backend.load(tmp_path / "g.onnx", doubling(tmp_path / "g.onnx")).context()
    with pytest.raises(InternalError, match="backend openvino-cpu was given a buffer of device fa"):
        context.run(
            {"x": FakeBackend().empty((1, 2), "float32")}, {"y": backend.empty((1, 2), "float32")}
        )


@pytest.mark.parametrize(("name", "device"), [("openvino-gpu", "GPU"), ("openvino-npu", "NPU")])
def test_devices_that_are_not_there_are_refused(
    backend: OpenVinoBackend, name: str, device: str
) -> None:
    if device in str(backend._core.available_devices):
        pytest.skip(f"this machine has a {device}")
    expected = (
        f"backend {name}: OpenVINO has no {device} on this machine, only CPU; install the driver "
        "of the device, or use openvino-cpu"
    )
    with pytest.raises(BackendError, match=f"^{expected}$"):
        open_backend(name)
    with pytest.raises(UsageError, match=f"num_threads=2: .* computes on a {device} and has no"):
        open_backend(name, 2)


def test_no_other_backend_is_asked_for_bf16() -> None:
    with pytest.raises(InternalError, match="backend ort-cpu was asked to compute in bf16"):
        open_backend("ort-cpu", 1, None, "fp32", "bf16")
