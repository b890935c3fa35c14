"""Notifications to systemd, read from a real socket; logs."""

import io
import json
import os
import socket
from contextlib import contextmanager

import structlog

from quietbeam.service.logs import configure
from quietbeam.service.systemd import Notifier


@contextmanager
def systemd(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(2)
        yield lambda: dict(line.split("=", 1) for line in receiver.recv(4096).decode().split("\n"))


def test_every_state_is_one_message(tmp_path):
    with systemd(tmp_path / "notify") as received:
        notifier = Notifier(
            {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000"}
        )
        assert notifier.watchdog_s == 20
        notifier.ready("reading")
        assert received() == {"READY": "1", "STATUS": "reading"}
        notifier.ping()
        assert received() == {"WATCHDOG": "1"}
        assert notifier.last_ping_s is not None
        notifier.reloading()
        assert set(received()) == {"RELOADING", "MONOTONIC_USEC"}
        notifier.stopping("draining")
        assert received()["STOPPING"] == "1"


def test_without_systemd_nothing_happens():
    notifier = Notifier({})
    notifier.ready("x")
    assert notifier.watchdog_s is None


def test_a_systemd_that_is_gone_does_no_harm(tmp_path):
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")


def test_a_watchdog_for_another_process_is_not_ours():
    assert Notifier({"WATCHDOG_USEC": "1", "WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_s is None


def test_logs_are_json_where_no_person_reads_and_never_fail():
    stream = io.StringIO()
    try:
        configure("auto", "info", stream)
        log = structlog.get_logger()
        log.debug("not_shown")
        log.warning("disk_full", free_bytes=3)
        [line] = stream.getvalue().splitlines()
        entry = json.loads(line)
        assert (entry["event"], entry["free_bytes"], entry["level"]) == ("disk_full", 3, "warning")
        stream.close()
        log.error("nobody_listens")
    finally:
        structlog.reset_defaults()
