"""The report: one file, nothing from outside, the same bytes for the same content."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from quietbeam.core.errors import SinkError
from quietbeam.offline.report import Report


def _figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1, 4])
    return figure


def _report() -> Report:
    report = Report("Cell <7>", {"program": "quietbeam 0", "recipe": {"seed": 1}})
    report.heading("Profiles & maps")
    report.text("First.\n\nSecond <b>.")
    report.warning("the open beam is missing")
    report.figure(_figure(), 'Along "x"', alt="a rising line")
    report.table([("a", 1.23456), ("b", float("nan"))], ("region", "mean"), "Regions")
    return report


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_report_is_one_file_that_asks_nothing_of_the_network(tmp_path: Path):
    path = tmp_path / "made" / "report.html"
    _report().write(path)
    parser = _Tags()
    parser.feed(path.read_text())
    links = [a.get("src") or a.get("href") for _, a in parser.found if "src" in a or "href" in a]
    assert len(links) == 1
    assert all(link is not None and link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"url\(|@import|https?://", path.read_text())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    _report().write(tmp_path / "a.html")
    again = _report()
    again.write(tmp_path / "b.html")
    again.write(tmp_path / "c.html")
    a, b, c = ((tmp_path / f"{name}.html").read_bytes() for name in "abc")
    assert a == b == c


def test_texts_are_shown_as_they_are(tmp_path: Path):
    _report().write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<title>Cell &lt;7&gt;</title>" in page
    assert "<p>First.</p>\n<p>Second &lt;b&gt;.</p>" in page
    assert 'alt="a rising line"' in page
    assert "<td>recipe.seed</td>" in page
    assert '<td class="number">1.235</td>' in page
    assert '<td class="number">–</td>' in page


def test_a_row_that_does_not_fit_its_header_is_refused():
    with pytest.raises(ValueError, match="row of 1 cells under a header of 2"):
        Report("t", {}).table([("a",)], ("x", "y"), "c")


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"file/report\.html: cannot be written"):
        _report().write(tmp_path / "file" / "report.html")
