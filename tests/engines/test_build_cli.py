import json
import os
import signal
from pathlib import Path

import pytest
from commands_in_process import Commands
from rtx_probe import needs_rtx

from refsam_engines import build as build_module
from refsam_engines.cli import main
from refsam_trt.bundle.plans import Plans, open_plans


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


def rtx(bundle: Path, output: Path, *more: object) -> list[object]:
    return [bundle, "--backend", "tensorrt-rtx", "--precision", "fp32", "--output", output, *more]


@needs_rtx
def test_plans_are_built_shown_and_read_again(
    command: Commands, bundle_folder: Path, tmp_path: Path
):
    done = command(main, *rtx(bundle_folder, tmp_path / "p", "--inspect", "--max-expressions", 2))
    assert done.code == 0, done.err
    assert "refsam-build: building image_encoder" in done.err
    assert "fused attention in 0 of 0" in done.out
    plans = open_plans(tmp_path / "p")
    assert done.out.endswith(f"plans: {tmp_path / 'p'}\nplan id: {plans.plan_id}\n")
    assert plans.manifest.limits.max_expressions == 2
    again = command(main, tmp_path / "p", "--inspect")
    assert (again.code, again.out) == (0, done.out)


@needs_rtx
def test_json_prints_one_object(command: Commands, plans: Plans):
    done = command(main, plans.folder, "--inspect", "--json")
    record = json.loads(done.out)
    assert record["plan_id"] == plans.plan_id
    assert record["manifest"]["graphs"]["image_encoder"]["report"]["num_engine_layers"] is None


@pytest.mark.parametrize("option", ["--backend", "--precision", "--output"])
def test_what_is_needed_is_asked_for(
    command: Commands, bundle_folder: Path, tmp_path: Path, option: str
):
    arguments = rtx(bundle_folder, tmp_path / "p")
    at = arguments.index(option)
    done = command(main, *arguments[:at], *arguments[at + 2 :])
    assert done.code == 2
    assert done.message == f"refsam-build: Missing option '{option}'; see refsam-build --help"


@needs_rtx
def test_a_missing_variant_is_refused_with_the_export_command(
    command: Commands, bundle_folder: Path, tmp_path: Path
):
    arguments = rtx(bundle_folder, tmp_path / "p", "--precision", "fp16")
    done = command(main, *arguments)
    assert done.code == 2
    assert "refsam-export --backbone fake --random-init 0 --precision fp32,fp16" in done.message


@needs_rtx
def test_an_interrupt_ends_the_build_and_leaves_nothing(
    command: Commands, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with monkeypatch.context() as patch:
            parse = build_module.parse_graph

            def parse_and_signal(*arguments: object, number=number, parse=parse) -> None:
                parse(*arguments)
                os.kill(os.getpid(), number)

            patch.setattr(build_module, "parse_graph", parse_and_signal)
            done = command(main, *rtx(bundle_folder, tmp_path / "p"))
        assert done.code == code
        assert not list(tmp_path.iterdir())
