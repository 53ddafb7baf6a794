"""`refsam-export` as a user meets it: output, exit codes, and nothing left behind.

Exporting takes its time and is `test_exporter`'s subject; here `export_graph` copies the graphs of
a bundle exported before, and everything else is real.
"""

import copy
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from changed_bundles import change_graph
from checkpoint_files import sam_tensors, save_sam
from commands_in_process import Commands
from exported import exported
from reference_models import loaded

import refsam_export.exporter as exporter
import refsam_export.model_stages as model_stages
import refsam_export.variants as variants
from refsam_export.cli import main
from refsam_export.exporter import export_bundle
from refsam_export.files.work_folder import work_path
from refsam_export.onnx.export import export_graph, node_types
from refsam_export.parity.figures import Parity
from refsam_export.refsam.checkpoint import LoadedModel, load_model
from refsam_export.request import ExportRequest
from refsam_trt.bundle.open import open_bundle
from refsam_trt.command.ending import Terminated
from refsam_trt.errors import (
    CheckpointError,
    InternalError,
    OutputError,
    ParityError,
    UsageError,
)

TINY = ("--backbone", "tiny", "--random-init", "0", "--parity-frames", "3")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder that bundles are written into: what is in it at the end was left there."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def quick(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graphs from `bundle`."""

    def copy(module: object, spec: object, path: Path, *_: object) -> dict[str, int]:
        source = bundle / "graphs" / "fp32-augmented-optimised" / path.name
        for suffix in ("", ".data"):
            shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
        types = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
        return {name: types.count(name) for name in set(types)}

    monkeypatch.setattr(variants, "export_graph", copy)


@pytest.mark.usefixtures("quick")
def test_output_for_people(call: Commands, place: Path) -> None:
    target = place / "bundle"
    done = call(main, *TINY, "--output", target)
    assert done.code == 0
    assert done.err.splitlines()[:5] == [
        "refsam-export: loading weights for tiny",
        "refsam-export: exporting image_encoder in fp32",
        "refsam-export: exporting text_encoder in fp32",
        "refsam-export: exporting decoder_step in fp32",
        "refsam-export: running the PyTorch reference over 3 frames",
    ]
    assert "refsam-export: parity passed: worst relative error " in done.message
    num = open_bundle(target).manifest.weights.num_random_tensors
    lines = done.out.splitlines()
    assert lines[0].startswith(f"RANDOM WEIGHTS: in no file were {num} (dense_conv.bias, ")
    assert lines[0].endswith(
        ", ...) tensors; they come from --random-init 0, so masks of this bundle mean nothing"
    )
    assert lines[1:] == [f"bundle: {target}", f"bundle id: {open_bundle(target).bundle_id}"]
    assert list(place.iterdir()) == [target]


@pytest.mark.usefixtures("quick")
def test_output_for_programs(call: Commands, place: Path, tmp_path: Path) -> None:
    """One JSON object on standard output and nothing else."""
    target, sam = place / "bundle", save_sam(tmp_path / "sam.pth", model_tensors())
    done = call(main, *TINY, "--sam-checkpoint", sam, "--output", target, "--json")
    assert done.code == 0
    assert done.out.count("\n") == 1
    record = json.loads(done.out)
    opened = open_bundle(target)
    assert record["bundle"] == str(target)
    assert record["bundle_id"] == opened.bundle_id
    assert record["parity"] == opened.manifest.parity
    assert record["loaded"]["random_init_seed"] == 0
    assert record["loaded"]["num_missing"] == len(record["loaded"]["missing"])
    (file,) = record["loaded"]["files"]
    assert (file["name"], file["kind"], file["unexpected"]) == (str(sam), "SAM", ["extra.weight"])
    weights = opened.manifest.weights
    assert weights.num_random_tensors == len(record["loaded"]["missing"])
    assert [source.role for source in weights.sources] == ["sam_checkpoint"]


def model_tensors() -> dict[str, Any]:
    """SAM's part of the model that `quick` exports, and one key too many."""
    tensors = sam_tensors("tiny", seed=0)
    return tensors | {"extra.weight": tensors["mask_decoder.iou_token.weight"]}


