"""Files of expressions: what counts as a line, and what is refused."""

from pathlib import Path

import pytest

from refsam_trt.errors import UsageError
from refsam_trt.run.expressions_file import read_expressions

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a dog", [(1, "a dog")]),
        (b"a dog\r\n a CAT \n", [(1, "a dog"), (2, " a CAT ")]),
        (b"\n \t\na dog\n\na dog\n", [(3, "a dog"), (5, "a dog")]),
        (BOM + b"a dog\rein K\xc3\xa4fer", [(1, "a dog"), (2, "ein K\u00e4fer")]),
        # What Python's splitlines would take for the end of a line.
        ("a\u2028b\x0bc\x85d".encode(), [(1, "a\u2028b\x0bc\x85d")]),
    ],
)
def test_every_line_that_is_not_blank(
    tmp_path: Path, content: bytes, expected: list[tuple[int, str]]
) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_expressions(tmp_path / "file") == expected


@pytest.mark.parametrize("content", [b"", b"\n \n", BOM])
def test_a_blank_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match="file: found no expression; write one per line"):
        read_expressions(tmp_path / "file")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("K\u00e4fer".encode("latin-1"))
    for name, reason in (
        ("latin", "not text in UTF-8"),
        ("nowhere", "No such file or directory"),
        (".", "Is a directory"),
    ):
        with pytest.raises(UsageError) as caught:
            read_expressions(tmp_path / name)
        assert str(caught.value) == (
            f"{tmp_path / name}: cannot be read as expressions ({reason}); give a text file with "
            "one per line"
        )
