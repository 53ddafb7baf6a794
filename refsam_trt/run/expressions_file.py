"""Files of expressions, as commands take them: UTF-8, one expression per line."""

from __future__ import annotations

from pathlib import Path

from refsam_trt.errors import UsageError


def read_expressions(path: Path) -> list[tuple[int, str]]:
    """Return (line number from 1, expression) of every line that is not blank, as it stands there.

    Lines end with LF, CR LF or CR; a byte order mark is passed over. Whether an expression can be
    used, or comes twice, is the caller's to say.

    Raises:
        UsageError: unreadable, not UTF-8, or blank throughout.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UsageError(
            f"{path}: cannot be read as expressions ({reason}); give a text file with one per line"
        ) from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path}: found no expression; write one per line")
    return lines
