"""Where the shared development data lies, if it is here: tests that need it skip otherwise."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data"


def path(*parts: str) -> Path:
    """Return a path inside the shared data folder, or skip the calling test when it is absent."""
    found = ROOT.joinpath(*parts)
    if not found.exists():
        pytest.skip(f"shared data not present: {'/'.join(parts)}")
    return found
