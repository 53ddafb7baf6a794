"""The page of a report: complete by itself, nothing that the JSON has not, nothing believed."""

import base64
import copy
import io
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_in_process import Commands
from exported import exported
from PIL import Image
from reported import reported, request

import refsam_bench.report.measure as measure
from refsam_bench.cli import main
from refsam_bench.datasets.outcome import View
from refsam_bench.report.measure import MeasuredReport
from refsam_bench.report.page import figure, points, render_page, write_report
from refsam_bench.report.pictures import MISSING, RIGHT, TOO_MUCH, judged, outlined
from refsam_bench.report.plots import BAR_WIDTH, scatter, stage_bar
from refsam_bench.report.record import RANDOM_NOTE
from refsam_trt.errors import OutputError

TEMPLATES = Path(measure.__file__).parent / "page_files"
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\u202e"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> MeasuredReport:
    return reported(tmp_path_factory)


@pytest.fixture(scope="module")
def page(report: MeasuredReport) -> str:
    return render_page(report)


class Page(HTMLParser):
    """Tags, attributes that load something, `<data>` elements, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str]] = []
        self.text: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "path", "circle", "rect"):
            self._open.append((tag, dict(attrs)))
        if tag == "data":
            self.data.append((str(dict(attrs)["value"]), ""))

    def handle_endtag(self, tag):
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, text):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "data":
            self.data[-1] = (self.data[-1][0], text)
        elif tag != "style" and attributes.get("class") != "tick":
            self.text.append(text)


def leaves(value: Any) -> Iterator[Any]:
    """Yield every number and text of a JSON value, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


class TestSelfContained:
    def test_nothing_is_loaded_but_pictures_in_the_page(self, page: str):
        parsed = Page(page)
        names = {tag for tag, _ in parsed.tags}
        assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "use"}
        loaded = [
            (name, value)
            for _, attributes in parsed.tags
            for name, value in attributes.items()
            if name in LOADING or name.startswith("on")
        ]
        assert loaded
        for name, value in loaded:
            wanted = r"#[a-z]+" if name == "href" else r"data:image/jpeg;base64,[A-Za-z0-9+/=]+"
            assert re.fullmatch(wanted, str(value)), (name, str(value)[:50])
        assert "http://" not in page
        assert "https://" not in page
        assert not re.search(r"@import|url\(|@font-face", page)

    def test_the_browser_is_told_to_load_nothing(self, page: str):
        (policy,) = (
            str(a["content"]) for _, a in Page(page).tags if "http-equiv" in a and "content" in a
        )
        assert policy.startswith("default-src 'none'; img-src data:;")

    def test_sections_that_are_linked_exist(self, page: str):
        tags = Page(page).tags
        ids = {a["id"] for _, a in tags if "id" in a}
        linked = {str(a["href"])[1:] for _, a in tags if "href" in a}
        assert len(linked) == 7
        assert linked <= ids

    def test_it_can_be_read_aloud(self, page: str):
        tags = Page(page).tags
        assert all(a.get("alt") for tag, a in tags if tag == "img")
        assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
        drawings = [a for tag, a in tags if tag == "svg"]
        assert drawings
        assert all(
            a.get("aria-hidden") or a.get("aria-label") or a.get("aria-labelledby")
            for a in drawings
        )
        assert tags[0] == ("html", {"lang": "en"})