@pytest.mark.usefixtures("quick")
def test_loaded_and_unexpected_keys_are_told(call: Commands, place: Path, tmp_path: Path) -> None:
    sam = save_sam(tmp_path / "sam.pth", model_tensors())
    done = call(main, *TINY, "--sam-checkpoint", sam, "--output", place / "bundle")
    num = len(load_model("tiny", sam_checkpoint=sam, random_init=0).missing)
    total = len(loaded("tiny").missing)
    assert done.out.splitlines()[0] == (
        f"{sam}: SAM weights, {total - num} tensors loaded, 1 (extra.weight) unexpected"
    )
    assert f"RANDOM WEIGHTS: in no file were {num} (dense_conv.bias, " in done.out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("backbone", "options", "is_included"),
    [
        ("tiny", [], True),
        ("T_i_n_y", [], True),
        ("tiny", ["--no-include-source"], False),
    ],
)
def test_source_is_included_for_small_presets(
    backbone: str, options: list[str], is_included: bool, call: Commands, place: Path
) -> None:
    arguments = ["--backbone", backbone, *TINY[2:], *options, "--output", place / "bundle"]
    assert call(main, *arguments).code == 0
    assert (place / "bundle" / "source.safetensors").exists() == is_included


@pytest.mark.usefixtures("quick")
def test_the_same_export_gives_the_same_bundle(call: Commands, place: Path) -> None:
    ids = []
    for name in ("one", "two"):
        assert call(main, *TINY, "--output", place / name).code == 0
        ids.append(open_bundle(place / name).bundle_id)
    assert ids[0] == ids[1]


@pytest.mark.usefixtures("quick")
def test_overwriting_replaces_a_bundle(call: Commands, place: Path) -> None:
    target = place / "bundle"
    assert call(main, *TINY, "--output", target).code == 0
    first = open_bundle(target).bundle_id
    done = call(main, *TINY[:4], "--parity-frames", "4", "--output", target, "--overwrite")
    assert done.code == 0
    assert open_bundle(target).bundle_id != first
    assert list(place.iterdir()) == [target]


