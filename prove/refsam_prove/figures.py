"""The pages that state figures, written from the result files alone.

`docs/proof/figures.md` has every figure: it is `figures.md.jinja`, filled in. The README has the
rows that the template marks. As a program, `PYTHONPATH=prove python -m refsam_prove.figures`, it
writes both; the tests compare both with what it would write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from refsam_trt.files.atomic import atomic_path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "proof" / "figures.md"
TEMPLATE = Path(__file__).with_name("figures.md.jinja")
IN_README = " <!-- README -->"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Results = Mapping[str, Any]


def main() -> None:
    """Write the page, and the table of the README."""
    results = read_results()
    for path, text in ((PAGE, page(results)), (README, readme(README.read_text("utf-8"), results))):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_results() -> Results:
    """Return every result file by the name of its step."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def page(results: Results) -> str:
    """Return the whole page of figures."""
    return _filled_in(results).replace(IN_README, "")


def readme(text: str, results: Results) -> str:
    """Return the README's text with its table of figures written anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no table between {BEGIN} and {END}")
    marked = [line for line in _filled_in(results).splitlines() if line.endswith(IN_README)]
    # The last column names the result file, which readers of the README do not need.
    rows = [line.removesuffix(IN_README).rsplit("|", 2)[0] + "|" for line in marked]
    table = "\n".join(["| what | figure | measured over |", "|---|---|---|", *rows])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _filled_in(results: Results) -> str:
    # A figure that a result file does not have is an error, never an empty cell.
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(results=results)


if __name__ == "__main__":
    main()
