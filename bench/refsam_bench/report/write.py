"""Writes a finished report: the page and, beside it, the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from refsam_bench.report.measure import Report
from refsam_bench.report.page import render_page
from refsam_bench.report.request import ReportRequest
from refsam_trt.files.atomic import atomic_path


def write_report(report: Report, request: ReportRequest) -> None:
    """Write both files, each whole or not at all.

    Raises:
        OutputError: one cannot be written, or appeared since the request was checked.
    """
    page = render_page(report)
    text = json.dumps(report.record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    request.check_outputs()
    _write(request.json_output, text)
    _write(request.output, page)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
