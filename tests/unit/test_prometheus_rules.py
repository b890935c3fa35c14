"""Alert rules and dashboard as files: valid, tested, complete, and about metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from helpers.snapshots import snapshot
from quietbeam.service.telemetry import Telemetry

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
BOARD = json.loads((DEPLOY / "grafana/quietbeam.json").read_text())
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def promtool(*words, given=None):
    return subprocess.run(
        [PROMTOOL, *words],
        cwd=RULES, input=given, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def panels():
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def expressions():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def scrape():
    return generate_latest(Telemetry(snapshot).registry).decode()


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
)
def test_prometheus_takes_the_rules_and_they_pass_their_own_tests(words):
    done = promtool(*words)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rule_tests_can_fail(tmp_path):
    for name in ("rules.yml", "rules_test.yml"):
        (tmp_path / name).write_text((RULES / name).read_text().replace("> 20", "> 2000000"))
    assert promtool("test", "rules", str(tmp_path / "rules_test.yml")).returncode != 0


@needs_promtool
def test_the_metrics_keep_the_rules_of_naming():
    done = promtool("check", "metrics", given=scrape())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_alert_has_a_test_a_severity_and_a_mend():
    rules, tests = (RULES / "rules.yml").read_text(), (RULES / "rules_test.yml").read_text()
    alerts = rules.split("- alert: ")[1:]
    names = [alert.split("\n")[0] for alert in alerts]
    assert len(names) == len(set(names)) >= 12
    told = tests.replace("Quietbeam(TrainerDown|DiskFillsSoon|LatencyHigh)", "")
    assert [name for name in names if name not in told] == []
    for alert in alerts:
        assert re.search(r"severity: (critical|warning)", alert)
        assert "summary:" in alert
        assert "mend:" in alert


@pytest.mark.parametrize("text", [(RULES / "rules.yml").read_text(), *expressions()])
def test_rules_and_panels_speak_of_metrics_that_exist(text):
    known = set(re.findall(r"^# TYPE (\w+)", scrape(), re.MULTILINE))
    used = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"quietbeam_\w+", text)
    }
    assert used
    assert used - known == set()


def test_panels_have_units_places_and_a_data_source_that_can_be_chosen():
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    places = [tuple(panel["gridPos"].values()) for panel in BOARD["panels"]]
    assert len(places) == len(set(places))
