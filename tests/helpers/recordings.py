"""Runs whose every pixel can be told from the frame number, and a recorder in its own process."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from quietbeam import Frame, Result, RunEnd, RunStart
from quietbeam.core import records
from quietbeam.core.ring import create

METRICS = {
    "quality.psnr_db": {"unit": "dB", "description": "estimated PSNR", "shape": []},
    "statistics.profile": {"unit": "counts", "description": "three sums", "shape": [3]},
}


def run_start(run="7", shape=(32, 48), *, session="", **more):
    ours = {"version": "0", "config": 'name = "tést"\n', "config_sha256": "ab" * 32, "name": "test"}
    ours |= {"metrics": METRICS} | ({"session": session} if session else {})
    metadata = {"sample": "NMC", "quietbeam": ours}
    return RunStart(run=run, shape=shape, dtype=np.dtype(np.uint16), metadata=metadata, **more)


def pixels(index, shape=(32, 48)):
    count = shape[0] * shape[1]
    return ((np.arange(count) * 31 + index * 7919) % 60000).astype(np.uint16).reshape(shape)


def frame(index, run="7", shape=(32, 48)):
    now = time.monotonic_ns()
    return Frame(
        run=run,
        index=index,
        time_ns=index * 5_000_000 + 3,
        received_ns=now,
        pixels=pixels(index, shape),
    )


def result(index, run="7", shape=(32, 48), version=0, denoiser="kalman"):
    clean = pixels(index, shape).astype(np.float32) / 2
    clean[0, 0] = np.nan
    return Result(
        run=run,
        index=index,
        time_ns=index * 5_000_000 + 3,
        received_ns=time.monotonic_ns(),
        clean=clean,
        sd=np.sqrt(np.nan_to_num(clean)),
        raw=None,
        metrics={"quality.psnr_db": 20 + index / 8, "statistics.profile": np.arange(3.0) + index},
        denoiser=denoiser,
        model_version=version,
        latency_s=0.01,
    )


def run_end(run="7", reason="completed"):
    return RunEnd(run=run, reason=reason)


@contextmanager
def two_rings(directory, mib=32, entries=8192):
    raw = create(Path(directory) / "raw.ring", mib << 20, entries)
    clean = create(Path(directory) / "clean.ring", mib << 20, entries)
    try:
        yield raw, clean
    finally:
        for ring in (raw, clean):
            ring.close()
            ring.unlink()


def feed(rings, items):
    """Put starts and ends into both rings, frames and results into theirs."""
    raw, clean = rings
    for item in items:
        if not isinstance(item, Result):
            records.put(raw, item)
        if not isinstance(item, Frame):
            records.put(clean, item)


def whole_run(count, run="7", shape=(32, 48), first=0):
    yield run_start(run, shape)
    for index in range(first, first + count):
        yield frame(index, run, shape)
        yield result(index, run, shape)
    yield run_end(run)


class SinkProcess:
    """``quietbeam.service.sink_process``, spoken to as the daemon does."""

    def __init__(self, rings, settings, kind="hdf5", name="recorder"):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quietbeam.service.sink_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events = []
        self.logs = []
        self._arrived = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        raw, clean = rings
        self.send(
            type="init",
            raw_ring=str(raw.path),
            clean_ring=str(clean.path),
            name=name,
            kind=kind,
            settings={key: str(v) if isinstance(v, Path) else v for key, v in settings.items()},
        )

    def _listen(self):
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            self._arrived.put(event)

    def _log(self):
        for line in self.process.stderr:
            self.logs.append(line)

    def send(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def wait_for(self, accept, timeout_s=20.0):
        """Give the first event, from now on, that ``accept`` takes."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                event = self._arrived.get(timeout=max(0.01, left))
            except queue.Empty:
                raise AssertionError(
                    f"no such event in {timeout_s} s; last: {self.events[-3:]}; "
                    f"logs: {''.join(self.logs[-10:])}"
                ) from None
            if accept(event):
                return event

    def ready(self):
        self.wait_for(lambda e: e["type"] == "ready")
        return self

    def status(self, **wanted):
        """Wait for a status in which every wanted key has its value, or passes its test."""

        def accept(event):
            return event["type"] == "status" and all(
                want(event.get(key)) if callable(want) else event.get(key) == want
                for key, want in wanted.items()
            )

        return self.wait_for(accept)

    def stop(self, timeout_s=20.0):
        self.send(type="stop")
        code = self.process.wait(timeout_s)
        self.close()
        return code

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.close()

    def last_status(self):
        return [e for e in self.events if e["type"] == "status"][-1]

    def close(self):
        for thread in self._threads:
            thread.join(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(BrokenPipeError):
                stream.close()


@contextmanager
def sink_process(rings, settings, **more):
    child = SinkProcess(rings, settings, **more)
    try:
        yield child.ready()
    finally:
        if child.process.poll() is None:
            child.kill()
        child.close()
