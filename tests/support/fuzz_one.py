"""Fuzzes one target, guided by coverage: `python tests/fuzz_one.py TARGET [libFuzzer options]`.

`refsam_prove.fuzz.program` starts one of these per target.
"""

import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 1.5, 1e308, -0.0),
    *("", "..", "/", "\0", "é", "\ud800", "9" * 30, "a" * 600),
    *([], {}, [[]], [0, 0], [1, 2, 3], {"": None}),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutated(value: Any, rng: random.Random) -> Any:
    """Return a value that is like `value`, a part of some JSON."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(JUNK)
    if isinstance(value, str):
        return atheris.Mutate(value.encode(errors="replace"), len(value) + 16).decode(
            "utf-8", "replace"
        )
    if isinstance(value, int):
        return value + rng.choice([-1, 1, value, -2 * value, rng.randrange(1000)])
    if isinstance(value, list):
        return value * 2 if kind == 1 else value[:-1]
    return rng.choice(JUNK)


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Change, remove, copy or rename parts of JSON; every fifth time, and what is none, bytes."""
    rng = random.Random(seed)
    try:
        value = json.loads(data)
        found = places(value)
        if not found or not rng.randrange(5):
            raise ValueError
        for _ in range(rng.randint(1, 3)):
            container, key = rng.choice(found)
            kind = rng.randrange(8)
            if kind == 0:
                other, other_key = rng.choice(found)
                container[key] = other[other_key]
            elif kind == 1 and isinstance(container, dict):
                container[mutated(key, rng) if rng.randrange(2) else "x"] = container.pop(key)
            else:
                container[key] = mutated(container[key], rng)
        raw = json.dumps(value).encode()
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return atheris.Mutate(data, max_size)
    return raw if len(raw) <= max_size else atheris.Mutate(data, max_size)


def main() -> None:
    """Run until libFuzzer's options end it; it leaves the process itself."""
    name = sys.argv.pop(1)
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        with atheris.instrument_imports(include=["refsam_trt", "PIL"]):
            import fuzz_targets

            target: Callable[[bytes], None] = fuzz_targets.TARGETS[name](Path(scratch))
        mutator = {"custom_mutator": mutate_json} if name in fuzz_targets.JSON_TARGETS else {}
        atheris.Setup(sys.argv, target, **mutator)
        # Read by refsam_prove.fuzz.program: what comes before the first input is no fuzzing.
        print(f"setup took {time.process_time():.3f} CPU seconds", flush=True)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
