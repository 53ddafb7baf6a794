"""What README and docs tell a user to do can be done."""

import contextlib
import importlib.util
import inspect
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click
import fake_bundle
import jinja2
import numpy as np
import pytest
from PIL import Image

import refsam_trt
from refsam_export.precision.policy import PRECISIONS
from refsam_prove import figures
from refsam_prove.demo import write_clip
from refsam_trt import errors
from refsam_trt.backends.select import _BACKENDS, ON_CPUS, PLAN_BACKENDS
from refsam_trt.contract.precision import QUANTISED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "train" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
README = (ROOT / "README.md").read_text()
MAX_README_LINES, MAX_README_FIGURES = 150, 12
STRUCTURE = (ROOT / "docs/structure.md").read_text()
ERRORS_PAGE = (ROOT / "docs/embed/errors.md").read_text()
SOURCE_ROOTS = ("export", "engines", "calibration", "bench", "train", "prove")
CODE_FOLDERS = ("refsam_trt", "tests", "docs", *SOURCE_ROOTS)
FOREIGN_OPTIONS = {"--continued", "--help", "--version"}
"""Of programs that are no commands of ours, or run only in a clone."""
COMMANDS = {
    "refsam-run": ("refsam_trt.run.cli", "command"),
    "refsam-doctor": ("refsam_trt.doctor.cli", "command"),
    "refsam-export": ("refsam_export.cli", "command"),
    "refsam-build": ("refsam_engines.cli", "command"),
    "refsam-calibrate": ("refsam_calibration.cli", "command"),
    "refsam-bench": ("refsam_bench.cli", "command"),
    "refsam-train": ("refsam_train.cli", "cli"),
}


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [
        (page.relative_to(ROOT).as_posix(), body)
        for page in PAGES
        for body in pattern.findall(page.read_text())
    ]


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
    table = set(re.findall(r"^\| `(refsam-\w+)`", README, re.M))
    assert scripts == table == set(COMMANDS)


def test_pictures_exist_and_are_small():
    pictures = {
        (page.parent / picture).resolve()
        for page in PAGES
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert pictures
    assert not [picture for picture in pictures if not picture.is_file()]
    assert not [picture for picture in pictures if picture.stat().st_size > 1_500_000]


def unproven() -> dict[str, set[str]]:
    """Return per precision the backends without a run in `bench/results`, but what CI runs."""
    missing = {
        precision: {*_BACKENDS, *PLAN_BACKENDS} - {*ON_CPUS}
        for precision in (*PRECISIONS, *QUANTISED)
    }
    # What needs a CPU that not every machine of CI is: proven where it was timed.
    forms = ROOT / "bench/results/encoder-vitb.json"
    timed = json.loads(forms.read_text())["forms"] if forms.exists() else {}
    for precision in ("bf16", "int8"):
        if f"openvino-cpu {precision} bias" not in timed:
            missing[precision].add("openvino-cpu")
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


def test_what_no_hardware_ran_is_listed_by_name():
    """A backend leaves the column when a run of `refsam-bench gpu` is committed, not before."""
    assert hardware_table("docs/proof/limits.md") == unproven()


def test_the_backends_of_the_table_are_named_elsewhere_as_what_they_are():
    """On no page is a backend called supported that is in the column."""
    for page in PAGES:
        for backend in set().union(*unproven().values()):
            for sentence in re.findall(rf"[^.|]*`{backend}`[^.|]*", page.read_text()):
                assert "supported" not in sentence, (page, sentence)


def test_the_picture_of_the_demo_does_not_show_random_weights():
    """Overlays of random weights end in a black banner that says so."""
    with Image.open(ROOT / "docs/images/demo.webp") as animation:
        assert animation.n_frames > 10
        for frame in range(animation.n_frames):
            animation.seek(frame)
            bottom = np.asarray(animation.convert("L"))[-8:]
            assert np.median(bottom) > 16, frame


def test_the_page_of_figures_and_the_readme_are_what_the_program_writes():
    results = figures.read_results()
    remedy = "run `PYTHONPATH=prove python -m refsam_prove.figures`"
    assert figures.PAGE.read_text() == figures.page(results), remedy
    assert figures.readme(README, results) == README, remedy


def test_every_result_file_is_on_the_page_of_figures():
    """A figure that is measured and told nowhere is one that nobody checks."""
    cells = re.findall(r"^\|.*\| (`[^|]*`) \|$", figures.PAGE.read_text(), re.M)
    told = {name for cell in cells for name in re.findall("`([^`]+)`", cell)}
    assert told == set(figures.read_results())


def test_figures_have_a_sample_and_none_is_left_open():
    results = figures.read_results()
    for line in figures.page(results).splitlines():
        if line.startswith("| ") and "---" not in line:
            assert all(cell.strip() for cell in line.strip("|").split("|")), line
    with pytest.raises(jinja2.UndefinedError, match="engine"):
        figures.page({**results, "speed-nano": {**results["speed-nano"], "speed": {}}})


def test_figures_that_were_missed_say_so():
    text = figures.page(figures.read_results())
    assert "the goal of 0.99 in every frame is missed" in text
    assert text.count("the goal is 195 MB") == 1


def test_a_readme_without_a_table_is_refused():
    with pytest.raises(ValueError, match="no table between"):
        figures.readme("text", figures.read_results())


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MAX_README_LINES
    _, _, table = README.partition(figures.BEGIN)
    rows = table.partition(figures.END)[0].strip().splitlines()[2:]
    assert 0 < len(rows) <= MAX_README_FIGURES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_belongs_to_an_item_of_a_list_is_indented_by_four(page: Path):
    """GitHub takes three blanks too; for the site the list ends there, and its numbers with it."""
    text = page.read_text()
    assert not re.findall(r"\n\n {1,3}[^ \n].*", text)
    assert not re.findall(r"\n\n(?: {4}.+\n)+(?:\d+\.|[*]) .*", text), "a blank line is missing"


def test_the_site_shows_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    navigation = text.partition("\nnav:\n")[2]
    named = re.findall(r"^ +- [^:]+: (\S+\.md)$", navigation, re.M)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted(pages)


def test_the_site_takes_nothing_from_a_server():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert "://" not in text
    assert (ROOT / "docs/site/iframe-worker.js").is_file(), "what the search needs without a server"


def options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts}
    subs = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*(options(sub) for sub in subs))


