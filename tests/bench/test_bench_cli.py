"""`refsam-bench parity` and `speed` as a user meets them: output and exit codes."""

import json
import shutil
from pathlib import Path

import fake_bundle
import pytest
from changed_bundles import changed_bundle
from commands_in_process import Commands
from exported import exported

import refsam_bench.speed.measure as speed
from refsam_bench.cli import main
from refsam_trt.bundle.open import open_bundle

SPEED = ("--frames", "2", "--warmup", "1", "--frame-size", "90", "160", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture(scope="module")
def other(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid bundle whose track tokens are not the reference's."""
    target = tmp_path_factory.mktemp("changed") / "bundle"
    return changed_bundle(
        bundle, target, "decoder_step", lambda name, _: "mlp.norm.bias" in name, lambda v: 2 * v
    )


@pytest.fixture(scope="module")
def without_weights(other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made from a file that is not in it."""
    target = Path(shutil.copytree(other, tmp_path_factory.mktemp("bare") / "bundle"))
    manifest = fake_bundle.read_manifest(target)
    source = {"role": "checkpoint", "name": "refsam.safetensors", "size_bytes": 9}
    sources = [{**source, "sha256": "0123456789abcdef" * 4}]
    manifest["weights"] |= {"sources": sources, "random_init_seed": None, "num_random_tensors": 0}
    fake_bundle.rewrite_manifest(target, manifest)
    return target


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "in_process", lambda run, side, request: 123.4)


class TestParity:
    def test_equal(self, call: Commands, bundle: Path) -> None:
        done = call(main, "parity", bundle, "--frames", "3")
        assert done.code == 0
        assert done.err.splitlines()[:2] == [
            "refsam-bench: loading the PyTorch weights",
            "refsam-bench: running the PyTorch reference over 3 frames",
        ]
        *rows, verdict = done.out.splitlines()
        assert verdict.startswith("parity passed: worst relative error ")
        tensors = [tuple(row.split()[:2]) for row in rows if " relative error " in row]
        (variant,) = open_bundle(bundle).manifest.variants.values()
        assert sorted(tensors) == sorted(
            (graph, tensor.name)
            for graph, entry in variant.graphs.items()
            for tensor in entry.spec.outputs
        )
        chain = [row.partition(":")[0] for row in rows if row.startswith("frame ")]
        assert chain == [
            "frame 0 expression 0",
            "frame 0 expression 1",
            "frame 1 expression 0",
            "frame 1 expression 1",
            "frame 2 expression 0",
            "frame 2 expression 1",
            "frame 2 expression 2",
        ]

    def test_equal_as_json(self, call: Commands, bundle: Path) -> None:
        done = call(main, "parity", bundle, "--frames", "3", "--json")
        assert done.code == 0
        assert done.out.count("\n") == 1
        figures = json.loads(done.out)
        assert figures["passed"] is True
        assert figures["bundle_id"] == open_bundle(bundle).bundle_id
        assert figures["variant"] == "fp32-augmented-optimised"
        assert figures["num_frames"] == 3

    def test_not_equal(self, call: Commands, other: Path) -> None:
        done = call(main, "parity", other, "--frames", "3")
        assert done.code == 1
        assert done.out.splitlines()[-1].startswith("parity FAILED: worst relative error ")
        assert "Traceback" not in done.err

    def test_not_equal_as_json(self, call: Commands, other: Path) -> None:
        done = call(main, "parity", other, "--frames", "3", "--json")
        assert done.code == 1
        figures = json.loads(done.out)
        assert figures["passed"] is False
        assert figures["graphs"]["decoder_step"]["next_track_token"] > 1e-3
        assert figures["graphs"]["decoder_step"]["low_res_logits"] <= 1e-4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["absent"], "absent: no such folder; give the folder of a bundle"),
            (["BUNDLE", "--variant", "int8"], "the bundle has no variant 'int8'; it has: fp32-"),
            (["BUNDLE", "--frames", "2"], "2 is not in the range x>=3"),
            ([], "Missing argument 'BUNDLE'"),
        ],
    )
    def test_unusable_input(
        self, arguments: list[str], message: str, call: Commands, bundle: Path
    ) -> None:
        words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
        done = call(main, "parity", *words)
        assert done.code == 2
        assert message in done.err
        assert done.out == ""
        assert "Traceback" not in done.err

    def test_a_damaged_bundle(self, call: Commands, other: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(other, tmp_path / "bundle"))
        data = next(copy.rglob("text_encoder.onnx.data"))
        content = bytearray(data.read_bytes())
        content[100] ^= 1
        data.write_bytes(content)
        done = call(main, "parity", copy)
        assert done.code == 2
        assert "text_encoder.onnx.data: SHA-256 " in done.message

    @pytest.mark.parametrize("verb", ["parity", "speed"])
    def test_weights_that_are_not_there(
        self, verb: str, call: Commands, without_weights: Path, tmp_path: Path
    ) -> None:
        done = call(main, verb, without_weights)
        assert done.code == 2
        assert "bundle: holds no PyTorch weights; give --source FOLDER with refsam." in done.message
        done = call(main, verb, without_weights, "--source", tmp_path)
        assert done.code == 2
        assert "refsam.safetensors (0123456789abcdef...) not found by SHA-256" in done.message


@pytest.mark.usefixtures("without_memory")
class TestSpeed:
    def test_table(self, call: Commands, bundle: Path) -> None:
        done = call(main, "speed", bundle, *SPEED)
        assert done.code == 0
        head, *rows = done.out.splitlines()
        assert head.split() == ["stage", "p50", "p90", "p95", "p99", "ms"]
        stages = ["preprocess", "upload", "image_encoder", "decoder_step", "download"]
        stages += ["postprocess", "engine", "reference"]
        assert [row.split()[0] for row in rows[:8]] == stages
        for row in rows[:8]:
            assert all(float(value) >= 0 for value in row.split()[1:5])
        assert all(row.endswith(" frames/s") for row in rows[6:8])
        assert rows[8].startswith("engine over reference: ")
        assert "2 expression(s); masks of both sides agree to an IoU of at least " in rows[8]
        assert rows[9] == "peak resident memory, MiB: engine 123, reference 123"
        assert rows[10].startswith("RANDOM WEIGHTS: ")
        assert "refsam-bench speed: 3/3" in done.err

    def test_json_without_the_reference(self, call: Commands, bundle: Path) -> None:
        done = call(main, "speed", bundle, *SPEED, "--no-reference", "--json")
        assert done.code == 0
        assert done.out.count("\n") == 1
        figures = json.loads(done.out)
        assert figures["reference"] is None
        assert figures["frame_hw"] == [90, 160]
        assert figures["engine"]["num_samples"] == 2

    def test_table_without_the_reference(self, call: Commands, bundle: Path) -> None:
        done = call(main, "speed", bundle, *SPEED, "--no-reference", "--expressions", "1")
        assert done.code == 0
        assert "reference" not in done.out
        assert "peak resident memory, MiB: engine 123\n" in done.out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["absent"], "absent: no such folder; give the folder of a bundle"),
            (["BUNDLE", "--backend", "abacus"], "this version has no backend 'abacus'; it has:"),
            (["BUNDLE", "--variant", "int8"], "the bundle has no variant 'int8'; it has: fp32-"),
            (["BUNDLE", "--frame-size", "0", "0"], "0 is not in the range 16<=x<=8192"),
            (["BUNDLE", "--frames", "1"], "1 is not in the range x>=2"),
            (["BUNDLE", "--expressions", "0"], "0 is not in the range x>=1"),
            (["BUNDLE", "--threads", "0"], "0 is not in the range x>=1"),
        ],
    )
    def test_unusable_input(
        self, arguments: list[str], message: str, call: Commands, bundle: Path
    ) -> None:
        words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
        done = call(main, "speed", *words)
        assert done.code == 2
        assert message in done.err
        assert done.out == ""
        assert "Traceback" not in done.err
