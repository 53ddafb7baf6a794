"""docs/format/bundle.md tells of every field, tensor and limit: whoever adds one, see here."""

import re
from pathlib import Path

import msgspec
import pytest

from refsam_trt import limits
from refsam_trt.contract import manifest, refsam
from refsam_trt.text.cache import METADATA_KEY

TEXT = (Path(__file__).parents[3] / "docs" / "format" / "bundle.md").read_text()
RECORDS = [
    record
    for record in vars(manifest).values()
    if isinstance(record, type) and issubclass(record, msgspec.Struct) and record.__struct_fields__
]
# | field | type | ...: the first cell of every row of a table, names in backticks
FIELD_CELLS = {
    name.rpartition(".")[2]
    for cell in re.findall(r"^\| (`[^|]*`) \|", TEXT, re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", cell)
}
# | in | `name` | dtype | dims | scope | split |
TENSOR_ROWS = re.findall(
    r"^\| (in|out) \| `(\w+)` \| (\w+)[^|]* \| ([^|]+) \| (\w+) \| ([\w ]+) \|$", TEXT, re.MULTILINE
)


def test_the_schema_is_found():
    assert len(RECORDS) == 14
    assert manifest.Manifest in RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_the_manifest_is_in_a_table(record: type[msgspec.Struct]):
    assert set(record.__struct_fields__) <= FIELD_CELLS


@pytest.mark.parametrize("split", ["baseline", "optimised"])
def test_tensor_tables_are_the_contract(split: refsam.Split):
    expected = [
        (kind, tensor.name, dtype_word(tensor.dtype, tensor.name), dims, tensor.scope)
        for spec in refsam.contract(1024, 64, split).values()
        for kind, tensors in (("in", spec.inputs), ("out", spec.outputs))
        for tensor in tensors
        for dims in [tensor.dims]
    ]
    sizes = {"S": 1024, "h": 64, "4h": 256, "h*h": 4096}
    found = [
        (
            kind,
            name,
            dtype,
            tuple(sizes.get(d, int(d) if d.isdigit() else d) for d in dims.split(", ")),
            scope,
        )
        for kind, name, dtype, dims, scope, splits in TENSOR_ROWS
        if splits in ("both", f"only {split}")
    ]
    assert found == expected


def dtype_word(dtype: str, name: str) -> str:
    return "float" if dtype == "float32" and name != "image" else dtype


def test_numbers_are_those_of_the_code():
    prose = " ".join(TEXT.split())
    for number, words in [
        (limits.MAX_MANIFEST_BYTES // 2**20, "a manifest above {} MiB"),
        (limits.MAX_JSON_DEPTH, "nested more than {} deep, of another schema"),
        (limits.MAX_FILES, "more than {} entries"),
        (limits.MAX_PATH_CHARS, "has at most {} characters"),
        (limits.MAX_ONNX_BYTES // 2**20, "ONNX files above {} MiB"),
        (limits.MAX_ONNX_DEPTH, "subgraphs nested more than {} deep"),
        (limits.MAX_BATCH, "each 1 to {};"),
        (manifest.SCHEMA_VERSION, "| `schema_version` | integer | {}."),
    ]:
        assert words.format(number) in prose
    assert f"`{METADATA_KEY}`" in TEXT
