"""One publisher; a subscriber that reads at once, one that is too slow, and one that is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from helpers.waiting import until
from quietbeam.core.events import Frame, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.registry import find

Zmq = find("sinks", "zmq", SinkPlugin)
RATE_HZ = 50
PIXELS = np.random.default_rng(0).poisson(9, (128, 128)).astype(np.uint16)
_SUBSCRIBER = """
import json, sys, time, zmq
address, path, pause_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
socket = zmq.Context().socket(zmq.SUB)
socket.set(zmq.RCVHWM, 8 if pause_s else 1000)
socket.subscribe(b"")
socket.connect(address)
with open(path, "w") as file:
    while True:
        told = json.loads(socket.recv_multipart()[0])
        print(told["seq"], time.monotonic_ns() - told["time_ns"], file=file, flush=True)
        time.sleep(pause_s)
"""


@contextmanager
def subscribing(address, path, pause_s=0.0):
    """A subscriber in a process of its own; it writes down seq and latency in ns."""
    command = [sys.executable, "-c", _SUBSCRIBER, address, str(path), str(pause_s)]
    with subprocess.Popen(command) as process:
        try:
            until(path.exists)
            yield process
        finally:
            process.kill()


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


class Publisher:
    """Publishes at a steady rate; remembers how much memory there was."""

    def __init__(self, sink):
        self._sink = sink
        self.sent, self.memory = 0, []

    def publish(self, seconds):
        """Give the first and the last seq."""
        first, due_s = self._sink.seq + 1, time.monotonic()
        for _ in range(round(seconds * RATE_HZ)):
            due_s += 1 / RATE_HZ
            time.sleep(max(0.0, due_s - time.monotonic()))
            now = time.monotonic_ns()
            told = {"run": "r", "index": self.sent, "time_ns": now, "received_ns": now}
            assert self._sink.raw(Frame(**told, pixels=PIXELS)) is None
            self.sent += 1
            if self.sent % RATE_HZ == 0:
                self.memory.append(resident_mib())
        return first, self._sink.seq


def read(path):
    """By seq: the latency in ms."""
    rows = [line.split() for line in path.read_text().splitlines() if line.count(" ") == 1]
    return {int(seq): int(ns) / 1e6 for seq, ns in rows}


def p99(latency_ms, span):
    return float(
        np.percentile([ms for seq, ms in latency_ms.items() if span[0] <= seq <= span[1]], 99)
    )


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("seconds", [60, 600])
def test_a_slow_and_a_stopped_subscriber_cost_neither_memory_nor_anybody_elses_time(
    tmp_path, seconds
):
    good, slow, stopped = (tmp_path / name for name in ("good", "slow", "stopped"))
    alone_s = 30.0  # before and after
    # A second of room, so that a busy machine does not cost the good one a frame.
    with Zmq(address="tcp://127.0.0.1:*", what="raw", queue_messages=64).open() as sink:
        sink.start(RunStart(run="r", shape=PIXELS.shape, dtype=PIXELS.dtype))
        publisher = Publisher(sink)
        with subscribing(sink.address, good):
            until(
                lambda: (
                    sink.raw(Frame(run="r", index=0, time_ns=0, received_ns=0, pixels=PIXELS))
                    is None
                )
            )
            before = publisher.publish(alone_s)
            with subscribing(sink.address, slow, 1.0), subscribing(sink.address, stopped) as dead:
                dead.send_signal(signal.SIGSTOP)
                began = len(publisher.memory)
                during = publisher.publish(seconds)
                memory = publisher.memory[began:]
            after = publisher.publish(alone_s)
            until(lambda: read(good).get(after[1]) is not None)
    latency_ms = read(good)
    spans = {"before": before, "during": during, "after": after}
    print(json.dumps({
        "frames": publisher.sent,
        "p99_ms": {name: round(p99(latency_ms, span), 2) for name, span in spans.items()},
        "resident_mib": [round(value, 1) for value in memory[:: len(memory) // 10 or 1]],
        "slow_one_got": len(read(slow)),
    }))  # fmt: skip
    assert set(range(before[0], after[1] + 1)) <= set(latency_ms)  # it lost nothing
    settled = memory[5:]
    assert max(settled) < 1.05 * settled[0]
    numbers = sorted(read(slow))
    if seconds >= 600:  # by then it has read what TCP kept for it, and sees its own gaps
        assert max(np.diff(numbers)) > RATE_HZ / 2
    alone = max(p99(latency_ms, before), p99(latency_ms, after))
    assert p99(latency_ms, during) < 2 * alone + 2.0
