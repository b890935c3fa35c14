"""A real daemon in a real process, and a detector that sends to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def config_text(
    directory: Path,
    port: int,
    *,
    more: str = "",
    sinks: str = "",
    denoiser: str = "kalman",
    run_timeout_s: str = "1.0",
) -> str:
    return f"""
name = "test"
[source]
kind = "array"
address = "tcp://127.0.0.1:{port}"
bind = true
run_timeout_s = {run_timeout_s}
[denoiser]
kind = "{denoiser}"
[calibration]
frames = 4
{sinks}
[rings]
raw_mib = 64
clean_mib = 64
[service]
http = "127.0.0.1:0"
runtime_directory = "{directory / "run"}"
log = "json"
max_backlog_frames = 4000
{more}
"""


def get(url: str, timeout: float = 5.0) -> tuple[int, bytes]:
    try:
        with OPENER.open(url, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


class RunningDaemon:
    """Handle of one ``quietbeam run``."""

    def __init__(self, process: subprocess.Popen, directory: Path, config: Path, port: int) -> None:
        self.process, self.directory, self.config, self.port = process, directory, config, port
        self.log_path = directory / "daemon.log"

    @property
    def url(self) -> str:
        return (self.directory / "run" / "address").read_text().strip()

    @property
    def token(self) -> str:
        return (self.directory / "run" / "control-token").read_text().strip()

    def status(self) -> dict:
        return json.loads(get(f"{self.url}/api/v1/status")[1])

    def events(self, name: str) -> list[dict]:
        lines = [line for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry.get("event") == name]

    def wait_for(self, condition, timeout_s: float = 20.0, what: str = "condition"):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"daemon ended with {self.process.returncode}: {self.log()}")
            try:
                status = self.status()
            except (OSError, ValueError):
                status = None
            if status is not None and condition(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come true: {self.log()}")

    def control(self, command: str, *values: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, "-m", "quietbeam", "control", command, *values]
        return subprocess.run(
            [*argv, "--config", str(self.config), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def log(self) -> str:
        return self.log_path.read_text()[-6000:]


@contextmanager
def started(
    directory: Path,
    text: str,
    port: int,
    environment: Mapping[str, str] | None = None,
    *,
    module: Sequence[str] = (),
    before: Sequence[str] = (),
) -> Iterator[RunningDaemon]:
    """Start a daemon; whatever happens, it and its children are gone afterwards.

    ``module`` names another program that takes the configuration, with further
    arguments; ``before`` is put before the whole command.
    """
    config = directory / "config.toml"
    config.write_text(text)
    program = [module[0], str(config), *module[1:]] if module else ["quietbeam", "run", str(config)]
    calm = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    with (directory / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", *program],
            stdout=log,
            stderr=log,
            env={**os.environ, **calm, **(environment or {})},
        )
    try:
        yield RunningDaemon(process, directory, config, port)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@contextmanager
def running(
    directory: Path, environment: Mapping[str, str] | None = None, **options: str
) -> Iterator[RunningDaemon]:
    """Start a daemon and wait until it takes frames."""
    port = free_port()
    text = config_text(directory, port, **options)
    with started(directory, text, port, environment) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 110.0, "state running")
        yield daemon


def frame_pixels(number: int, shape: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Give image ``number``: noise, with the number written into its first pixel."""
    pixels = np.random.default_rng(number).poisson(50, shape).astype(np.uint16)
    pixels[0, 0] = number % 65536
    return pixels


def send_frames(
    port: int,
    frames: int | Sequence[int],
    *,
    rate_hz: float = 200.0,
    shape: tuple[int, int] = (32, 48),
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Be a detector: push so many images, or those of these numbers, in array-1.0.

    Gives how many left.
    """
    from quietbeam.core.events import Frame
    from quietbeam.offline.sender import open_sender
    from quietbeam.testing.simulators import encoder, simulated_run

    numbers = range(frames) if isinstance(frames, int) else frames
    encode = encoder("array-1.0")
    run = simulated_run(frame_pixels(0, shape), len(numbers), rate_hz)
    with open_sender(f"tcp://127.0.0.1:{port}", bind=False) as sender:
        for message in encode.start(run):
            sender.send(message)
        began = time.monotonic()
        for sent, number in enumerate(numbers):
            if stop():
                return sent
            frame = Frame(
                run=run.run,
                index=number,
                time_ns=round(number / rate_hz * 1e9),
                received_ns=time.monotonic_ns(),
                pixels=frame_pixels(number, shape),
            )
            for message in encode.frame(frame):
                assert sender.send(message)
            time.sleep(max(0.0, began + (sent + 1) / rate_hz - time.monotonic()))
    return len(numbers)


@contextmanager
def detecting(port: int, rate_hz: float = 25.0) -> Iterator[None]:
    """A detector that sends until the block ends, or its daemon is gone."""
    over = threading.Event()

    def send() -> None:
        with suppress(AssertionError):
            send_frames(port, 10**6, rate_hz=rate_hz, stop=over.is_set)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join(10)