class TestParityFails:
    @pytest.fixture
    def spoiled(self, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """The track token's last bias doubles on its way into the graph."""
        copy = variants.export_graph

        def spoil(module: Any, spec: Any, path: Path, *rest: Any) -> dict[str, int]:
            types = copy(module, spec, path, *rest)
            if path.name == "decoder_step.onnx":
                change_graph(path, lambda name, _: name.endswith("mlp.norm.bias"), lambda v: 2 * v)
            return types

        monkeypatch.setattr(variants, "export_graph", spoil)

    @pytest.mark.usefixtures("spoiled")
    def test_exit_code_1_and_no_bundle(self, call: Commands, place: Path) -> None:
        done = call(main, *TINY, "--output", place / "bundle", "--json")
        assert done.code == 1
        assert done.out == ""
        assert "refsam-export: parity FAILED: worst relative error " in done.message
        assert done.message.endswith("; no bundle was written")
        assert list(place.iterdir()) == []

    @pytest.mark.usefixtures("spoiled")
    def test_the_bundle_before_stays(self, bundle: Path, call: Commands, place: Path) -> None:
        target = Path(shutil.copytree(bundle, place / "bundle"))
        assert call(main, *TINY, "--output", target, "--overwrite").code == 1
        assert open_bundle(target).bundle_id == open_bundle(bundle).bundle_id
        assert list(place.iterdir()) == [target]

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("change", [{"max_graph_error": 1.01e-4}, {"min_mask_iou": 0.9989}])
    def test_figures_decide(
        self, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: Path
    ) -> None:
        in_process = exporter.in_process
        monkeypatch.setattr(
            exporter,
            "in_process",
            lambda *call, **options: dataclasses.replace(in_process(*call, **options), **change),
        )
        with pytest.raises(ParityError, match=r"parity FAILED: .*; no bundle was written"):
            export_bundle(request(place / "bundle"), lambda line: None)
        assert list(place.iterdir()) == []

    @pytest.mark.usefixtures("quick")
    def test_a_comparison_that_breaks_down_is_a_bug(
        self, monkeypatch: pytest.MonkeyPatch, place: Path
    ) -> None:
        monkeypatch.setattr(model_stages, "write_reference", touch)
        with pytest.raises(InternalError, match=r"in a process of its own:\nTraceback"):
            export_bundle(request(place / "bundle"), lambda line: None)
        assert list(place.iterdir()) == [work_path(place / "bundle")]


def own_model() -> LoadedModel:
    """Return a model that may be given up: an export does not leave its own whole."""
    shared = loaded("tiny")
    return dataclasses.replace(shared, model=copy.deepcopy(shared.model))


def touch(*arguments: Any, **_: Any) -> None:
    """Write a reference of nothing."""
    for name in ("reference.safetensors", "reference.json"):
        arguments[3].joinpath(name).touch()


def request(output: Path, **changes: Any) -> ExportRequest:
    return ExportRequest("tiny", output, random_init=0, parity_frames=3, **changes)


STAGES = ("load_model", "export_graph", "write_reference", "in_process", "write_bundle")


@pytest.mark.usefixtures("quicker")
class TestInterrupted:
    @pytest.fixture
    def quicker(self, quick: None, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take models from memory and figures from `bundle`: only the files are real."""
        (figures,) = open_bundle(bundle).manifest.parity.values()

        monkeypatch.setattr(model_stages, "load_model", lambda *_, **__: own_model())
        monkeypatch.setattr(model_stages, "write_reference", touch)
        parity = msgspec.convert(figures, Parity)
        monkeypatch.setattr(exporter, "in_process", lambda *_, **__: parity)

    @pytest.fixture(params=STAGES)
    def stage(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (KeyboardInterrupt(), 130, "refsam-export: interrupted"),
            (Terminated(), 143, "refsam-export: terminated"),
            (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left: [Errno 28]"),
        ],
        ids=["Ctrl-C", "SIGTERM", "full disk"],
    )
    def test_what_is_finished_is_kept_and_gone_on_from(
        self,
        stage: str,
        error: BaseException,
        code: int,
        message: str,
        call: Commands,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        target = place / "bundle"
        with monkeypatch.context() as context:
            context.setattr(home(stage), stage, at_last_call(stage, error))
            done = call(main, *TINY, "--output", target)
        assert done.code == code
        assert message in done.message
        assert "Traceback" not in done.err
        kept = [] if stage == "load_model" else [work_path(target)]
        assert list(place.iterdir()) == kept
        calls = counted(monkeypatch, "export_graph")
        done = call(main, *TINY, "--output", target, "--resume")
        assert done.code == 0
        assert len(calls) == {"load_model": 3, "export_graph": 1}.get(stage, 0)
        assert ("going on after" in done.err) is bool(kept)
        assert list(place.iterdir()) == [target]

    def test_a_resumed_bundle_is_the_one_of_an_export_without_a_break(
        self, call: Commands, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert call(main, *TINY, "--output", place / "whole").code == 0
        with monkeypatch.context() as context:
            context.setattr(exporter, "in_process", at_last_call("in_process", Terminated()))
            assert call(main, *TINY, "--output", place / "bundle").code == 143
        monkeypatch.setattr(model_stages, "load_model", lambda *_, **__: pytest.fail("loaded"))
        assert call(main, *TINY, "--output", place / "bundle", "--resume").code == 0
        ids = {open_bundle(place / name).bundle_id for name in ("whole", "bundle")}
        assert len(ids) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--attention", "bias"], "--attention was 'augmented' and is 'bias'"),
            (["--parity-frames", "4"], "--parity-frames was 3 and is 4"),
            (["--random-init", "1"], "--random-init was 0 and is 1"),
            (["--text-encoder", "t5-small"], "--text-encoder was a folder or none and is t5-small"),
        ],
    )
    def test_another_request_does_not_go_on(
        self,
        options: list[str],
        message: str,
        call: Commands,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as context:
            context.setattr(exporter, "in_process", at_last_call("in_process", Terminated()))
            assert call(main, *TINY, "--output", place / "bundle").code == 143
        done = call(main, *TINY, *options, "--output", place / "bundle", "--resume")
        assert done.code == 2
        assert message in done.message
        assert "Ask for the same, or leave --resume out to begin anew" in done.message

    def test_other_contents_of_a_file_do_not_go_on(
        self, call: Commands, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = tmp_path / "words.txt"
        arguments = (*TINY, "--expressions", words, "--output", place / "bundle")
        words.write_text("a dog\n")
        with monkeypatch.context() as context:
            context.setattr(exporter, "in_process", at_last_call("in_process", Terminated()))
            assert call(main, *arguments).code == 143
        words.write_text("a cat\n")
        done = call(main, *arguments, "--resume")
        assert done.code == 2
        assert "expressions 1 (words.txt) was " in done.message

    def test_a_bug_of_ours_is_a_traceback(
        self, stage: str, call: Commands, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(home(stage), stage, at_last_call(stage, KeyError("oops")))
        monkeypatch.setattr(sys, "argv", ["refsam-export", *TINY, "--output", str(place / "b")])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(KeyError, match="oops"):
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        assert [path for path in place.iterdir() if path.name[0] != "."] == []


def home(stage: str) -> Any:
    """Return the module that a stage is called from."""
    if stage == "export_graph":
        return variants
    return exporter if hasattr(exporter, stage) else model_stages


def counted(monkeypatch: pytest.MonkeyPatch, stage: str) -> list[None]:
    """Return a list that gets an item for every call of a stage."""
    calls: list[None] = []
    real = getattr(home(stage), stage)

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return real(*arguments, **options)

    monkeypatch.setattr(home(stage), stage, count)
    return calls


def at_last_call(stage: str, error: BaseException) -> Callable[..., Any]:
    """Fail when a stage runs for the last time: the third graph, the final bundle."""
    real, left = getattr(home(stage), stage), {"export_graph": 3, "write_bundle": 2}.get(stage, 1)

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return real(*arguments, **options)

    return fail


class TestFullDisk:
    """Files may not grow beyond a size: the nearest to a full disk that needs no rights."""

    LIMIT_BYTES = 1_000_000

    def limited(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.LIMIT_BYTES, before[1]))
            try:
                return real(*arguments, **options)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return run

    def refused(self, call: Commands, place: Path) -> str:
        done = call(main, *TINY, "--output", place / "bundle")
        assert done.code == 2
        assert "Traceback" not in done.err
        assert set(place.iterdir()) <= {work_path(place / "bundle")}
        return done.message

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("stage", ["save_source", "write_reference"])
    def test_while_tensors_are_written(
        self, stage: str, call: Commands, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_stages, stage, self.limited(getattr(model_stages, stage)))
        assert "safetensors: cannot be written (" in self.refused(call, place)

    @pytest.mark.usefixtures("quick")
    def test_while_a_graph_is_written(
        self, call: Commands, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real export of the quickest graph."""
        quick = variants.export_graph

        def only_text(module: Any, spec: Any, path: Path, *rest: Any) -> dict[str, int]:
            real = export_graph if path.stem == "text_encoder" else quick
            return real(module, spec, path, *rest)

        monkeypatch.setattr(variants, "export_graph", self.limited(only_text))
        assert "no space left: [Errno 27] File too large" in self.refused(call, place)


class TestRefusedAtTheDoor:
    @pytest.fixture(autouse=True)
    def _nothing_is_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(variants, "export_graph", lambda *_: pytest.fail("work was done"))

    @pytest.fixture
    def never_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            model_stages, "load_model", lambda *_, **__: pytest.fail("weights loaded")
        )

    @pytest.mark.usefixtures("never_loaded")
    def test_an_existing_output(self, call: Commands, place: Path) -> None:
        (place / "bundle").mkdir()
        done = call(main, *TINY, "--output", place / "bundle")
        assert done.code == 2
        assert (
            f"{place / 'bundle'}: exists already; choose another name, or ask to replace"
            in done.message
        )

    @pytest.mark.usefixtures("never_loaded")
    def test_overwriting_what_is_no_bundle(self, call: Commands, place: Path) -> None:
        (place / "photos").mkdir()
        (place / "photos" / "cat.jpg").touch()
        done = call(main, *TINY, "--output", place / "photos", "--overwrite")
        assert done.code == 2
        assert "photos: holds no manifest.json, so it is not overwritten;" in done.message
        assert (place / "photos" / "cat.jpg").exists()

    @pytest.mark.usefixtures("never_loaded")
    @pytest.mark.parametrize("kind", ["file", "link"])
    def test_an_output_that_is_no_folder(self, kind: str, call: Commands, place: Path) -> None:
        target = place / "bundle"
        if kind == "file":
            target.touch()
        else:
            target.symlink_to(place / "elsewhere")
        done = call(main, *TINY, "--output", target, "--overwrite")
        assert done.code == 2
        assert "bundle: found a file or a link, expected a folder or nothing" in done.message

    @pytest.mark.usefixtures("never_loaded")
    def test_an_output_in_a_folder_that_is_not_there(self, place: Path) -> None:
        with pytest.raises(OutputError, match="missing does not exist; create it first"):
            export_bundle(request(place / "missing" / "bundle"), lambda line: None)
        assert list(place.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--backbone", "huge", "--random-init", "0"], "no preset named 'huge'; choose one of"),
            (["--backbone", "tiny"], "tensors are in none of the given files: dense_conv.bias, "),
            (["--backbone", "tiny", "--random-init", "-1"], "-1 is not in the range 0<=x<="),
            (["--backbone", "tiny", "--random-init", "x"], "'x' is not a valid integer"),
            (["--random-init", "0"], "Missing option '--backbone'"),
            ([*TINY, "--parity-frames", "2"], "2 is not in the range x>=3"),
            ([*TINY, "--casing", "upper"], "'upper' is not one of 'lower', 'keep'"),
            ([*TINY, "--downscale-short-side", "0"], "'0' is neither 'none' nor a number of pixel"),
            ([*TINY, "--split", "half"], "'half' is not one of 'optimised', 'baseline'"),
            ([*TINY, "--checkpoint", "absent.safetensors"], "absent.safetensors: no such file"),
            ([*TINY, "--sam-checkpoint", "absent.pth"], "absent.pth: no such file"),
            (
                [*TINY, "--weight-storage", "fp16"],
                " holds values that fp16 cannot hold exactly (",
            ),
            ([*TINY, "--weight-storage", "int4"], "'int4' is not one of 'fp32', 'fp16'"),
            ([*TINY, "--text-encoder", "absent"], "absent: no such folder; --text-encoder takes"),
        ],
    )
    def test_requests_that_cannot_be_met(
        self, arguments: list[str], message: str, call: Commands, place: Path
    ) -> None:
        done = call(main, *arguments, "--output", place / "bundle")
        assert done.code == 2
        assert message in done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert list(place.iterdir()) == []

    def test_a_checkpoint_of_another_preset(
        self, call: Commands, place: Path, tmp_path: Path
    ) -> None:
        sam = save_sam(tmp_path / "sam.pth")
        arguments = ("--backbone", "nano", "--random-init", "0", "--sam-checkpoint", sam)
        done = call(main, *arguments, "--output", place / "bundle")
        assert done.code == 2
        assert "preset nano expects" in done.message
        assert list(place.iterdir()) == []

    def test_an_attention_form_that_does_not_exist(self, place: Path) -> None:
        with pytest.raises(UsageError, match="no attention form 'flash'; choose one of"):
            export_bundle(request(place / "bundle", attention="flash"), lambda line: None)
        assert list(place.iterdir()) == []


