"""Every name of TensorRT that our code uses exists in each version that the code runs on.

The lists hold the names of the real Python APIs (classes, enums and their members), nothing else.
What only some versions have must stand behind a `hasattr` with the name as text.
"""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106", "rtx-1.7.1.116")
RTX = ("rtx-1.7.1.116",)
SUPPORTED = {ROOT / "refsam_trt/backends/tensorrt/rtx.py": RTX}
"""Files for some versions only; all others run on all of them."""

OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "layer": "ILayer",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "trt_engine": "ICudaEngine",
    "trt_context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
"""Variables of this name, in files that use TensorRT, hold objects of this class."""


def names_of(version: str) -> dict[str, list[str]]:
    found = json.loads((DATA / f"api_{version}.json").read_text())["names"]
    return {name: entry.get("members", []) for name, entry in found.items()}


def files_using_tensorrt() -> list[Path]:
    roots = [ROOT / "refsam_trt", ROOT / "engines", ROOT / "bench", ROOT / "prove"]
    files = (path for root in roots for path in root.rglob("*.py"))
    return sorted(path for path in files if "trt." in used_text(path))


def used_text(path: Path) -> str:
    tree = ast.parse(path.read_text())
    return " ".join(".".join(chain) for chain in chains(tree))


def chains(tree: ast.AST) -> list[list[str]]:
    """Return every dotted name as its parts; of `flavour.trt.Builder` what begins with `trt`."""
    found = []
    for node in ast.walk(tree):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr.removeprefix("_"))
            inner = inner.value
        if parts and isinstance(inner, ast.Name):
            parts.insert(0, inner.id)
            found.append(parts[parts.index("trt") :] if "trt" in parts else parts)
    return found


def guarded(tree: ast.AST) -> set[str]:
    """Return the names that the file asks for with `hasattr`."""
    return {
        call.args[1].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "hasattr"
        and isinstance(call.args[1], ast.Constant)
    }


def missing(source: str, names: dict[str, list[str]]) -> list[str]:
    """Return what a file uses and an API lacks, `Class.member` for members."""
    tree = ast.parse(source)
    optional = guarded(tree)
    lacking = set()
    for chain in chains(tree):
        if chain[0] == "trt" and len(chain) > 1 and chain[1] != "_version__":
            lacking |= _missing_of_module(chain[1:], names)
        elif chain[0] in OBJECTS and len(chain) > 1:
            owner = OBJECTS[chain[0]]
            if chain[1] not in names.get(owner, []):
                lacking.add(f"{owner}.{chain[1]}")
    return sorted(name for name in lacking if name.rpartition(".")[2] not in optional)


def _missing_of_module(chain: list[str], names: dict[str, list[str]]) -> set[str]:
    if chain[0] not in names:
        return {chain[0]}
    if len(chain) == 1 or chain[1] == "_init__":  # less the underscore that `chains` takes
        return set()
    if chain[1] in names[chain[0]]:
        return set()
    # An enum that stands inside a class, such as ILogger.Severity, whose members are not listed.
    return {".".join(chain[:2])}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(version: str):
    names = names_of(version)
    for path in files_using_tensorrt():
        if version in SUPPORTED.get(path, VERSIONS):
            assert not missing(path.read_text(), names), path


def test_the_files_that_use_tensorrt_are_found():
    found = {path.name for path in files_using_tensorrt()}
    assert {"build.py", "network.py", "log.py"} <= found


@pytest.mark.parametrize(
    ("source", "version", "expected"),
    [
        ("trt.BuilderFlag.FP16", "11.4.0.106", ["BuilderFlag.FP16"]),
        ("trt.BuilderFlag.FP16", "10.3.0", []),
        ("flavour.trt.IStreamReaderV2", "10.3.0", ["IStreamReaderV2"]),
        ("self._trt.IInt8Calibrator()", "11.4.0.106", ["IInt8Calibrator"]),
        ("trt_engine.device_memory_size", "11.4.0.106", ["ICudaEngine.device_memory_size"]),
        ("builder.platform_has_fast_fp16", "11.4.0.106", ["Builder.platform_has_fast_fp16"]),
        ("runtime.get_engine_validity(raw)", "11.4.0.106", ["Runtime.get_engine_validity"]),
        ("runtime.get_engine_validity(raw)", "rtx-1.7.1.116", []),
        ("if hasattr(config, 'build_route'): config.build_route", "10.3.0", []),
        ("trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED", "10.3.0", []),
    ],
)
def test_what_a_version_lacks_is_noticed(source: str, version: str, expected: list[str]):
    assert missing(source, names_of(version)) == expected


def test_no_integer_stands_where_an_enum_should():
    """Integers moved: STRONGLY_TYPED is 1 in TensorRT 10 and 0 in 11, where 1 is another flag."""
    calls = [
        (path.name, call)
        for path in files_using_tensorrt()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"create_network", "set_flag", "clear_flag"}
    ]
    assert calls
    literal = [path for path, call in calls for a in call.args if isinstance(a, ast.Constant)]
    assert not literal
    assert all(call.args for _, call in calls)
