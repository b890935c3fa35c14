"""Images at speed: two viewers, and one that is stopped."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.ioc import PREFIX, Ports
from helpers.waiting import until

CLIENTS = ("softioc", "p4p", "pvaccess")
MISSING = [name for name in CLIENTS if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: extra dev"),
]
SIDE = 512

_P4P = """
import json, sys, time
from p4p.client.thread import Context
name, seconds, queue = sys.argv[1], float(sys.argv[2]), sys.argv[3]
got = []
def take(image):
    now = time.time()
    stamp = image.timeStamp.secondsPastEpoch + image.timeStamp.nanoseconds * 1e-9
    got.append((image.uniqueId, now - stamp, image.value.nbytes))
with Context("pva", nt=False) as pva:
    subscription = pva.monitor(name, take, request=f"record[queueSize={queue}]")
    deadline = time.monotonic() + 60
    while len(got) < 20 and time.monotonic() < deadline: time.sleep(0.01)
    del got[:]
    print("ready", flush=True)
    time.sleep(seconds)
    subscription.close()
print(json.dumps(got), flush=True)
"""
_PVAPY = """
import json, os, sys, time
import pvaccess
name, seconds = sys.argv[1], float(sys.argv[2])
got = []
def take(image):
    now = time.time()
    stamp = image["timeStamp"]
    at = stamp["secondsPastEpoch"] + stamp["nanoseconds"] * 1e-9
    got.append((image["uniqueId"], now - at, image["uncompressedSize"]))
channel = pvaccess.Channel(name)
channel.setMonitorMaxQueueLength(40)
channel.subscribe("m", take)
channel.startMonitor("record[queueSize=40]field()")
deadline = time.monotonic() + 60
while len(got) < 20 and time.monotonic() < deadline: time.sleep(0.01)
del got[:]
print("ready", flush=True)
time.sleep(seconds)
print(json.dumps(list(got)), flush=True)
os._exit(0)
"""


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def stream(rate_hz, ports):
    settings = {"prefix": PREFIX, "ca_port": ports.ca, "pva_port": ports.pva, "image_hz": 0}
    settings |= {"image_port": ports.image, "pva_broadcast_port": ports.broadcast}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "helpers.ioc_stream"),
            *(json.dumps(settings), str(SIDE), str(rate_hz)),
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    try:
        until(lambda: answers(ports.image), 60, "the IOC")
        yield process
    finally:
        process.stdin.close()
        tail = process.stderr.read()
        process.wait(20)
        process.stderr.close()
        assert process.returncode == 0, tail[-2000:]
        sys.stdout.write(f"server: {tail.splitlines()[-1]}\n")


def viewer(code, ports, seconds, queue=40):
    return subprocess.Popen(
        [sys.executable, "-c", code, f"{PREFIX}Pva1:Image", str(seconds), str(queue)],
        env={**os.environ, **ports.environment()},
        stdout=subprocess.PIPE,
        text=True,
    )


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def judged(got, seconds, rate_hz):
    """Give gaps and the 99th percentile of latency, printed for the record."""
    ids, late = [one[0] for one in got], sorted(one[1] for one in got)
    gaps = sum(b - a - 1 for a, b in pairwise(ids))
    p50, p99 = late[len(late) // 2] * 1e3, late[int(len(late) * 0.99)] * 1e3
    sys.stdout.write(
        f"{len(got)} images of {rate_hz * seconds:.0f}, {gaps} missed, "
        f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms\n"
    )
    return gaps, p99


def test_two_viewers_get_every_image_of_100_hz_for_30_s():
    ports, seconds, rate_hz = Ports(), 30.0, 100.0
    with stream(rate_hz, ports), viewer(_P4P, ports, seconds) as one:
        with viewer(_PVAPY, ports, seconds) as other:
            told = [viewed.communicate(timeout=110)[0] for viewed in (one, other)]
        for answer in told:
            ready, got = answer.splitlines()
            assert ready == "ready"
            got = json.loads(got)
            gaps, _ = judged(got, seconds, rate_hz)
            assert gaps == 0
            assert len(got) > 100
            assert {one[2] for one in got} <= {SIDE * SIDE * 4, SIDE * SIDE}


def test_a_stopped_viewer_costs_the_other_one_nothing():
    ports, seconds, rate_hz = Ports(), 20.0, 30.0
    with stream(rate_hz, ports) as server, viewer(_P4P, ports, 1e6, queue=4) as stopped:
        try:
            assert stopped.stdout.readline() == "ready\n"
            with viewer(_P4P, ports, seconds) as other:
                assert other.stdout.readline() == "ready\n"
                before = resident_bytes(server.pid)
                stopped.send_signal(signal.SIGSTOP)
                got = json.loads(other.communicate(timeout=110)[0])
            gaps, _ = judged(got, seconds, rate_hz)
            assert gaps == 0
            assert len(got) > 100
            assert resident_bytes(server.pid) - before < 16 * SIDE * SIDE * 4
        finally:
            stopped.kill()
