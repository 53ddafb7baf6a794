"""Which of our files a fuzz target depends on, as JSON: `fuzz_modules.py TARGET`.

What is imported once the seeds of its corpus have gone through it.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

import fuzz_targets

SUPPORT = Path(__file__).resolve().parent
CORPUS = SUPPORT.parent / "corpus"
RUNTIME = SUPPORT.parents[1] / "refsam_trt"


def main() -> None:
    """Run the seeds and print the paths."""
    name = sys.argv[1]
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        target = fuzz_targets.TARGETS[name](Path(scratch))
        for seed in sorted((CORPUS / name).iterdir()):
            target(seed.read_bytes())
    files = {Path(module.__file__) for module in sys.modules.values() if _is_ours(module)}
    files |= {SUPPORT / "fuzz_one.py"}
    print(json.dumps(sorted(str(path) for path in files)))


def _is_ours(module: object) -> bool:
    file = getattr(module, "__file__", None)
    if not file or file == __file__:
        return False
    path = Path(file)
    return path.is_relative_to(RUNTIME) or path.parent == SUPPORT


if __name__ == "__main__":
    main()
