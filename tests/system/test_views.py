"""Views: processes that serve clients, outlive the daemon and find its successor."""

import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.daemons import config_text, free_port, get, send_frames, started
from helpers.view_toys import installed
from helpers.waiting import until


class Page:
    """What the toy view has written down."""

    def __init__(self, path):
        self.path = path

    def lines(self, **wanted):
        if not self.path.exists():
            return []
        whole = self.path.read_text().rpartition("\n")[0].splitlines()
        return [e for e in map(json.loads, whole) if wanted.items() <= e.items()]

    def having(self, *keys):
        return [line for line in self.lines() if set(keys) <= set(line)]

    def frames(self, kind):
        return [line["index"] for line in self.lines(item=kind)]

    def pid(self):
        return self.lines(serving=True)[-1]["pid"]

    def ask(self, name, **arguments):
        """Have the view give a command; give what it was answered."""
        before = len(self.having("answer")) + len(self.having("refused"))
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps([name, arguments]))
        part.rename(self.path.with_suffix(".todo"))
        told = lambda: self.having("answer") + self.having("refused")  # noqa: E731
        until(lambda: len(told()) > before, 20, f"an answer to {name}")
        return [line for line in self.lines() if {"answer", "refused"} & set(line)][-1]


@pytest.fixture
def page(tmp_path):
    found = Page(tmp_path / "page.jsonl")
    yield found
    for line in found.lines(serving=True):  # whatever a test has left
        command = Path(f"/proc/{line['pid']}/cmdline")
        if command.exists() and b"view_process" in command.read_bytes():
            os.kill(line["pid"], signal.SIGKILL)


@contextmanager
def viewed(tmp_path, page, more=""):
    port = free_port()
    sinks = f'[[sinks]]\nkind = "notebook"\npage = "{page.path}"\n{more}'
    text = config_text(tmp_path, port, sinks=sinks, more="[trainer]\nenabled = false")
    with started(tmp_path, text, port, installed(tmp_path)) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60.0, "state running")
        yield daemon


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_view_is_given_both_rings_once_a_status_and_the_daemons_commands(tmp_path, page):
    with viewed(tmp_path, page) as daemon:
        until(lambda: page.lines(connected=True), 20, "a connected view")
        send_frames(daemon.port, 12, rate_hz=50.0)
        until(lambda: page.lines(item="RunEnd"), 20, "the end of the run")
        assert page.frames("Frame") == page.frames("Result") == list(range(12))
        assert len(page.lines(item="RunStart")) == len(page.lines(item="RunEnd")) == 1

        answer = page.ask("train_freeze")["answer"]
        assert answer["frozen_by"] == ["operator"]
        assert "no command 'fly'" in page.ask("fly")["refused"]
        (logged,) = daemon.events("control_command")
        assert (logged["command"], logged["who"]) == ("train_freeze", "notebook.0")

        status = daemon.wait_for(
            lambda s: s["views"]["notebook.0"]["dropped_total"].get("asked") == 2, what="an account"
        )
        view = status["views"]["notebook.0"]
        assert (view["up"], view["given_total"]) == (True, 24)
        clean = status["output_accounts"]["notebook.0:clean"]
        assert (clean["received"], clean["sent"], clean["in_flight"]) == (12, 12, 0)
        assert status["generation"]["number"] == 1
        metrics = get(f"{daemon.url}/metrics")[1].decode()
        assert 'quietbeam_view_up{view="notebook.0"} 1.0' in metrics
        pid = page.pid()
        assert daemon.stop() == 0
    until(lambda: not alive(pid), 5, "the end of the view")
    assert page.lines(ended=True)


def test_a_view_outlives_a_killed_daemon_and_its_successor_takes_it_over(tmp_path, page):
    with viewed(tmp_path, page) as first:
        until(lambda: page.lines(connected=True, generation=1), 20, "a connected view")
        pid = page.pid()
        killed = time.time()
        first.process.kill()
        first.process.wait(10)
        until(lambda: page.lines(connected=False, generation=1), 5, "the view's notice")
        (noticed,) = page.lines(connected=False, generation=1)
        assert noticed["at"] - killed < 2.0
        assert "not there" in page.ask("train_freeze")["refused"]
    with viewed(tmp_path, page) as second:
        until(lambda: page.lines(connected=True, generation=2), 20, "the successor")
        second.wait_for(lambda s: s["views"]["notebook.0"]["up"], what="the view up")
        assert second.status()["children"]["notebook.0"]["pid"] == pid
        assert len(page.lines(serving=True)) == 1
        send_frames(second.port, 6, rate_hz=50.0)
        until(lambda: len(page.frames("Result")) == 6, 20, "frames of the successor")
        assert page.ask("train_freeze")["answer"]["frozen_by"] == ["operator"]
        assert second.stop() == 0
    until(lambda: not alive(pid), 5, "the end of the view")


@pytest.mark.slow
def test_a_successor_with_other_settings_replaces_the_view(tmp_path, page):
    with viewed(tmp_path, page) as first:
        until(lambda: page.lines(connected=True), 20, "a connected view")
        pid = page.pid()
        first.process.kill()
        first.process.wait(10)
    with viewed(tmp_path, page, "slow_s = 0.001") as second:
        until(lambda: page.lines(connected=True, generation=2), 20, "the successor's view")
        assert page.pid() != pid
        assert not alive(pid)
        assert second.stop() == 0


@pytest.mark.slow
def test_a_view_whose_daemon_never_comes_back_ends_by_itself(tmp_path, page):
    with viewed(tmp_path, page, "linger_s = 0.7") as daemon:
        until(lambda: page.lines(connected=True), 20, "a connected view")
        daemon.process.kill()
        daemon.process.wait(10)
        until(lambda: page.lines(ended=True), 10, "the end of the view")
    until(lambda: not alive(page.pid()), 5, "the end of its process")


@pytest.mark.slow
def test_a_crashed_view_is_started_again_and_a_slow_one_misses_frames_by_count(tmp_path, page):
    with viewed(tmp_path, page, "slow_s = 0.02\ncrash_on = 3") as daemon:
        until(lambda: page.lines(connected=True), 20, "a connected view")
        send_frames(daemon.port, 300, rate_hz=400.0)
        until(lambda: len(page.lines(serving=True)) == 2, 20, "a second process")

        def settled(status):
            account = status["output_accounts"]["notebook.0:clean"]
            source = status["frames"]
            return status["children"]["notebook.0"]["restarts"]["exit"] and (
                account["in_flight"] == 0 and source["received"] == 300
            )

        status = daemon.wait_for(settled, 30.0, "a settled account")
        clean = status["output_accounts"]["notebook.0:clean"]
        assert clean["received"] == clean["sent"] + sum(clean["dropped"].values())
        assert sum(clean["dropped"].values()) > 0
        assert status["ledger"]["ingest"]["sent"] == 300
        assert daemon.stop() == 0
