"""``quietbeam soak``: many frames through a real daemon; nothing may grow, nothing may be lost."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._daemon import free_port, running, status
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import progress
from quietbeam.cli._soak_judge import (
    Sample,
    describe,
    failures,
    growth,
    look_at,
    unaccounted,
)
from quietbeam.core.errors import DataError, QuietbeamError

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the kernel's shared memory
_SETTLE_S = 90.0
_SAMPLES = 300  # at most: the pairwise slopes are half a square of it
_IMAGES = 16
_CONFIG = """\
name = "{name}"

[source]
kind = "array"
address = "tcp://127.0.0.1:{detector}"
run_timeout_s = 5.0

[denoiser]
kind = "{denoiser}"

[trainer]
enabled = {trainer}
checkpoint_directory = "{directory}/checkpoints"

[rings]
raw_mib = 64
clean_mib = 64

[service]
http = "127.0.0.1:{http}"
runtime_directory = "{directory}/runtime"
log = "json"
"""
_OUTPUTS = {
    "hdf5": 'directory = "{directory}/files"\nreserve_bytes = 100000000\n',
    "zmq": 'address = "tcp://127.0.0.1:{port}"\n',
    "web": 'address = "127.0.0.1:{port}"\nrecordings = "{directory}/files"\n',
    "epics": 'prefix = "SOAK:"\nca_port = {port}\npva_port = {port2}\nimage_port = {port3}\n',
    "bluesky": 'address = "tcp://127.0.0.1:{port}"\nbind = true\nencoding = "json"\n',
}
"""Settings of each output; the first takes every raw frame, the others what they can."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam soak``."""
    parser = add_command(
        subparsers,
        "soak",
        "Send many frames to a real daemon over a real socket, from a detector in a process of "
        "its own, and watch memory, descriptors and threads of every process. Fails if memory "
        "grows per frame (Theil-Sen slope after the first third), if anything else grows, or if "
        "one frame is lost or not accounted for.",
        "quietbeam soak --frames 200000 --rate 1000 --json",
    )
    parser.add_argument("--frames", type=int, help="how many (--seconds at --rate)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=200.0, metavar="HZ", help="frames per second (%(default)s)"
    )
    parser.add_argument("--shape", default="16x16", metavar="HxW", help="uint16 (%(default)s)")
    parser.add_argument(
        "--outputs", default="hdf5,zmq", help=f"of {','.join(_OUTPUTS)} (%(default)s)"
    )
    parser.add_argument("--denoiser", default="kalman", help="(%(default)s)")
    parser.add_argument("--trainer", action="store_true", help="train as well")
    parser.add_argument(
        "--max-slope", type=float, default=50.0, metavar="B", help="bytes a frame (%(default)s)"
    )
    parser.add_argument("--more", type=Path, help="further tables for the configuration (TOML)")
    parser.add_argument("--directory", type=Path, help="kept (a temporary one, removed)")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    if not re.fullmatch(r"\d+x\d+", arguments.shape):
        raise DataError(f"--shape {arguments.shape}: expected height x width, such as 64x96")
    with _directory(arguments.directory) as directory:
        report = _soak(directory, arguments)
    report["failures"] = failures(report, arguments.max_slope)
    report["verdict"] = "failed" if report["failures"] else "held"
    print_json(report) if arguments.json else _tell(report)
    return 1 if report["failures"] else 0


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="quietbeam-soak-") as name:
        yield Path(name)


def _soak(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    frames = arguments.frames or max(1, round(arguments.seconds * arguments.rate))
    name = f"soak-{free_port()}"
    detector, http = free_port(), free_port()
    config = directory / "soak.toml"
    config.write_text(_config_text(directory, name, detector, http, arguments))
    url = f"http://127.0.0.1:{http}"
    with running(config, url, directory / "daemon.log") as daemon:
        detecting = _detector(directory, frames, f"tcp://127.0.0.1:{detector}", arguments)
        try:
            watch = _Watch(daemon.pid, url, name, seconds=frames / arguments.rate)
            with progress("frames", frames, quiet=arguments.json) as show:
                watch.until_settled(detecting, show)
            sent = _sent(detecting)
        finally:
            if detecting.poll() is None:
                detecting.kill()
            detecting.wait()
    return _machine() | {"frames": frames, "rate_hz": arguments.rate} | watch.report(sent)


def _config_text(
    directory: Path, name: str, detector: int, http: int, arguments: argparse.Namespace
) -> str:
    text = _CONFIG.format(
        name=name,
        detector=detector,
        http=http,
        directory=directory,
        denoiser=arguments.denoiser,
        trainer=str(arguments.trainer).lower(),
    )
    for kind in filter(None, arguments.outputs.split(",")):
        if kind not in _OUTPUTS:
            raise DataError(f"--outputs: no {kind!r}; expected some of {', '.join(_OUTPUTS)}")
        ports = {name: free_port() for name in ("port", "port2", "port3")}
        settings = _OUTPUTS[kind].format(directory=directory, **ports)
        text += f'\n[[sinks]]\nkind = "{kind}"\n{settings}'
    return text + ("" if arguments.more is None else arguments.more.read_text())


def _detector(
    directory: Path, frames: int, address: str, arguments: argparse.Namespace
) -> subprocess.Popen[str]:
    """Start a detector that waits for its reader."""
    import numpy as np

    h, w = map(int, arguments.shape.split("x"))
    images = directory / "images.npy"
    np.save(images, np.random.default_rng(0).poisson(50, (_IMAGES, h, w)).astype(np.uint16))
    command = [sys.executable, "-m", "quietbeam", "simulate", str(images), "--format", "array-1.0"]
    command += ["--rate", str(arguments.rate), "--frames", str(frames), "--bind", address]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "--wait", "--json"], stdout=pipe, stderr=pipe, text=True)