class TestFigures:
    def test_every_number_is_one_of_the_json(self, report: MeasuredReport, page: str):
        numbers = {x for x in leaves(report.record) if isinstance(x, int | float)}
        data = Page(page).data
        assert len(data) > 100
        for value, text in data:
            number = float(value)
            assert number in numbers, value
            shown = float(text.replace("\N{MINUS SIGN}", "-"))
            decimals = len(text.partition(".")[2])
            fitting = [number * scale for scale in (1, 100, 1e-6)]
            assert min(abs(shown - f) for f in fitting) <= 0.5001 * 10**-decimals, (value, text)

    def test_no_number_stands_outside_of_them(self, report: MeasuredReport, page: str):
        """Digits elsewhere are part of a text of the JSON, or of the template itself."""
        template = " ".join(path.read_text() for path in TEMPLATES.glob("*.html"))
        known = " ".join(str(x) for x in leaves(report.record)) + template
        strange = [
            word
            for text in Page(page).text
            for word in re.findall(r"[\w.+-]*\d[\w.+-]*", text)
            if word.rstrip(".,") not in known
        ]
        assert strange == []

    def test_the_headline_is_there_for_every_candidate(self, report: MeasuredReport, page: str):
        cards = re.findall(r'<p class="big"><data value="([^"]+)">', page)
        figures = [c["accuracy"]["j_and_f"] for c in report.record["candidates"]]
        assert list(map(float, cards)) == figures

    @pytest.mark.parametrize(
        ("value", "options", "text"),
        [
            (0.85349, {}, "0.853"),
            (-0.0012, {"digits": 2, "scale": 100, "sign": True}, "−0.12"),
            (0.0012, {"digits": 2, "scale": 100, "sign": True}, "+0.12"),
            (-1e-9, {"sign": True}, "0.000"),
            (24_900_000, {"digits": 1, "scale": 1e-6}, "24.9"),
        ],
    )
    def test_formats(self, value, options, text):
        assert figure(value, **options) == f'<data value="{value!r}">{text}</data>'

    def test_what_is_not_known_is_a_dash(self):
        assert "data" not in figure(None)
        assert "–" in points(None)


class TestHostileTexts:
    def test_are_shown_and_not_obeyed(self, report: MeasuredReport):
        record = copy.deepcopy(report.record)
        record["title"] = record["commit"] = record["dataset"]["name"] = HOSTILE
        for side in (*record["references"], *record["candidates"]):
            side["label"] = HOSTILE
        for bundle in record["bundles"]:
            bundle["name"] = bundle["preset"] = HOSTILE
        for row in (*record["worst_frames"], *record["examples"]):
            row["expression"] = row["sequence"] = row["frame"] = HOSTILE
        parsed = Page(render_page(MeasuredReport(record, report.pictures)))
        assert "script" not in {tag for tag, _ in parsed.tags}
        assert not [a for _, a in parsed.tags if any(name.startswith("on") for name in a)]
        assert {str(a["src"])[:5] for tag, a in parsed.tags if tag == "img"} == {"data:"}
        whole = "".join(parsed.text)
        assert whole.count(HOSTILE) > 20
        assert "49" not in whole.replace(HOSTILE, "").split()


class TestRandomWeights:
    def test_nobody_can_miss_them(self, report: MeasuredReport, page: str):
        (banner,) = re.findall(r'<div class="banner" role="alert">(.*?)</div>', page, re.S)
        assert RANDOM_NOTE in banner
        assert page.index(banner) < page.index("<main>")
        for side in (*report.record["references"], *report.record["candidates"]):
            assert side["label"] in banner
        judged_parts = re.sub(r'<section id="speed">.*?</section>', "", page, flags=re.S)
        heads = re.findall(
            r'<th scope="(?:col|row)">[^<]*(?:fp32|PyTorch) ?(<span[^>]*>[^<]*)?', judged_parts
        )
        assert len(heads) == 9
        assert all("random weights" in badge for badge in heads)
        captions = re.findall(r"<figcaption>(?!\s*<ul)(.*?)</figcaption>", page)
        assert len(captions) == 16
        assert all(c == "annotation" or "random weights" in c for c in captions)

    def test_trained_weights_have_no_banner(self, report: MeasuredReport):
        record = copy.deepcopy(report.record)
        record |= {"random_weights": False, "warning": None}
        for side in (*record["references"], *record["candidates"]):
            side["random_weights"] = False
        for bundle in record["bundles"]:
            bundle["random_init_seed"] = None
        assert "andom weights" not in render_page(MeasuredReport(record, report.pictures)).lower()

    def test_pictures_say_so_themselves(self, report: MeasuredReport):
        row = report.record["worst_frames"][0]["picture"]
        drawn = picture(report.pictures[f"{row}-engine-0"])[-8:, :10]
        true = picture(report.pictures[f"{row}-annotation"])[-8:, :10]
        assert drawn.mean() < 10 < true.mean()


