"""What is shown of the ledger: the log line of a run, the table, the dashboard."""

import io
import time

from rich.console import Console
from structlog.testing import capture_logs

from helpers.snapshots import snapshot
from quietbeam.cli._dashboard import Dashboard
from quietbeam.cli._ledger import print_ledger
from quietbeam.core.ledger import Ledger
from quietbeam.service.accounts import RunLog, stages_account

ALARM = {"run": "a", "message": "only one frame of 2 comes", "since_unix_s": 1.0}


def ledger_of_two_runs():
    ledger = Ledger()
    for run, numbers in {"a": (0, 1, 5, 7), "b": (0,)}.items():
        ledger.begin(run, expected=8, first=0)
        for number in numbers:
            ledger.came(number)
            ledger.received("ingest", run=run)
            ledger.sent("ingest", run=run)
        if run == "a":
            ledger.end("completed")
    return ledger


def told(ledger, **how):
    with capture_logs() as logs:
        RunLog(ledger).tell(**how)
    return logs


def test_a_run_is_told_once_and_only_when_nothing_of_it_is_in_flight():
    ledger = ledger_of_two_runs()
    log = RunLog(ledger)
    with capture_logs() as logs:
        log.tell()
        assert logs == []  # still in the ring
        ledger.received("denoise", 4, run="a")
        log.tell()
        assert logs == []
        ledger.sent("denoise", 4, run="a")
        log.tell()
        log.tell()
    [line] = logs
    assert (line["event"], line["run"], line["reason"]) == ("run_account", "a", "completed")
    assert (line["received"], line["missing"], line["frames_expected"]) == (4, 4, 8)
    assert line["stages"]["denoise"]["sent"] == 4


def test_a_run_of_which_nothing_moves_any_more_is_told_as_it_is():
    ledger = ledger_of_two_runs()
    log = RunLog(ledger, patience_s=0.3)
    with capture_logs() as logs:
        began_s = time.monotonic()
        while not logs:  # first its frames still come, then they do not
            moves = time.monotonic() - began_s < 1.0
            ledger.received("denoise", int(moves), run="a")
            log.tell()
            assert not (moves and logs)
            time.sleep(0.01)
    assert logs[0]["stages"]["denoise"]["in_flight"] > 10


def test_a_daemon_that_stops_tells_what_is_left():
    ledger = ledger_of_two_runs()
    ledger.received("denoise", 4, run="a")
    assert told(ledger) == []
    [line] = told(ledger, now=True)
    assert line["stages"]["denoise"]["in_flight"] == 4


def test_the_table_shows_alarms_stages_outputs_runs_and_what_never_came(capsys):
    ledger = ledger_of_two_runs()
    ledger.dropped("denoise", "overload", 3)
    ledger.received("denoise", 3)
    print_ledger(
        {
            "balanced": True,
            "alarms": {"regular_gaps": ALARM},
            "source": ledger.source().as_dict(),
            "stages": stages_account(ledger),
            "outputs": {"hdf5.0:raw": {"received": 5, "sent": 4, "dropped": {}, "in_flight": 1}},
            "run": None,
            "runs": ledger.runs_over(),
        }
    )
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "ALARM regular_gaps (a): only one frame of 2 comes"
    rows = [line.split() for line in shown]
    assert ["denoise", "3", "0", "0", "overload", "3"] in rows
    assert ["hdf5.0:raw", "5", "4", "1", "-"] in rows
    assert ["a", "completed", "4", "0", "4", "0", "0", "0", "8"] in rows
    assert shown[-1] == "never came in a: 6, 2-4"


def test_the_dashboard_shows_alarms_and_what_did_not_come_as_it_should():
    run = ledger_of_two_runs().run()
    console = Console(file=io.StringIO(), width=160)
    status = snapshot(run=run, pipeline={}, alarms={"regular_gaps": ALARM})
    console.print(Dashboard("demo", 10).draw(status, 1))
    shown = console.file.getvalue()
    assert "only one frame of 2 comes" in shown
    assert "1 frames, late 2, duplicate 1" in shown
