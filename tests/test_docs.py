"""What README and docs tell a user to do can be done."""

import contextlib
import importlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import fake_bundle
import numpy as np
import pytest
from PIL import Image

from refsam_export.precision.policy import PRECISIONS
from refsam_prove.demo import write_clip
from refsam_trt.backends.select import _BACKENDS, AUTO_ORDER, PLAN_BACKENDS
from refsam_trt.contract.precision import QUANTISED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "refsam-run": ("refsam_trt.run.cli", "command"),
    "refsam-doctor": ("refsam_trt.doctor.cli", "command"),
    "refsam-export": ("refsam_export.cli", "command"),
    "refsam-build": ("refsam_engines.cli", "command"),
    "refsam-calibrate": ("refsam_calibration.cli", "command"),
    "refsam-bench": ("refsam_bench.cli", "command"),
    "refsam-train": ("refsam_train.cli", "command"),
}


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [(page.name, body) for page in PAGES for body in pattern.findall(page.read_text())]


def lines() -> list[tuple[str, str]]:
    found = [
        (page, line[2:])
        for page, body in blocks("console")
        for line in body.splitlines()
        if line.startswith("$ ")
    ]
    assert len(found) > 4
    return found


@pytest.mark.parametrize(("page", "line"), lines(), ids=lambda value: value[:40])
def test_command_lines_are_understood(page: str, line: str):
    name, *arguments = shlex.split(line)
    if name == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{arguments[0]}:", makefile, re.M), line
    elif name == "pip":
        extras = re.findall(r"\.\[([a-z,-]+)\]", line)[0].split(",")
        declared = (ROOT / "pyproject.toml").read_text()
        assert not [extra for extra in extras if f"\n{extra} = [" not in declared]
    else:
        module, attribute = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        parse(command, name, arguments)


def parse(command: click.Command, name: str, arguments: list[str]) -> None:
    """Parse as the command would, sub-command included, without running it."""
    context = (
        command.make_context(name, list(arguments), allow_interspersed_args=False)
        if (isinstance(command, click.Group))
        else command.make_context(name, list(arguments))
    )
    if isinstance(command, click.Group):
        sub_name, sub, rest = command.resolve_command(context, arguments)
        assert sub is not None
        sub.make_context(sub_name, rest, parent=context)


