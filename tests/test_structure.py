"""How the code is laid out: no import goes in a circle, files and folders stay small."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = (".", "export", "engines", "calibration", "bench", "train", "prove")
MAX_LINES = 300
MAX_IN_PACKAGE_ROOT = 8
MAX_IN_FOLDER = 12
SMALL_ROOTS = ("refsam_trt", "refsam_bench")
LAYERED = ("refsam_bench", "refsam_calibration", "refsam_prove", "refsam_train")
"""Packages without a contract of import-linter in which folders stand in layers all the same."""

Edges = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Return every module of ours by its full name; packages are called like their folder."""
    found = {}
    for source_root in SOURCE_ROOTS:
        for path in (ROOT / source_root).glob("refsam_*/**/*.py"):
            parts = path.relative_to(ROOT / source_root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """Yield the known modules that are imported anywhere: in functions and for types too."""
    known = set(known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif node.module in known:
                    yield node.module


def circles(edges: Edges) -> list[list[str]]:
    """Return the sets of names that lead to each other (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges.get(name, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            start = stack.index(name)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                result.append(sorted(component))

    for name in edges:
        if name not in index:
            visit(name)
    return result


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    paths = modules()
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), paths)) - {name}
        for name, path in paths.items()
    }


def test_circles_are_seen_wherever_the_import_stands():
    known = ("a.one", "a.two", "a.three")
    one = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.two import Two\n"
    two = "def call():\n    from a import three\n"
    three = "import a.one\n"
    sources = dict(zip(known, (one, two, three), strict=True))
    edges = {name: set(imported(ast.parse(text), known)) for name, text in sources.items()}
    assert circles(edges) == [sorted(known)]
    assert circles({**edges, "a.three": set()}) == []


def test_no_module_leads_back_to_itself(imports: dict[str, set[str]]):
    assert circles(imports) == []


def test_no_folder_leads_back_to_itself(imports: dict[str, set[str]]):
    """Of one package; the modules of its root, such as its command, stand above or below."""
    edges: dict[str, set[str]] = defaultdict(set)
    for name, others in imports.items():
        folder = name.split(".")[:2]
        for other in others:
            target = other.split(".")[:2]
            inside = name.count(".") > 1 and other.count(".") > 1 and folder[0] == target[0]
            if inside and folder[0] in LAYERED:
                edges[".".join(folder)] |= {".".join(target)} - {".".join(folder)}
    assert circles(edges) == []


def test_no_module_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_folder_is_crowded():
    counts: dict[str, int] = defaultdict(int)
    for path in modules().values():
        counts[path.parent.relative_to(ROOT).as_posix()] += path.name != "__init__.py"
    bounds = {
        folder: MAX_IN_PACKAGE_ROOT if Path(folder).name in SMALL_ROOTS else MAX_IN_FOLDER
        for folder in counts
    }
    assert {name: count for name, count in counts.items() if count > bounds[name]} == {}


def test_the_runtime_meets_a_family_in_one_line(imports: dict[str, set[str]]):
    """A family is its contract, its folder, its export, and its line of the registry."""
    family = ("refsam_trt.contract.refsam", "refsam_trt.families.refsam")
    meets = {
        name
        for name, others in imports.items()
        if name.startswith("refsam_trt.")
        and not name.startswith(family)
        and any(other.startswith(family) for other in others)
    }
    assert meets == set()
    names = {
        name: text.count("refsam_trt.families.refsam")
        for name, path in modules().items()
        if name.startswith("refsam_trt.") and not name.startswith(family)
        if "refsam_trt.families.refsam" in (text := path.read_text())
    }
    assert names == {"refsam_trt.contract.registry": 1}