def test_a_real_signal_ends_a_real_export(place: Path) -> None:
    script = "from refsam_export.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script, *TINY, "--output", str(place / "bundle")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("exporting image_encoder" in line for line in lines)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert out == ""
    assert err.strip() == "refsam-export: terminated"
    assert list(place.iterdir()) == []


def test_graphs_count_nested_nodes() -> None:
    """`node_types` of a model with a sub-graph: what hides in one is found."""
    import onnx_ir
    from onnx import parser

    text = """<ir_version: 10, opset_import: ["" : 20]>
    nested (bool[1] go, float[2] x) => (float[2] y) {
        y = If(go) <then_branch = yes () => (float[2] a) { a = Relu(x) },
                    else_branch = no () => (float[2] b) { b = Neg(x) }>
    }"""
    found = node_types(onnx_ir.from_proto(parser.parse_model(text)))
    assert found == {"If": 1, "Neg": 1, "Relu": 1}


# What an attention's scores come from, right before the softmax (refsam_export.refsam.attention).
PRODUCER_OF_SCORES = {"augmented": "MatMul", "bias": "Add", "reference": "Reshape"}


@pytest.mark.parametrize("form", PRODUCER_OF_SCORES)
def test_the_attention_form_that_is_asked_for_is_exported(
    form: str, call: Commands, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[onnx.GraphProto] = []

    def export_only_the_first(
        module: Any, spec: Any, path: Path, limits: Any, storage: Any
    ) -> dict[str, int]:
        export_graph(module, spec, path, limits, storage)
        graphs.append(onnx.load(path).graph)
        raise CheckpointError(f"{path.stem} is enough")

    monkeypatch.setattr(model_stages, "load_model", lambda *_, **__: own_model())
    monkeypatch.setattr(variants, "export_graph", export_only_the_first)
    done = call(main, *TINY, "--attention", form, "--output", place / "bundle")
    assert done.message == "refsam-export: image_encoder is enough"
    (graph,) = graphs
    producers = {output: node.op_type for node in graph.node for output in node.output}
    scores = [producers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]
    assert scores == [PRODUCER_OF_SCORES[form]] * loaded("tiny").model.config.depth