@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=lambda value: value[:20])
def test_python_examples_run(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    fake_bundle.make_bundle(Path("demo/nano"))
    write_clip(Path("demo/clip.mp4"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, page, "exec"), {})
    assert printed.getvalue()


def test_every_console_script_stands_in_the_readme_and_the_other_way_round():
    scripts = set(re.findall(r"^(refsam-\w+) = ", (ROOT / "pyproject.toml").read_text(), re.M))
    table = set(re.findall(r"^\| `(refsam-\w+)", (ROOT / "README.md").read_text(), re.M))
    assert scripts == table == set(COMMANDS)


def test_pictures_of_the_readme_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert not [picture for picture in pictures if not (ROOT / picture).is_file()]


def test_figures_of_the_readme_are_those_of_the_result_files():
    readme = (ROOT / "README.md").read_text()
    results = {p.stem: json.loads(p.read_text()) for p in (ROOT / "bench/results").glob("*.json")}
    expected = []
    for preset in ("nano", "vitb"):
        splits = results[f"parity-{preset}"]["splits"].values()
        assert all(figures["passed"] for figures in splits)
        expected.append(f"{max(figures['max_graph_error'] for figures in splits):.1e} per graph")
        expected.append(f"IoU at least {min(figures['min_mask_iou'] for figures in splits):.5f}")
    speed = results["speed-nano"]["speed"]
    expected.append(f"{speed['speedup']['p50']:.1f} times as fast")
    for age in ("oldest", "newest"):
        extras = results[f"footprint-{age}"]["extras"]
        sizes = [extras[name]["installed_mb"] for name in ("cpu", "cpu,video")]
        expected.append(f"{sizes[0]:.0f} / {sizes[1]:.0f} MB")
        expected.append(f"{extras['cpu']['first_mask_s']:.2f} s")
    expected += precision_figures(results)
    assert not [figure for figure in expected if figure not in readme]


def precision_figures(results: dict[str, Any]) -> list[str]:
    """Return what the README says of fp16, bf16 and int8, as the result files have it."""
    found = []
    for preset in ("nano", "vitb"):
        gate = results[f"int8-speed-{preset}"]["gate"]["speedup"]
        found.append(f"{gate['p50']:.2f} times as fast as in fp32")
        peaks = results[f"calibration-memory-{preset}"]["peak_mib"]
        few, many = sorted(peaks, key=int)
        found.append(
            f"`{preset}` {peaks[few]:.0f} MiB with {few}{' frames' if preset == 'vitb' else ''}, "
            f"{peaks[many]:.0f} MiB with {many}"
        )
    found.append(f"(p10 {gate['p10']:.2f}, p90 {gate['p90']:.2f})")
    forms = results["calibration-forms-vitb"]["forms"].values()
    errors = ", ".join(f"{form['relative_error']:.4f}" for form in forms)
    ious = ", ".join(f"{form['mean_mask_iou']:.3f}" for form in forms)
    found.append(f"relative error {errors}; mask IoU {ious}")
    (half,) = (
        variant["rounded"]
        for variant in results["half-vitb"]["variants"].values()
        if variant["precision"] == "fp16"
    )
    found.append(
        f"relative error at most {half['max_graph_error']:.4f} per graph, "
        f"{half['max_chain_error']:.4f} over the chain, mask IoU at least "
        f"{half['min_mask_iou']:.3f}"
    )
    for precision in ("fp16", "bf16"):
        rounded = results[f"{precision}-videos-nano"]["rounded"]
        found.append(f"{rounded['mean_mask_iou']:.4f} in the mean, J&F unchanged")
        assert abs(rounded["jf_drop_points"]) < 0.05
    worst = results["fp16-videos-nano"]["rounded"]["min_mask_iou"]
    found.append(f"the worst of 3200 frames {worst:.3f}")
    for preset in ("vitb", "vith"):
        encoder = results[f"plans-{preset}"]["graphs"]["image_encoder"]
        fused, total = encoder["num_fused_attention"], encoder["num_attention"]
        megabytes = encoder["activation_bytes"] / 1e6
        found.append(f"{fused} of {total} blocks, {megabytes:.0f} MB")
    return found


def unproven() -> dict[str, set[str]]:
    """Return per precision the backends without a run in `bench/results`, but what CI runs."""
    missing = {
        precision: {*_BACKENDS, *PLAN_BACKENDS} - {*AUTO_ORDER, "fake"}
        for precision in (*PRECISIONS, *QUANTISED)
    }
    for path in (ROOT / "bench/results/gpu").glob("*.json"):
        for subject in json.loads(path.read_text())["subjects"]:
            for case in subject["cases"].values():
                if case["steps"].get("parity", {}).get("state") == "done":
                    missing[case["precision"]].discard(case["backend"])
    return missing


def hardware_table(page: str) -> dict[str, set[str]]:
    """Return per precision the backends in the column of a page's table."""
    found: dict[str, set[str]] = {}
    column: int | None = None
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "unproven on hardware" in cells:
            column = cells.index("unproven on hardware")
        elif not line.startswith("|"):
            column = None
        elif column is not None and not cells[0].startswith("-"):
            found[cells[0]] = set(re.findall("`([a-z-]+)`", cells[column]))
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/precision.md"])
def test_what_no_hardware_ran_is_listed_by_name(page: str):
    """A backend leaves the column when a run of `refsam-bench gpu` is committed, not before."""
    assert hardware_table(page) == unproven()


def test_the_backends_of_the_table_are_named_elsewhere_as_what_they_are():
    """In the README's text no backend is called supported that is in the column."""
    readme = (ROOT / "README.md").read_text()
    for backend in set().union(*unproven().values()):
        for sentence in re.findall(rf"[^.|]*`{backend}`[^.|]*", readme):
            assert "supported" not in sentence, sentence


def test_the_picture_of_the_demo_does_not_show_random_weights():
    """Overlays of random weights end in a black banner that says so."""
    with Image.open(ROOT / "docs/images/demo.jpg") as picture:
        bottom = np.asarray(picture.convert("L"))[-8:]
    assert np.median(bottom) > 16
