"""Every error of runtime, engines and GPU bench has a test of its message; some are here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import onnx
import pytest
from small_videos import moving_frames, write_video

from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import BackendError, InternalError, OutputError, VideoError
from refsam_trt.media import frames
from refsam_trt.result import polygons
from refsam_trt.result.writers import OverlayVideoWriter

TESTS = Path(__file__).parent
RUNTIME = TESTS.parent / "refsam_trt"
NUM_WORDS = 3


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()


def strings_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(words(node.value))


def raised(path: Path) -> Iterator[tuple[int, str, list[list[str]]]]:
    """Yield line, class and the literal parts, in words, of every error that a file makes."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if not node.func.id.endswith("Error") or not node.args:
                continue
            parts = [words(text) for text in strings_of(node.args[0])]
            if node.func.id == "MissingExtraError" and parts:
                parts = [["refsam", "trt", *parts[0]]]  # as in its `pip install` line
            yield node.lineno, node.func.id, [part for part in parts if part]


def is_told(parts: list[list[str]], told: str) -> bool:
    """Whether a test holds some words in a row of one of the parts, or all of a shorter part."""
    for part in parts:
        size = min(len(part), NUM_WORDS)
        for start in range(len(part) - size + 1):
            run = " ".join(part[start : start + size])
            if len(run) > 8 and f" {run} " in told:
                return True
    return False


def joined(parts: list[list[str]]) -> str:
    return " | ".join(" ".join(part) for part in parts)


def told_by_tests() -> str:
    found = (strings_of(ast.parse(path.read_bytes())) for path in TESTS.rglob("*.py"))
    return "\n".join(f" {text} " for strings in found for text in strings)


# Too few words in a row are literal; file, the literal words -> the test that tells them.
EXEMPT: dict[tuple[str, str], str] = {
    (
        "backends/base.py",
        "tensor | expected | found",
    ): "test_backends.py: tensor 'y': expected float32",
    ("backends/base.py", "of | into"): "test_backends.py: upload of float32",
    (
        "backends/base.py",
        "graph called with | s | expected",
    ): "test_backends.py: called with inputs",
    ("backends/ort.py", "graph | failed"): "test_error_texts.py: ort-cpu: graph g",
    (
        "backends/openvino/backend.py",
        "graph | failed",
    ): r"test_openvino.py: openvino-cpu: graph h",
    (
        "contract/refsam.py",
        "variant | graph | has",
    ): "test_bundle_contents.py: graph extra; refsam has image_encoder",
    (
        "contract/refsam.py",
        "variant | split | expected | or",
    ): "test_bundle_contents.py: split 'half', expected optimised or",
    (
        "contract/check.py",
        "limits | is | 1 to | expected",
    ): "test_bundle_contents.py: limits.max_words is -1, 1 to 4096 expected",
    (
        "contract/specs.py",
        "expected",
    ): "test_bundle_contents.py: expected image_base float32 [1, 256",
    ("bundle/sealed.py", "missing"): "test_bundle.py: manifest.sha256: missing; copy",
    (
        "bundle/sealed.py",
        "not json",
    ): "test_bundle.py: manifest.json: not JSON (JSON is malformed",
    (
        "result/rle.py",
        "rle counts found | expected | the size given",
    ): "test_rle.py: runs of 5 pixels together, expected 6",
    (
        "session/state_file.py",
        "over | bytes",
    ): "test_session_state.py: not a session state (over 10 bytes)",
    ("text/disk.py", "holds | expected"): "test_text_disk.py: holds .*float64.*, expected ",
    ("result/writers.py", "found | masks of | expected | of"): "test_writers.py: found 1 masks of",
}


@pytest.mark.parametrize("folder", ["engines/refsam_engines", "bench/refsam_bench/gpu"])
def test_every_error_around_plans_is_told_by_a_test(folder: str):
    told = told_by_tests()
    paths = sorted((TESTS.parent / folder).rglob("*.py"))
    assert paths
    silent = [
        f"{path.name}:{line} {name} {parts}"
        for path in paths
        for line, name, parts in raised(path)
        if parts and not is_told(parts, told)
    ]
    assert silent == []


