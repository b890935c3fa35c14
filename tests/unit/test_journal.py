"""Events as entries of the journal, read from a real socket as journald would."""

import os
import socket
import struct
import tempfile

import structlog

from quietbeam.service import journal
from quietbeam.service.journal import MESSAGE_IDS, Journal, entry, goes_to_journal


def fields(datagram):
    """Read the protocol: ``KEY=value`` lines, or KEY, a length and that many bytes."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        key, is_text, value = line.partition(b"=")
        if not is_text:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[key.decode()] = value.decode()
        datagram = rest
    return found


def test_every_value_is_a_field_of_its_own():
    found = fields(
        entry("warning", {"event": "run_ended", "stage": "raw", "frames": 3, "ok": None})
    )
    assert found["EVENT"] == "run_ended"
    assert found["MESSAGE"] == "run_ended stage=raw frames=3 ok=null"
    assert (found["PRIORITY"], found["STAGE"], found["FRAMES"], found["OK"]) == (
        "4", "raw", "3", "null",
    )  # fmt: skip
    assert found["MESSAGE_ID"] == MESSAGE_IDS["run_ended"]


def test_lines_breaks_and_odd_names_cannot_forge_a_field():
    found = fields(
        entry("info", {"event": "x", "reason": "a\nPRIORITY=0", "priority": 9, "_pid": 1, "ä b": 2})
    )
    assert found["REASON"] == "a\nPRIORITY=0"
    assert (found["PRIORITY"], found["PRIORITY_"], found["PID"]) == ("6", "9", "1")
    assert all(key.isascii() and not key.startswith("_") for key in found)


def test_ids_are_different_and_well_formed():
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    assert all(len(bytes.fromhex(number)) == 16 for number in MESSAGE_IDS.values())


def test_only_the_stream_that_journald_reads_is_the_journal():
    with tempfile.TemporaryFile() as file:
        found = os.fstat(file.fileno())
        told = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert goes_to_journal(file.fileno(), told)
        assert not goes_to_journal(file.fileno(), {"JOURNAL_STREAM": "1:2"})
        assert not goes_to_journal(file.fileno(), {})


def test_events_go_to_the_journal_and_what_cannot_goes_on_as_a_line(tmp_path, monkeypatch):
    from quietbeam.service.logs import configure

    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    with (
        (tmp_path / "log").open("w+") as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held,
    ):
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        held.bind(str(tmp_path / "socket"))
        held.settimeout(10)
        try:
            configure("auto", "info", stream)
            structlog.get_logger().warning("disk_full", free_bytes=3)
            assert fields(held.recv(65536))["FREE_BYTES"] == "3"
            held.close()
            structlog.get_logger().error("nobody_listens")
        finally:
            structlog.reset_defaults()
        stream.seek(0)
        [line] = stream.read().splitlines()
        assert line.startswith("<3>{")
        assert "nobody_listens" in line


def test_a_journal_that_is_gone_does_no_harm(tmp_path):
    assert not Journal(str(tmp_path / "nobody")).send("info", {"event": "x"})