def _sent(detecting: subprocess.Popen[str]) -> int:
    out, errors = detecting.communicate()
    if detecting.returncode != 0:
        raise QuietbeamError(f"the simulated detector failed: {errors.strip()[-500:]}")
    return int(json.loads(out)["sent"])


class _Watch:
    """Looks at every process of a daemon until all frames have come to rest."""

    def __init__(self, pid: int, url: str, name: str, *, seconds: float) -> None:
        self._pid, self._url, self._name = pid, url, name
        self._pause_s = max(0.2, seconds / _SAMPLES)
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._entries: list[int] = []
        self._began_s = time.monotonic()
        self._status: dict[str, Any] = {}

    def until_settled(self, detecting: subprocess.Popen[str], show: Any) -> None:
        """Take samples while frames come; then wait until none is in flight."""
        while detecting.poll() is None:
            show(self._look())
            time.sleep(self._pause_s)
        deadline_s = time.monotonic() + _SETTLE_S
        while not self._at_rest() and time.monotonic() < deadline_s:
            time.sleep(0.2)
            self._status = status(self._url) or self._status

    def report(self, sent: int) -> dict[str, Any]:
        """Put everything that was seen together."""
        frames, recorded = self._status["frames"], self._recorded()
        accounts = self._accounts()
        return {
            "seconds": round(time.monotonic() - self._began_s, 1),
            "sent": sent,
            "received": frames["received"],
            "recorded": recorded,
            "raw_lost": 0 if recorded is None else sent - recorded,
            "unaccounted": unaccounted(accounts),
            "dropped": {name: a["dropped"] for name, a in accounts.items() if a["dropped"]},
            "shared_memory_grew": max(0, growth(self._entries)),
            "processes": {name: describe(samples) for name, samples in self._samples.items()},
        }

    def _look(self) -> int:
        """Take one sample of everything; give the frames taken in so far."""
        now = status(self._url)
        if now is None:
            return 0
        self._status = now
        frames = int(now["frames"]["received"])
        children = {name: child["pid"] for name, child in now["children"].items()}
        for name, pid in {"daemon": self._pid, **children}.items():
            sample = None if pid is None else look_at(pid, frames)
            if sample is not None and frames:
                self._samples[name].append(sample)
        self._entries.append(sum(1 for _ in _SHARED_MEMORY.glob(f"quietbeam-{self._name}-*")))
        return frames

    def _accounts(self) -> Mapping[str, Mapping[str, Any]]:
        return {**self._status["ledger"], **self._status["output_accounts"]}

    def _at_rest(self) -> bool:
        accounts = self._accounts().values()
        return self._status["run"] is None and not any(a["in_flight"] for a in accounts)

    def _recorded(self) -> int | None:
        outputs = [o for o in self._status["outputs"].values() if o["kind"] == "hdf5"]
        return outputs[0]["totals"]["raw_written"] if outputs else None


def _machine() -> dict[str, Any]:
    return {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0]}


def _tell(report: Mapping[str, Any]) -> None:
    """Say in words what came out."""
    rows = [
        [
            name,
            "-" if p["slope_bytes_per_frame"] is None else f"{p['slope_bytes_per_frame']:.1f}",
            *(p.get(key, "-") for key in ("memory_grew_bytes", "descriptors", "threads")),
        ]
        for name, p in report["processes"].items()
    ]
    print_table(rows, ("process", "bytes a frame", "grew by", "descriptors", "threads"))
    print(
        f"{report['sent']} frames sent in {report['seconds']:.0f} s, "
        f"{report['received']} received, {report['recorded']} recorded, "
        f"{report['unaccounted']} unaccounted"
    )
    for failure in report["failures"]:
        print(f"FAILED {failure}")
    print(report["verdict"])
