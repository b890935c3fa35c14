"""A detector that goes on through everything, small disks, and looks at other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.daemons import frame_pixels

KILLS = int(os.environ.get("QUIETBEAM_FAULT_KILLS", "3"))
"""How often each process is killed; the long form takes 50."""


class Detector:
    """Sends numbered frames in array-1.0 from a thread until it is stopped.

    Attributes:
        sent: How many frames its socket took; they are numbered from 0.
    """

    def __init__(
        self,
        port,
        rate_hz=100.0,
        *,
        shape=(32, 48),
        frames=10**9,
        host="127.0.0.1",
        images=frame_pixels,
    ):
        self.sent = 0
        self._address = f"tcp://{host}:{port}"
        self._rate_hz, self._shape, self._frames, self._images = rate_hz, shape, frames, images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        """End the stream; give how many frames left."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.sent

    def finish(self, seconds=120.0):
        """Wait until all its frames left."""
        self._thread.join(seconds)
        assert self.sent == self._frames
        return self.sent

    def _send(self):
        from quietbeam.core.events import Frame
        from quietbeam.offline.sender import open_sender
        from quietbeam.testing.simulators import encoder, simulated_run

        encode = encoder("array-1.0")
        run = simulated_run(self._images(0, self._shape), 10**6, self._rate_hz)
        with open_sender(self._address, bind=False) as sender:
            due_s = time.monotonic()
            while self.sent < self._frames and not self._stop.is_set():
                pixels = self._images(self.sent, self._shape)
                event = Frame(
                    run=run.run,
                    index=self.sent,
                    time_ns=round(self.sent / self._rate_hz * 1e9),
                    received_ns=time.monotonic_ns(),
                    pixels=pixels,
                )
                for message in encode.frame(event):
                    while not sender.send(message, 0.2) and not self._stop.is_set():
                        continue
                self.sent += 1
                due_s = max(due_s + 1 / self._rate_hz, time.monotonic() - 1.0)
                self._stop.wait(max(0.0, due_s - time.monotonic()))


def acknowledged(status, output="hdf5.0"):
    """Raw frames that the recorder says are safe."""
    return status["outputs"][output]["totals"]["raw_written"]


def assert_accounts_are_exact(status):
    """Every frame was sent on or dropped for a reason, in every stage and output."""
    accounts = {**status["ledger"], **status["output_accounts"]}
    assert accounts
    for name, account in accounts.items():
        assert account["in_flight"] == 0, (name, account)
        assert account["received"] == account["sent"] + sum(account["dropped"].values()), name


def at_rest(status):
    """Every frame is where it belongs."""
    accounts = (*status["ledger"].values(), *status["output_accounts"].values())
    return bool(status["ledger"]) and all(account["in_flight"] == 0 for account in accounts)


@contextmanager
def small_disk(path, megabytes):
    """A file system of its own, of so many megabytes; skips where it cannot be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def resident_bytes(pid):
    """Anonymous memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no RssAnon for {pid}")


@contextmanager
def stopped(pid):
    """A process that does nothing while the block runs; it may be gone afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
