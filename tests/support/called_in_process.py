"""Functions that tests call in a process of its own, which must be able to import them."""

import os
import sys
from collections.abc import Callable


def sum_and_pid(first: int, *, second: int) -> tuple[int, int]:
    return first + second, os.getpid()


def fail(error: Exception) -> None:
    raise error


def modules() -> set[str]:
    return set(sys.modules)


def path() -> list[str]:
    return sys.path


def unpicklable() -> Callable[[], None]:
    return lambda: None
