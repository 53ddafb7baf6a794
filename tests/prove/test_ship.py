"""From runs to a shipped bundle: two tiny runs, one after the other, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from commands_in_process import Commands
from exported import copied_files
from onnx import TensorProto, numpy_helper
from shipped_checks import check_record, check_runs_without_torch, check_weights
from tiny_training import write_recipe

from refsam_prove import demo
from refsam_prove import ship as ship_module
from refsam_prove.ship import ShipRequest, command, commands, ship
from refsam_train.cli import cli
from refsam_train.recipe import read_recipe
from refsam_train.run.publish import publish
from refsam_train.run.start import Sources
from refsam_train.run.train import RunRequest, train
from refsam_trt.bundle import shipped
from refsam_trt.bundle.open import open_bundle
from refsam_trt.bundle.write import write_bundle
from refsam_trt.errors import CheckpointError, OutputError, UsageError

TINY_BYTES = 28_000_000  # its decoder is wider than that of nano


@dataclass(frozen=True)
class Made:
    """Two runs and what was shipped of them."""

    request: ShipRequest
    record: dict[str, object]

    @property
    def bundle(self) -> Path:
        return self.request.models / "tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("ship")
    runs, sources = [], Sources()
    for name, steps in (("one", 1), ("two", 2)):
        folder = root / name
        folder.mkdir()
        recipe = write_recipe(folder, name=f'"{name}"')
        if name == "one":
            recipe.write_text(recipe.read_text().replace("attribute = 1\ntrack = 1", "size = 1"))
        run = folder / "run"
        train(recipe, RunRequest(sources, output=run, show_progress=False, max_steps=steps))
        (run / "log.jsonl").write_text(f'{{"step": {steps}}}\n')
        runs.append(run)
        weights = root / f"{name}.safetensors"
        publish(read_recipe(recipe), run / "checkpoint.safetensors", sources, weights)
        sources = Sources(checkpoint=weights)
    request = ShipRequest(tuple(runs), root / "models", root / "record" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship_module, "SHIPPED", ("tiny",))
        patch.setattr(ship_module, "MAX_BYTES", TINY_BYTES)
        return Made(request, ship(request, lambda line: None))


@pytest.fixture
def _tiny_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship_module, "SHIPPED", ("tiny",))


def test_what_ships_is_whole_and_has_its_record(made: Made, tmp_path: Path) -> None:
    check_record(made.bundle, made.request.record, TINY_BYTES)
    check_weights(made.bundle)
    published = made.request.models.parent / "two.safetensors"
    assert (made.bundle / "source.safetensors").read_bytes() == published.read_bytes()
    check_runs_without_torch(made.bundle, tmp_path)
    assert [path.name for path in made.request.models.iterdir()] == ["tiny"]
    assert sorted(path.name for path in made.request.record.iterdir()) == [
        "1-one.jsonl",
        "1-one.toml",
        "2-two.jsonl",
        "2-two.toml",
        "record.json",
    ]
    assert (made.request.record / "2-two.jsonl").read_text() == '{"step": 2}\n'
    assert json.loads((made.request.record / "record.json").read_text()) == made.record


def test_recorded_commands_are_understood(made: Made) -> None:
    runs = json.loads((made.request.record / "record.json").read_text())["runs"]
    lines = commands(runs, Path("train/nano"))
    assert lines == [
        "refsam-train train/nano/1-one.toml --output train/runs/1-one --max-steps 1",
        "refsam-train publish train/nano/1-one.toml train/runs/1-one/checkpoint.safetensors "
        "--output train/runs/1-one.safetensors",
        "refsam-train train/nano/2-two.toml --output train/runs/2-two --max-steps 2 "
        "--weights train/runs/1-one.safetensors",
        "PYTHONPATH=prove python -m refsam_prove.ship train/runs/1-one train/runs/2-two",
    ]
    for line in lines[:-1]:
        arguments = shlex.split(line)[1:]
        context = cli.make_context("refsam-train", list(arguments), allow_interspersed_args=False)
        name, sub, rest = cli.resolve_command(context, arguments)
        assert sub is not None
        sub.make_context(name, rest, parent=context)
    command.make_context("ship", shlex.split(lines[-1])[4:])


def test_the_graphs_compute_what_full_storage_would(made: Made) -> None:
    """Bit for bit: the casts of the stored weights, done here by hand."""
    path = next(made.bundle.rglob("text_encoder.onnx"))
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in stored]
    assert len(casts) > 10
    for node in casts:
        tensor = stored[node.input[0]]
        assert tensor.data_type == TensorProto.FLOAT16
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(wide, node.output[0]))
        model.graph.initializer.remove(tensor)
        model.graph.node.remove(node)
    inputs = {
        "input_ids": np.array([[5, 300, 1], [7, 1, 0]], np.int64),
        "attention_mask": np.array([[1, 1, 1], [1, 1, 0]], np.int64),
    }
    found, expected = (
        onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, inputs)
        for source in (str(path), model.SerializeToString())
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_demo_takes_the_shipped_weights(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "MODELS", made.request.models)
    monkeypatch.setattr(shipped, "SHIPPED", ("tiny",))
    monkeypatch.setattr(demo, "PRESET", "tiny")
    source = str(made.bundle / "source.safetensors")
    assert demo.weights() == ("--checkpoint", source, "--weight-storage", "fp16")


@pytest.mark.usefixtures("_tiny_ships")
def test_what_ships_can_be_continued(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run and later the next give what both at once give, record and all.

    Exports are stood in for: that equal weights give equal files is the exporter's to prove. The
    first run is only continued, so that any bundle with its weights inside will do.
    """
    monkeypatch.setattr(ship_module, "MAX_BYTES", TINY_BYTES)
    first, second = made.request.runs
    weights = [made.request.models.parent / f"{name}.safetensors" for name in ("one", "two")]
    published: list[bytes] = []

    def export(preset: str, source: Path, output: Path, report: object) -> str:
        published.append(source.read_bytes())
        opened = open_bundle(made.bundle)
        scratch = tmp_path / f"files-{len(published)}"
        files = copied_files(opened, list(opened.manifest.files), scratch)
        shutil.copyfile(source, files["source.safetensors"])
        manifest = msgspec.structs.replace(opened.manifest, files={})
        return write_bundle(output, manifest=manifest, files=files).bundle_id

    monkeypatch.setattr(ship_module, "_export", export)
    places = (tmp_path / "models", tmp_path / "record" / "tiny")
    ship(ShipRequest((first,), *places), lambda line: None)
    further = ShipRequest((second,), *places, overwrite=True, continued=True)
    record = ship(further, lambda line: None)
    assert published == [path.read_bytes() for path in weights]
    assert record == {**made.record, "commands": commands(record["runs"], places[1])}
    for found, expected in zip(places, (made.request.models, made.request.record), strict=True):
        files = {p.relative_to(expected): p for p in expected.rglob("*") if p.is_file()}
        assert {p.relative_to(found) for p in found.rglob("*") if p.is_file()} == set(files)
        for name, path in files.items():
            if name.name != "record.json":
                assert (found / name).read_bytes() == path.read_bytes(), name