def picture(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


class TestMissingParts:
    def test_without_a_reference_the_page_says_why(self, report: MeasuredReport):
        record = copy.deepcopy(report.record)
        reason = "no weights: give --source FOLDER with a.safetensors"
        record["references"] = []
        for side in record["candidates"]:
            side |= {"reference": None, "reference_absent": reason, "difference": None}
            side["speed"]["reference"] = side["speed"]["speedup"] = None
        html = render_page(MeasuredReport(record, report.pictures))
        assert html.count(reason) == 3
        assert ">PyTorch<" not in html
        assert '<span class="delta">' not in html

    def test_what_was_not_run_is_named_with_the_reason(self, report: MeasuredReport):
        record = copy.deepcopy(report.record)
        record["not_run"] = [{"label": "b bf16", "reason": "ort-cpu has no bf16"}]
        html = render_page(MeasuredReport(record, report.pictures))
        assert re.search(r"<h3>b bf16</h3>\s*<p[^>]*>Not run: ort-cpu has no bf16\.", html)

    def test_without_speed(self, report: MeasuredReport):
        record = copy.deepcopy(report.record)
        for side in record["candidates"]:
            side["speed"] = None
        html = render_page(MeasuredReport(record, report.pictures))
        assert html.count("Nothing was timed.") == 2
        assert "Stages of" not in html


class TestDrawings:
    def test_faster_is_right_and_better_is_up(self, report: MeasuredReport):
        plot = scatter(report.record)
        assert plot is not None
        assert [p.key for p in plot.points] == ["reference-0", "engine-0", "engine-1"]
        by_speed = sorted(plot.points, key=lambda p: p.fps)
        assert [p.x for p in by_speed] == sorted(p.x for p in plot.points)
        by_accuracy = sorted(plot.points, key=lambda p: -p.j_and_f)
        assert [p.y for p in by_accuracy] == sorted(p.y for p in plot.points)
        for at in (*(p.x for p in plot.points), *(t.at for t in plot.x_ticks)):
            assert plot.left <= at <= plot.right
        for at in (*(p.y for p in plot.points), *(t.at for t in plot.y_ticks)):
            assert plot.top - 1e-6 <= at <= plot.bottom + 1e-6

    @pytest.mark.parametrize("fps", [(1.0,), (0.02, 900.0), (30.0, 30.0), (5.9, 6.1)])
    @pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
    def test_axes_always_have_marks(self, fps, accuracy):
        sides = [
            {
                "key": str(k),
                "label": "x",
                "variant": "v",
                "reference": None,
                "random_weights": False,
                "accuracy": {"j_and_f": accuracy},
                "speed": {"engine": {"fps": value}},
            }
            for k, value in enumerate(fps)
        ]
        plot = scatter({"references": [], "candidates": sides})
        assert plot is not None
        assert 1 <= len(plot.x_ticks) <= 20
        assert 2 <= len(plot.y_ticks) <= 7

    def test_stages_stand_end_to_end(self):
        stages = {"a": {"mean_ms": 3.0}, "b": {"mean_ms": 1.0}, "c": {"mean_ms": -0.1}}
        first, second, third = stage_bar(stages, 8.0)
        assert (first.x, first.width) == (0, BAR_WIDTH * 3 / 8)
        assert (second.x, second.width) == (first.width, BAR_WIDTH / 8)
        assert third.width == 0

    def test_right_too_much_and_missing_have_colours(self):
        true, mask = np.zeros((2, 40, 40), np.bool_)
        true[5:30, 5:20], mask[5:30, 12:35] = True, True
        void = np.zeros_like(true)
        void[:, 30:] = True
        frame = np.full((40, 40, 3), 120, np.uint8)
        drawn = judged(View(frame, true, void), mask)
        for (row, column), colour in {
            (5, 15): RIGHT,
            (5, 25): TOO_MUCH,
            (5, 8): MISSING,
            (5, 33): RIGHT,
            (35, 2): (120, 120, 120),
        }.items():
            assert tuple(drawn[row, column]) == colour
        line = outlined(View(frame, true, void))
        assert tuple(line[15, 4]) == RIGHT
        assert tuple(line[15, 10]) == (120, 120, 120)


class TestWriting:
    def test_page_and_json_lie_side_by_side(
        self, report: MeasuredReport, page: str, tmp_path: Path
    ):
        write_report(report, request((Path("b"),), tmp_path / "r.html"))
        assert (tmp_path / "r.html").read_text(encoding="utf-8") == page
        assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == report.record
        assert len(list(tmp_path.iterdir())) == 2

    def test_what_appeared_meanwhile_is_kept(self, report: MeasuredReport, tmp_path: Path):
        (tmp_path / "r.html").write_text("kept")
        with pytest.raises(OutputError, match=r"r\.html: exists already"):
            write_report(report, request((Path("b"),), tmp_path / "r.html"))
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
        assert (tmp_path / "r.html").read_text() == "kept"


class TestCommand:
    @pytest.fixture
    def call(self, monkeypatch: pytest.MonkeyPatch, capfd) -> Commands:
        return Commands(monkeypatch, capfd)

    @pytest.fixture
    def bundle(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return exported(tmp_path_factory, "tiny")

    def options(self, tmp_path: Path) -> list[object]:
        few = ["--num-videos", 1, "--speed-frames", 0, "--worst", 1, "--examples", 0]
        return ["--output", tmp_path / "r.html", *few]

    def test_table_and_then_json(self, call: Commands, bundle: Path, tmp_path: Path):
        done = call(main, "report", bundle, *self.options(tmp_path), "--title", "My title")
        assert done.code == 0, done.err
        warning, head, *rows = done.out.splitlines()
        assert warning == RANDOM_NOTE
        assert head.split() == ["J&F", "J", "F", "points", "frames/s"]
        assert rows[0].startswith("PyTorch ")
        assert rows[2:] == [str(tmp_path / "r.html"), str(tmp_path / "r.json")]
        assert "refsam-bench report: accuracy of PyTorch: 1/1" in done.err
        assert "<h1>My title</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")
        done = call(main, "report", bundle, *self.options(tmp_path), "--overwrite", "--json")
        assert done.code == 0
        assert done.out.count("\n") == 1
        assert json.loads(done.out) == json.loads((tmp_path / "r.json").read_text())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Missing argument 'BUNDLE...'"),
            (["absent"], "absent: no such folder; give the folder of a bundle"),
            (["BUNDLE", "--slices", "colour"], "no slice ['colour']; slices: attribute"),
            (["BUNDLE", "--dataset", "ref-davis", "--root", "no"], "no/meta_expressions/valid"),
            (["BUNDLE", "--variant", "int8"], "the bundle has no variant 'int8'; it has: fp32-"),
            (["BUNDLE", "--backend", "abacus"], "this version has no backend 'abacus'; it has:"),
        ],
    )
    def test_unusable_input(self, arguments, message, call: Commands, bundle: Path, tmp_path: Path):
        words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
        done = call(main, "report", *self.options(tmp_path), *words)
        assert done.code == 2
        assert message in done.err
        assert done.out == ""
        assert "Traceback" not in done.err
        assert list(tmp_path.iterdir()) == []

    def test_without_jinja2(self, call: Commands, tmp_path: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        done = call(main, "report", "absent", *self.options(tmp_path))
        assert done.code == 2
        assert 'pip install "refsam-trt[bench]"' in done.message
