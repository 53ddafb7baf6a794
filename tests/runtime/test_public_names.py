"""What `import refsam_trt` gives, and what it costs."""

import ast
import functools
import inspect
import re
import subprocess
import sys
import textwrap

import msgspec
import pytest

import refsam_trt
from refsam_trt import errors


def test_public_names_exist_and_are_documented() -> None:
    assert sorted(refsam_trt.__all__) == refsam_trt.__all__
    for name in refsam_trt.__all__:
        assert getattr(refsam_trt, name).__doc__
        assert name in dir(refsam_trt)
    with pytest.raises(AttributeError, match="module 'refsam_trt' has no attribute 'nothing'"):
        refsam_trt.nothing  # noqa: B018


def test_the_exceptions_that_a_caller_can_get_are_public() -> None:
    for name in ("PlanError", "DeviceMemoryError"):
        assert getattr(refsam_trt, name) is getattr(errors, name)
    for name in ("CheckpointError", "DatasetError", "ParityError", "CalibrationError"):
        assert name not in refsam_trt.__all__


def test_the_tree_of_exceptions_is_the_drawn_one() -> None:
    def drawn(of: type, depth: int) -> list[tuple[str, ...]]:
        code = getattr(of, "exit_code", 2)
        inherited = getattr(of.__base__, "exit_code", None)
        told = (f"exit code {code}",) if hasattr(of, "exit_code") and code != inherited else ()
        below = [c for c in vars(errors).values() if isinstance(c, type) and c.__base__ is of]
        return [(" " * depth + of.__name__, *told)] + [
            line for child in below for line in drawn(child, depth + 4)
        ]

    assert errors.__doc__
    lines = [line for line in errors.__doc__.splitlines() if line.startswith(" " * 4)]
    assert [tuple(re.split("(?<=\\S)  +", line)) for line in lines] == drawn(Exception, 4)


def members(of: type) -> dict[str, str | None]:
    """Return the docstring of every public method and property that a class of ours defines."""
    found = {
        n: v
        for c in of.__mro__
        if c.__module__.startswith("refsam_trt")
        for n, v in vars(c).items()
    }
    return {
        f"{of.__name__}.{name}": inspect.getdoc(value)
        for name, value in found.items()
        if not name.startswith("_")
        and (callable(value) or isinstance(value, property | functools.cached_property))
    }


@pytest.mark.parametrize("name", ["Engine", "Session", "Result", "FrameResults", "Polygon"])
def test_every_method_is_documented_with_its_arguments_and_errors(name: str) -> None:
    of = getattr(refsam_trt, name)
    for member, told in members(of).items():
        assert told, member
    raised = {
        path: node
        for path, node in functions_of(of).items()
        if any(isinstance(inner, ast.Raise) and inner.exc for inner in ast.walk(node))
    }
    for path, node in raised.items():
        told = ast.get_docstring(node) or ""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
                error = ast.unparse(inner.exc.func)
                assert error in told, f"{path} raises {error} without saying so"


def functions_of(of: type) -> dict[str, ast.FunctionDef]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(tree, ast.ClassDef)
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f"{of.__name__}.{node.name}": node for node in found if node.name[0] != "_"}


def test_importing_brings_nothing_until_a_name_is_used() -> None:
    """How long that takes is measured by `make prove`, not asserted here."""
    code = """
import json, sys
import refsam_trt
alone = list(sys.modules)
refsam_trt.load, refsam_trt.Session, refsam_trt.RefsamError
print(json.dumps([alone, list(sys.modules)]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    alone, used = (set(modules) for modules in msgspec.json.decode(out))
    heavy = {"torch", "onnx", "onnxruntime", "transformers", "av"}
    assert not (heavy | {"numpy", "PIL", "tokenizers", "msgspec"}) & alone
    assert not heavy & used
    assert "numpy" in used
