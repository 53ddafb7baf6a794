"""Measures every figure that is stated; stands on top of all packages and is in no wheel."""

from collections.abc import Callable
from typing import Any

Step = Callable[[], dict[str, Any]]
"""Measures something and returns its record; `failures` in it, if any, says what does not hold."""
