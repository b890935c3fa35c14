"""The table of process variables, and everything that is written from it."""

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pydantic import ValidationError

from quietbeam.core.errors import SinkError
from quietbeam_plugins.sinks.epics import screens
from quietbeam_plugins.sinks.epics.capture import Capture
from quietbeam_plugins.sinks.epics.pv import DESC_CHARS, Limits, camel, check
from quietbeam_plugins.sinks.epics.sink import Epics
from quietbeam_plugins.sinks.epics.table import FIXED, table

METRICS = {
    "quality.psnr_raw_db": {"unit": "dB", "description": "PSNR", "shape": []},
    "statistics.profile": {"unit": "count", "description": "A profile", "shape": [16]},
}


def test_every_name_is_unique_short_and_described():
    assert list(check(table(METRICS), "BL99-DEN:DEN1:")) == []
    for pv in table(METRICS):
        assert 0 < len(pv.description) <= DESC_CHARS, pv.name
        assert len(pv.severities) in {0, len(pv.choices)}, pv.name
        assert all(len(choice) <= 25 for choice in pv.choices), pv.name
        assert (pv.access == "r") == (not pv.write), pv.name


def test_names_in_the_pvi_tree_are_unique_words():
    names = [pv.snake for pv in table(METRICS)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name == name.lower() for name in names)


def test_a_metric_is_a_pv_a_latched_pv_and_carries_its_limits():
    limits = {"quality.psnr_raw_db": Limits(low=3.0)}
    found = {pv.name: pv for pv in table(METRICS, limits)}
    assert camel("quality.psnr_raw_db") == "QualityPsnrRawDb"
    assert found["QualityPsnrRawDb_RBV"].alarm == Limits(low=3.0)
    assert found["Snap:QualityPsnrRawDb_RBV"].unit == "dB"
    assert found["StatisticsProfile_RBV"].length == 16
    assert "Snap:StatisticsProfile_RBV" not in found


@pytest.mark.parametrize("prefix", ["DEN1", "a b:", "X" * 50 + ":"])
def test_a_prefix_that_epics_would_not_take_is_refused(prefix):
    with pytest.raises(ValidationError):
        Epics(prefix=prefix)


def test_the_readme_shows_the_table_as_it_is():
    readme = Path(screens.HERE / "README.md").read_text()
    assert screens.with_table(readme) == readme


@pytest.mark.skipif(importlib.util.find_spec("pvi") is None, reason="needs pvi: extra dev")
def test_the_screens_are_those_of_the_table(tmp_path):
    screens.write_screens(tmp_path)
    kept = screens.HERE / "phoebus"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in kept.iterdir())
    shown = set()
    for name in names:
        assert (kept / name).read_text() == (tmp_path / name).read_text(), name
        shown |= {node.text for node in ET.parse(kept / name).iter("pv_name")}
    records = {f"$(P){pv.name}" for pv in FIXED if pv.is_record and pv.kind != "array"}
    assert records <= shown


@pytest.mark.parametrize(
    ("name", "value"), [("path", "/etc"), ("path", "../.."), ("name", "../x"), ("name", "/etc/x")]
)
def test_no_file_is_made_outside_the_root(tmp_path, name, value):
    capture = Capture(tmp_path / "root", {})
    (tmp_path / "root").mkdir()

    def use() -> None:
        capture.set(name, value)
        capture.open()

    with pytest.raises(SinkError):
        use()
    assert capture.value("status") == 1
    assert capture.value("message")
    assert not capture.value("open")


def test_a_link_does_not_lead_out_of_the_root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "way").symlink_to(tmp_path)
    with pytest.raises(SinkError, match="below"):
        Capture(tmp_path / "root", {}).set("path", str(tmp_path / "root" / "way"))
