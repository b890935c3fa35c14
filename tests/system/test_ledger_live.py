"""Ledger and alarms with real sockets: thieves, late starters, and a hundred thousand frames."""

import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import cbor2
import numpy as np
import pytest
import zmq

from helpers.daemons import free_port, get, running
from helpers.waiting import until
from quietbeam.core import ring
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.offline.sender import open_sender, ticks
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.ingest import Ingest
from quietbeam.testing.simulators import encoder, simulated_run
from quietbeam_plugins.sources.dectris import Dectris

IMAGES = np.random.default_rng(0).poisson(9, (16, 16, 16)).astype("u2")


def image(run, number):
    return Frame(
        run=run.run, index=number, time_ns=number, received_ns=0, pixels=IMAGES[number % 16]
    )


@contextmanager
def detector(rate_hz):
    """A detector that pushes Stream V2 until it is told to stop."""
    stop = threading.Event()
    with open_sender("tcp://127.0.0.1:0") as sender:
        encode = encoder("dectris-v2")
        run = simulated_run(IMAGES[0], 100_000, rate_hz)

        def send():
            for message in encode.start(run):
                sender.send(message)
            for number, _ in enumerate(ticks(rate_hz)):
                if stop.is_set():
                    break
                for message in encode.frame(image(run, number)):
                    sender.send(message)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield sender.address
        finally:
            stop.set()
            thread.join(20)


@contextmanager
def taking_in(source, path):
    """Ingest in a thread; gives its ledger and alarms."""
    ledger, alarms = Ledger(), Alarms()
    writer = ring.create(path, 1 << 20)
    ingest = Ingest(source, writer, ledger, lambda _run: {}, alarms)
    thread = threading.Thread(target=ingest.body)
    thread.start()
    try:
        yield ledger, alarms
    finally:
        ingest.stop()
        thread.join(20)
        writer.unlink()


def test_a_second_client_that_takes_frames_is_told_within_two_seconds(tmp_path):
    rate_hz = 50
    with (
        detector(rate_hz) as address,
        taking_in(Dectris(address=address), tmp_path / "ring") as (ledger, alarms),
        zmq.Context() as context,
    ):
        until(lambda: ledger.source().received >= 20, what="whole stream")
        assert alarms.active() == {}
        with context.socket(zmq.PULL) as thief:
            thief.connect(address)
            assert thief.poll(10_000)
            first_stolen = cbor2.loads(thief.recv())["image_id"]
            while not alarms.is_active("regular_gaps"):
                assert thief.poll(10_000)
                stolen = cbor2.loads(thief.recv())["image_id"]
                # the stream's own clock: this machine may be busy
                assert stolen - first_stolen < 2 * rate_hz, ledger.run()
        told = alarms.active()["regular_gaps"]["message"]
        assert "only one frame of 2 comes" in told
        assert ledger.run()["source"]["missing"] >= 8
        until(lambda: not alarms.is_active("regular_gaps"), what="end of the alarm")


@pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_detector_armed_right_after_the_start_never_loses_its_header(times):
    for turn in range(times):
        form = ("dectris-v1", "dectris-v1-flat", "dectris-v2")[turn % 3]
        client_first = turn % 2 == 0
        address = f"tcp://127.0.0.1:{free_port()}"
        arm = threading.Event()
        thread = threading.Thread(target=one_series, args=(form, address, arm))
        if not client_first:
            arm.set()
        thread.start()
        events = []
        with Dectris(address=address).open() as stream:
            for event in stream:
                arm.set()  # at the first sign of life, connected or not
                events += [] if event is None else [event]
                if isinstance(event, RunEnd):
                    break
        thread.join(20)
        assert [type(event) for event in events] == [RunStart, Frame, Frame, Frame, RunEnd], events
        assert events[0].frame_time_s == pytest.approx(0.01)  # only the header tells it
        assert events[-1].reason == "completed"


def one_series(form, address, arm):
    """Be a detector: bind, be armed, send three frames as fast as they go."""
    arm.wait(20)
    encode, run = encoder(form), simulated_run(IMAGES[0], 3, 100.0)
    with open_sender(address) as sender:
        messages = encode.start(run)
        for number in range(3):
            messages += encode.frame(image(run, number))
        for message in messages + encode.end(RunEnd(run=run.run, reason="completed")):
            assert sender.send(message, 20.0)


FRAMES = 100_000


def numbers_sent():
    """Frame numbers in the order they are sent: some never, some twice, some late."""
    for number in range(FRAMES):
        if number % 997 == 500:
            continue
        if number % 1009 == 600:  # overtaken by the next one
            yield number + 1
        yield number
        if number % 1013 == 700:
            yield number