def test_commands_and_options_in_sentences_exist():
    """Blocks are parsed above; this is about names in backticks."""
    commands = {name: getattr(importlib.import_module(m), a) for name, (m, a) in COMMANDS.items()}
    known = set().union(*(options(command) for command in commands.values()), FOREIGN_OPTIONS)
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", text):
            assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)) <= known, (page, code)
            if name := re.match(r"(refsam-[a-z]+)(?: ([a-z]+)(?= |$))?", code):
                assert name[1] in commands, (page, code)
                group = commands[name[1]]
                if name[2] and name[1] == "refsam-bench":
                    assert name[2] in group.commands, (page, code)


def test_every_subcommand_of_the_bench_is_told():
    group = importlib.import_module("refsam_bench.cli").command
    text = (ROOT / "docs/deploy/report.md").read_text()
    assert not [name for name in group.commands if f"`refsam-bench {name}`" not in text]


def test_modules_that_are_run_by_name_exist():
    for page in PAGES:
        for module in re.findall(r"python -m ((?:refsam_\w+)(?:\.\w+)*)", page.read_text()):
            assert importlib.util.find_spec(module), (page, module)


def test_the_api_reference_names_what_exists():
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs/embed/reference.md").read_text(), re.M):
        home, _, attribute = name.rpartition(".")
        module = importlib.import_module(home)
        assert hasattr(module, attribute) or importlib.util.find_spec(name), name


@pytest.mark.parametrize("of", ["Engine", "Session", "Result", "FrameResults", "Polygon"])
def test_the_guide_tells_every_public_call(of: str):
    guide = (ROOT / "docs/embed/index.md").read_text()
    told = set(re.findall(r"`(?:[A-Z]\w+\.)?(\w+)(?:\([^`]*\))?`", guide))
    cls = getattr(refsam_trt, of)
    public = {name for name in (*vars(cls), *cls.__annotations__) if not name.startswith("_")}
    assert public <= told | set(vars(Sequence)), public - told


def test_the_guide_tells_every_option_of_load():
    guide = (ROOT / "docs/embed/index.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", guide, re.M))
    assert set(inspect.signature(refsam_trt.load).parameters) <= rows


def test_the_guide_names_every_dependency_of_the_runtime():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.M | re.S)[0]
    first = (ROOT / "docs/embed/index.md").read_text().partition("\n## ")[0]
    assert not [name for name in re.findall(r'"([\w-]+)', listed) if name not in first]


def test_the_tree_of_exceptions_is_that_of_the_code():
    drawn: dict[str, str] = {}
    parents = ["Exception"]
    for indent, name in re.findall(r"^([│├└─ ]*)(\w+Error)\b", ERRORS_PAGE, re.M):
        depth = len(indent) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1]
    defined = {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type)
        and issubclass(cls, Exception)
        and cls.__module__ == errors.__name__
    }
    assert drawn == defined
    ones = {n for n in drawn if getattr(getattr(errors, n), "exit_code", 2) == 1}
    assert ones == set(re.findall(r"(\w+Error)\b[^\n]*\(exit code 1\)", ERRORS_PAGE))


def product_folders() -> set[str]:
    """Return every folder with product code but the packages' roots."""
    roots = (
        "refsam_trt",
        *(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()),
    )
    sources = [ROOT / root for root in {*roots, *SOURCE_ROOTS}]
    return {
        path.parent.relative_to(ROOT).as_posix()
        for source in sources
        for path in source.rglob("__init__.py")
    } - {"refsam_trt"}


def test_the_code_map_has_every_folder_and_no_other():
    named = re.findall(r"^\| `([\w/]+)` \|", STRUCTURE, re.M)
    assert len(named) == len(set(named))
    assert set(named) == product_folders()


def test_every_file_that_a_page_names_exists():
    for page in PAGES:
        for path in re.findall(rf"`((?:{'|'.join(CODE_FOLDERS)})/[\w/.-]*)`", page.read_text()):
            # Written by commands, or not yet.
            exists = (ROOT / path).exists() or path.startswith(("train/runs/", "bench/results/gpu"))
            assert exists, (page, path)


def test_each_way_through_the_code_has_five_lines():
    ways = re.findall(r"^## (The way of .+?)\n\n((?:\d\. .+\n)+)", STRUCTURE, re.M)
    assert [title for title, _ in ways] == [
        "The way of a frame",
        "The way of an expression",
        "The way of a checkpoint",
        "The way of a clip in calibration",
        "The way of a figure in a report",
    ]
    for title, text in ways:
        steps = text.strip().splitlines()
        assert len(steps) == 5, title
        assert all("`" in step for step in steps), title