@pytest.mark.usefixtures("_tiny_ships")
class TestRefused:
    @pytest.fixture(autouse=True)
    def _nothing_is_exported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ship_module, "_export", lambda *_: pytest.fail("work was done"))

    def refused(self, request: ShipRequest, error: type[Exception], message: str) -> None:
        before = sorted(request.models.rglob("*")) if request.models.exists() else []
        with pytest.raises(error, match=message):
            ship(request, lambda line: None)
        assert sorted(request.models.rglob("*")) == before if before else True

    def test_a_model_ships_already(self, made: Made) -> None:
        self.refused(made.request, OutputError, "models/tiny: exists already; choose another")

    def test_another_preset(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ship_module, "SHIPPED", ("nano",))
        self.refused(made.request, UsageError, "preset tiny: models that ship are nano")

    @pytest.mark.parametrize("name", ["log.jsonl", "recipe.toml"])
    def test_a_run_that_is_not_whole(self, made: Made, tmp_path: Path, name: str) -> None:
        shutil.copytree(made.request.runs[-1], tmp_path / "run")
        (tmp_path / "run" / name).unlink()
        runs = (made.request.runs[0], tmp_path / "run")
        request = replace(made.request, models=tmp_path / "m", runs=runs)
        self.refused(request, CheckpointError, f"run: no {name} here; give the folder of a run")

    def test_another_recipe(self, made: Made, tmp_path: Path) -> None:
        shutil.copytree(made.request.runs[-1], tmp_path / "run")
        shutil.copy(made.request.runs[0] / "recipe.toml", tmp_path / "run")
        request = replace(made.request, models=tmp_path / "m", runs=(tmp_path / "run",))
        self.refused(request, CheckpointError, "trained with another recipe .* than one as given")

    def test_nothing_to_continue(self, made: Made, tmp_path: Path) -> None:
        request = replace(made.request, models=tmp_path / "m", overwrite=True, continued=True)
        message = r"m/tiny, .*record\.json: no model with its record to continue; give all runs"
        self.refused(request, CheckpointError, message)

    def test_a_record_of_another_model(self, made: Made, tmp_path: Path) -> None:
        shutil.copytree(made.request.record, tmp_path / "record")
        told = json.loads((tmp_path / "record" / "record.json").read_text())
        told["bundle_id"] = "0" * 64
        (tmp_path / "record" / "record.json").write_text(json.dumps(told))
        request = replace(made.request, record=tmp_path / "record", overwrite=True, continued=True)
        message = r"record\.json: speaks of bundle 000000000000, .*models/tiny is \w{12}; give all"
        self.refused(request, CheckpointError, message)

    def test_a_record_of_something_else(self, made: Made, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter").touch()
        request = replace(made.request, models=tmp_path / "m", record=tmp_path / "mine")
        self.refused(request, OutputError, r"mine: holds no record\.json, so it is not overwritten")


@pytest.mark.usefixtures("_tiny_ships")
def test_the_command_refuses_what_is_too_large(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def copy(preset: str, weights: Path, output: Path, report: object) -> str:
        shutil.copytree(made.bundle, output)
        return "id"

    monkeypatch.setattr(ship_module, "_export", copy)
    monkeypatch.setattr(ship_module, "MAX_BYTES", 1000)
    places = ("--models", tmp_path / "models", "--record", tmp_path / "record")
    call = Commands(monkeypatch, capfd)
    done = call(ship_module.main, *made.request.runs, *places)
    assert done.code == 2
    assert "models/tiny: " in done.message
    assert "bytes, at most 1000 are shipped" in done.message
    assert list((tmp_path / "models").iterdir()) == []
    monkeypatch.setattr(ship_module, "MAX_BYTES", 10**9)
    done = call(ship_module.main, *made.request.runs, *places)
    assert done.code == 0, done.err
    assert done.out.endswith(f"bundle id id\nrecord: {tmp_path / 'record'}\n")
