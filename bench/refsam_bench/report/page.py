"""The page and, beside it, the same as JSON: made of a record and its pictures alone.

Every figure stands in a `<data>` element whose value is the JSON object's own. All text is escaped
by Jinja2, whatever a data set or the name of a bundle holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refsam_bench.report.measure import MeasuredReport
from refsam_bench.report.pictures import ANNOTATION, MISSING, RIGHT, TOO_MUCH
from refsam_bench.report.plots import BAR_WIDTH, longest_frame_ms, scatter, stage_bar
from refsam_bench.report.quantisation import BAR_WIDTH as LOSS_BAR_WIDTH
from refsam_bench.report.quantisation import loss_width
from refsam_bench.report.request import ReportRequest
from refsam_trt.errors import MissingExtraError
from refsam_trt.files.atomic import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

_MINUS = "\N{MINUS SIGN}"
_POINT = 0.01
"""A point is 0.01 of J&F."""
_MEANINGS = {
    meaning: "#{:02x}{:02x}{:02x}".format(*colour)
    for meaning, colour in (("right", RIGHT), ("too much", TOO_MUCH), ("missing", MISSING))
}


def page_environment() -> Environment:
    """Return what fills the template.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("bench", "refsam-bench report", str(error)) from error
    environment = Environment(
        loader=PackageLoader("refsam_bench.report", "page_files"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["points"] = points
    return environment


def render_page(report: MeasuredReport) -> str:
    """Return the whole page as HTML."""
    record = report.record
    references = [{**reference, "difference": None} for reference in record["references"]]
    is_timed = any(candidate["speed"] for candidate in record["candidates"])
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=record,
            sides=[*references, *record["candidates"]],
            pictures=report.pictures,
            annotation=ANNOTATION,
            meanings=_MEANINGS,
            plot=scatter(record),
            stage_bar=stage_bar,
            bar_width=BAR_WIDTH,
            longest_ms=longest_frame_ms(record["candidates"]) if is_timed else None,
            sequences=_sequences(record),
            quantised=[bundle for bundle in record["bundles"] if bundle["quantisation"]],
            loss_width=loss_width,
            loss_bar_width=LOSS_BAR_WIDTH,
        )
    )


def figure(value: float | None, digits: int = 3, scale: float = 1.0, sign: bool = False) -> Any:
    """Return a number of the JSON object as HTML, multiplied by `scale` for the eye alone."""
    from markupsafe import Markup

    if value is None:
        return Markup('<span class="none">–</span>')
    text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return Markup('<data value="{}">{}</data>').format(repr(value), text.replace("-", _MINUS))


def points(value: float | None) -> Any:
    """Return a difference of J&F in points, with its sign."""
    return figure(value, 2, 1 / _POINT, sign=True)


def _sequences(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the sequences, those that the first engine is worst at first."""
    scored = record["candidates"][0]["accuracy"]["sequences"]
    return sorted(scored, key=lambda name: scored[name]["j_and_f"])


def write_report(report: MeasuredReport, request: ReportRequest) -> None:
    """Write both files, each whole or not at all.

    Raises:
        OutputError: one cannot be written, or appeared since the request was checked.
    """
    page = render_page(report)
    text = json.dumps(report.record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    request.check_outputs()
    for path, content in ((request.json_output, text), (request.output, page)):
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")