def anonymous_memory_mib(pid):
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        found = re.search(r"RssAnon:\s+(\d+) kB", file.read())
    return int(found[1]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_a_hundred_thousand_frames_every_account_is_exact_and_memory_is_flat(tmp_path):
    sent = list(numbers_sent())
    unique = sorted(set(sent))
    seen, late, doubled = set(), 0, 0
    for number in sent:
        doubled += number in seen
        late += number not in seen and number < max(seen, default=-1)
        seen.add(number)
        seen = {max(seen), *(n for n in seen if n > number - 10)}  # the last few are enough
    sink = f'[[sinks]]\nkind = "hdf5"\ndirectory = "{tmp_path}"\nclean = true\nreserve_bytes = 0\n'
    options = {"sinks": sink, "more": "[trainer]\nenabled = false", "run_timeout_s": "10.0"}
    with running(tmp_path, **options) as daemon:
        memory = []
        all_came = threading.Event()
        sending = threading.Thread(target=send_numbers, args=(daemon.port, sent, all_came))
        sending.start()
        while not all_came.wait(1.0) and sending.is_alive():
            memory.append(anonymous_memory_mib(daemon.process.pid))
            if daemon.status()["frames"]["received"] == len(unique):
                all_came.set()
        sending.join()
        daemon.wait_for(lambda s: s["run"] is None and at_rest(s), 180.0, "everything at rest")
        ledger = json.loads(get(f"{daemon.url}/api/v1/ledger")[1])
        _, metrics = get(f"{daemon.url}/metrics")
        table = subprocess.run(
            [sys.executable, "-m", "quietbeam", "control", "ledger", "--config", daemon.config],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
        assert daemon.stop() == 0, daemon.log()
        print(json.dumps({name: ledger[name] for name in ("source", "stages", "outputs")}))
        print(table, "memory (MiB):", [round(value) for value in memory[:: len(memory) // 20 or 1]])
        summaries = daemon.events("run_account")

    source, stages, rings = ledger["source"], ledger["stages"], ledger["rings"]
    assert ledger["balanced"]
    assert source == {
        "received": len(unique),
        "late": late,
        "missing": FRAMES - len(unique),
        "duplicate": doubled,
        "foreign": 0,
        "after_end": 0,
        "rejected": {"duplicate": doubled},
    }
    assert late > 50
    assert doubled > 50
    for account in (*stages.values(), *ledger["outputs"].values()):
        assert account["in_flight"] == 0
        assert account["received"] == account["sent"] + sum(account["dropped"].values())
    assert len(unique) == stages["ingest"]["received"] == stages["ingest"]["sent"]
    assert stages["denoise"]["received"] == stages["ingest"]["sent"] == rings["raw"]["frames"]
    assert stages["publish"]["received"] == stages["denoise"]["sent"]
    assert stages["publish"]["sent"] == rings["clean"]["frames"]
    assert ledger["outputs"]["hdf5.0:raw"]["received"] == rings["raw"]["frames"]
    assert ledger["outputs"]["hdf5.0:clean"]["received"] == rings["clean"]["frames"]

    [run] = ledger["runs"]
    gaps = [n for a, b in run["missing_ranges"] for n in range(a, b + 1)]
    assert gaps == sorted(set(range(FRAMES)) - set(unique))
    assert run["source"] == source
    assert run["stages"] == stages
    [summary] = summaries
    assert (summary["received"], summary["missing"]) == (len(unique), len(gaps))
    assert summary["stages"] == stages
    for line in (
        f"quietbeam_frames_duplicate_total {float(doubled)}",
        f"quietbeam_frames_late_total {float(late)}",
        f"quietbeam_frames_missing_total {float(len(gaps))}",
        f'quietbeam_stage_frames_out_total{{stage="denoise"}} {float(stages["denoise"]["sent"])}',
        'quietbeam_stage_frames_in_flight{stage="hdf5.0:raw"} 0.0',
    ):
        assert line in metrics.decode()
    assert "balanced: yes" in table
    third = len(memory) // 3
    assert max(memory[-third:]) - max(memory[third : 2 * third]) < 10


def at_rest(status):
    accounts = (*status["ledger"].values(), *status["output_accounts"].values())
    return status["ledger"] and all(account["in_flight"] == 0 for account in accounts)


def send_numbers(port, numbers, all_came, rate_hz=1000.0):
    """Push frames of these numbers, in this order; a detector does not leave after a series."""
    encode, run = encoder("array-1.0"), simulated_run(IMAGES[0], len(numbers), rate_hz)
    with open_sender(f"tcp://127.0.0.1:{port}", bind=False) as sender:
        for number, _ in zip(numbers, ticks(rate_hz), strict=False):
            for message in encode.frame(image(run, number)):
                assert sender.send(message, 60.0)
        assert all_came.wait(60.0)
