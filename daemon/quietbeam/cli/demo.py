"""``quietbeam demo``: a simulated operando cell, the real daemon, and a view of both.

Three real processes over a real socket: a detector, the daemon, and this one,
which only looks (over HTTP) and afterwards compares the recording with the
truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._daemon import free_port, running
from quietbeam.cli._daemon import status as read_status
from quietbeam.cli._output import add_command, add_json, is_terminal, print_json
from quietbeam.core.errors import QuietbeamError

_CONFIG = """\
name = "demo"

[source]
kind = "{source}"
address = "{address}"
socket = "pull"

[denoiser]
kind = "{denoiser}"

[trainer]
checkpoint_directory = "{directory}/checkpoints"

[[sinks]]
kind = "hdf5"
directory = "{directory}"

[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:{output_port}"

[[sinks]]
kind = "web"
address = "127.0.0.1:{web_port}"
recordings = "{directory}"

[[analyses]]
kind = "statistics"

[service]
http = "127.0.0.1:{http_port}"
runtime_directory = "{directory}/runtime"
log = "json"
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``demo``."""
    parser = add_command(
        subparsers,
        "demo",
        "Stream a simulated operando cell (phase separation, drift, a beam dip, photon and read "
        "noise) to the daemon, watch it being cleaned by a network that trains itself on that "
        "very stream, and compare the recording with the truth.",
        "quietbeam demo --seconds 120 --json",
    )
    parser.add_argument(
        "--seconds", type=float, default=120, help="length of the run (%(default)s)"
    )
    parser.add_argument("--rate", type=float, default=20, help="frames per second (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side in pixels (%(default)s)")
    parser.add_argument("--format", default="dectris-v2", help="wire format (%(default)s)")
    parser.add_argument("--denoiser", default="quiet", help="network (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantom (%(default)s)")
    parser.add_argument(
        "--web-port", type=int, default=0, help="port of the live page (a free one)"
    )
    parser.add_argument("--open", action="store_true", help="open the live page in a browser")
    parser.add_argument("--output", type=Path, help="directory to keep (a new temporary one)")
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    directory = arguments.output or Path(tempfile.mkdtemp(prefix="quietbeam-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    config, url, address, page = _write_config(directory.resolve(), arguments)
    frames = round(arguments.seconds * arguments.rate)
    # The detector works its images out while the daemon starts, and sends once that one reads.
    with (
        _detector(address, frames, arguments) as simulator,
        running(config, url, directory / "daemon.log"),
    ):
        _show_page(page, arguments)
        watched = _watch(url, simulator, arguments)
    report = _report(directory, arguments, frames, watched)
    print_json(report) if arguments.json else _tell(report)
    return 0 if report["lost_or_unaccounted"] == 0 else 1


def _show_page(page: str, arguments: argparse.Namespace) -> None:
    """Say where the live page is and, if asked to, open it."""
    print(f"live page: {page}", file=sys.stderr, flush=True)
    if arguments.open:
        import webbrowser

        webbrowser.open(page)


def _write_config(directory: Path, arguments: argparse.Namespace) -> tuple[Path, str, str, str]:
    """Write the configuration; give it, the daemon's URL, the detector's address, the page."""
    detector, output, http, web = (free_port() for _ in range(4))
    web = arguments.web_port or web
    address = f"tcp://127.0.0.1:{detector}"
    config = directory / "demo.toml"
    config.write_text(
        _CONFIG.format(
            source="dectris" if arguments.format.startswith("dectris") else "array",
            address=address,
            denoiser=arguments.denoiser,
            directory=directory,
            output_port=output,
            http_port=http,
            web_port=web,
        )
    )
    return config, f"http://127.0.0.1:{http}", address, f"http://127.0.0.1:{web}/"


def _watch(
    url: str, simulator: subprocess.Popen[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Look on until all that the detector sent is written."""
    began = time.monotonic()
    status: dict[str, Any] = {}
    latencies: list[float] = []
    with _view(arguments) as show:
        while simulator.poll() is None or not _settled(status):
            if simulator.poll() is not None and time.monotonic() > began + arguments.seconds + 30:
                break
            status = read_status(url) or status
            if (latency := (status.get("pipeline") or {}).get("latency_p99_s")) is not None:
                latencies.append(latency)
            show(status, time.monotonic() - began)
            time.sleep(0.25)
    out, _ = simulator.communicate()
    return {"status": status, "simulator": json.loads(out or b"{}"), "latencies_p99_s": latencies}


@contextmanager
def _detector(
    address: str, frames: int, arguments: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the detector; it waits for its reader, and ends with this command at the latest."""
    command = [sys.executable, "-m", "quietbeam", "simulate", "phantom", "--json"]
    command += ["--format", arguments.format, "--rate", str(arguments.rate), "--bind", address]
    command += ["--frames", str(frames), "--seed", str(arguments.seed), "--socket", "push"]
    command += ["--size", str(arguments.size), "--wait"]
    simulator = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield simulator
    finally:
        if simulator.poll() is None:
            simulator.kill()
            simulator.wait()


def _settled(status: Mapping[str, Any]) -> bool:
    """The run is over and everything taken in has been accounted for."""
    pipeline = status.get("pipeline") or {}
    stages = (status.get("ledger") or {}).values()
    flowing = any(stage["in_flight"] for stage in stages)
    outputs = [o.get("status") or {} for o in (status.get("outputs") or {}).values()]
    recording = any(output.get("state") == "recording" for output in outputs)
    return pipeline.get("run") is None and not flowing and not recording


@contextmanager
def _view(arguments: argparse.Namespace) -> Iterator[Any]:
    """Give a function that shows a status: a dashboard for people, nothing for programs."""
    if arguments.json or not is_terminal():
        yield lambda _status, _elapsed: None
        return
    from rich.live import Live

    from quietbeam.cli._dashboard import Dashboard

    dashboard = Dashboard("quietbeam demo", arguments.seconds)
    with Live(refresh_per_second=4) as live:
        yield lambda status, elapsed: live.update(dashboard.draw(status, elapsed))


def _report(
    directory: Path, arguments: argparse.Namespace, frames: int, watched: Mapping[str, Any]
) -> dict[str, Any]:
    from quietbeam.cli._score import score
    from quietbeam.testing.phantoms import Phantom

    recordings = sorted(directory.glob("*.h5"))
    if not recordings:
        raise QuietbeamError(f"nothing was recorded; see {directory / 'daemon.log'}")
    phantom = Phantom(
        (arguments.size, arguments.size), frames, arguments.seed, frame_time_s=1 / arguments.rate
    )
    tail = max(20, min(80, frames // 8))
    account = _account(watched, recordings[-1])
    latencies = watched["latencies_p99_s"]
    return {
        **account,
        **score(recordings[-1], phantom, tail),
        "latency_p99_s": sorted(latencies)[len(latencies) // 2] if latencies else None,
        "latency_p99_worst_s": max(latencies, default=None),
        "recording": str(recordings[-1]),
        "log": str(directory / "daemon.log"),
    }


def _account(watched: Mapping[str, Any], recording: Path) -> dict[str, Any]:
    """Frames sent against frames in the file: nothing may be lost, nothing unaccounted."""
    from quietbeam.offline.recording import Recording

    with Recording(recording) as file:
        raw, clean = len(file.raw), len(file.clean)
    sent = int(watched["simulator"].get("sent", 0))
    return {
        "frames_sent": sent,
        "frames_recorded_raw": raw,
        "frames_recorded_clean": clean,
        "lost_or_unaccounted": abs(sent - raw) + abs(sent - clean),
        "decisions": [
            {k: d.get(k) for k in ("action", "version", "reason")}
            for d in watched["status"].get("decisions") or []
        ],
    }


def _tell(report: Mapping[str, Any]) -> None:
    """Say in words what came out."""
    print(
        f"\n{report['frames_sent']} frames sent, {report['frames_recorded_raw']} raw and "
        f"{report['frames_recorded_clean']} clean recorded, "
        f"{report['lost_or_unaccounted']} lost or unaccounted"
    )
    print(f"first promoted model after {report['first_promoted_s'] or float('nan'):.0f} s")
    print("true PSNR (the phantom knows the truth), last frames:")
    print(f"  raw                 {report['psnr_raw_db']:6.2f} dB")
    print(f"  best causal filter  {report['psnr_best_causal_db']:6.2f} dB  {report['best_causal']}")
    print(f"  quietbeam           {report['psnr_clean_db']:6.2f} dB")
    print(f"  ... as estimated    {report['psnr_estimated_db']:6.2f} dB  without the truth")
    print(f"latency p99 {1000 * (report['latency_p99_s'] or float('nan')):.0f} ms")
    print(f"recording: {report['recording']}")
