"""Types of options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
"""A file or a folder as `pathlib.Path`; what must lie there is checked by those who read it."""
