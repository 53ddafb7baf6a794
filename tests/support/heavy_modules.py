"""What a call leaves imported, asked in a process that has done nothing else."""

import sys
from collections.abc import Callable

HEAVY = ("torch", "onnx", "transformers", "openvino")


def heavy_modules_after(function: Callable[..., object], *arguments: object) -> list[str]:
    """Make a call and return which of the heavy modules are imported then."""
    function(*arguments)
    return [name for name in HEAVY if name in sys.modules]