def test_every_error_of_the_runtime_is_told_by_a_test():
    told = told_by_tests()
    silent = [
        f"{path.relative_to(RUNTIME)}:{line} {name} {parts}"
        for path in sorted(RUNTIME.rglob("*.py"))
        for line, name, parts in raised(path)
        if parts  # else all its words are another error's
        and (path.relative_to(RUNTIME).as_posix(), joined(parts)) not in EXEMPT
        and not is_told(parts, told)
    ]
    assert silent == []


@pytest.mark.parametrize(("file", "literals"), EXEMPT)
def test_exemptions_are_of_errors_that_there_are(file: str, literals: str):
    assert literals in {joined(parts) for _, _, parts in raised(RUNTIME / file)}
    test, _, told = EXEMPT[file, literals].partition(": ")
    (path,) = TESTS.rglob(test)
    assert told in path.read_text()


def test_an_error_that_no_test_tells_is_found(tmp_path: Path):
    path = tmp_path / "a.py"
    path.write_text('raise UsageError(f"{x}: nobody has " "ever told this; do so")\n')
    ((line, name, parts),) = raised(path)
    assert (line, name) == (1, "UsageError")
    assert not is_told(parts, " something else ")
    assert is_told(parts, "\n has ever told \n") or is_told(parts, " nobody has ever \n")


def test_a_graph_that_fails_is_named(tmp_path: Path):
    """A shape that only running the graph can refuse."""
    text = (
        '<ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[2, 2] y) '
        "<int64[2] s = {2, 2}> { y = Reshape(x, s) }"
    )
    onnx.save_model(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    x = TensorSpec("x", "float32", ("B", 4), "frame")
    y = TensorSpec("y", "float32", (2, 2), "frame")
    backend = OrtCpuBackend(num_threads=1)
    context = backend.load(tmp_path / "g.onnx", GraphSpec((x,), (y,))).context()
    outputs = {"y": backend.empty((2, 2), "float32")}
    context.run({"x": backend.upload(np.zeros((1, 4), np.float32))}, outputs)
    with pytest.raises(BackendError, match=r"^ort-cpu: graph g\.onnx failed: .*Reshape"):
        context.run({"x": backend.upload(np.zeros((3, 4), np.float32))}, outputs)


def test_tensors_and_sizes_that_a_contract_lacks():
    spec = TensorSpec("x", "float32", ("B", "N+1"), "frame")
    with pytest.raises(InternalError, match=r"^no output named 'y'$"):
        GraphSpec((), (spec,)).output("y")
    with pytest.raises(InternalError, match=r"^no size given for dim 'N\+1'; known: \['B'\]$"):
        spec.shape({"B": 1})


def test_a_video_without_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_video(tmp_path / "clip.mp4", moving_frames(2))
    monkeypatch.setattr(frames._Video, "_decoded", lambda self: (frame for frame in ()))
    with pytest.raises(VideoError, match=r"clip\.mp4: found no frame in the video; it is empty or"):
        frames.open_frames(path)


def test_a_hole_without_a_part():
    far = np.array([[8, 8], [9, 8], [9, 9], [8, 9]])
    with pytest.raises(InternalError, match="a hole without a part around it"):
        polygons._owner([far], np.array([1, 1]))


def test_an_encoder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise av.InvalidDataError(1, "out of order")

    def encode_one() -> None:
        with OverlayVideoWriter(tmp_path / "v.mp4", 10, (32, 48)) as writer:
            monkeypatch.setattr(writer, "_stream", SimpleNamespace(encode=fail))
            writer.write(moving_frames(1)[0])

    with pytest.raises(OutputError, match=r"v\.mp4: the H\.264 encoder failed \(.*out of order"):
        encode_one()
    assert not list(tmp_path.iterdir())
