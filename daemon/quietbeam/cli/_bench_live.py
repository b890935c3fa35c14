"""Measures the whole live path: a detector's socket in, clean frames out, trainer on and off."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from quietbeam.cli._daemon import free_port, read, running, status
from quietbeam.cli.control import send
from quietbeam.core.errors import QuietbeamError

_CONFIG = """\
name = "bench"

[source]
kind = "dectris"
address = "tcp://127.0.0.1:{detector}"
socket = "pull"

[denoiser]
kind = "{denoiser}"

[engine]
threads = {threads}

[[sinks]]
kind = "zmq"
address = "tcp://127.0.0.1:{output}"

[service]
http = "127.0.0.1:{http}"
runtime_directory = "{directory}/runtime"
log = "json"
"""

_SCENE_FRAMES = 64
_PROMOTED_S = 90.0
_SETTLE_S = 2.0
_TIMES = re.compile(
    r"^quietbeam_(stage_duration|end_to_end_latency)_seconds_(sum|count)"
    r'(?:\{stage="denoise"\})? (\S+)$',
    re.MULTILINE,
)


def measure_live(
    denoiser: str, size_px: int, rate_hz: float, *, threads: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Run detector, daemon and trainer as separate processes and watch them.

    The trainer works and rests in turns, ``rounds`` times ``seconds`` each, so
    that what else the machine does meets both alike.

    Args:
        denoiser: Name of the network.
        size_px: Side of the image.
        rate_hz: Frames per second that the detector sends.
        threads: Of the engine.
        seconds: Length of one turn.
        rounds: Turns of each sort.

    Returns:
        For ``training`` and ``frozen``: medians over the turns of frames/s in
        and out, share of frames given up, milliseconds of the denoising thread
        per frame, and of latency (with the frames the network waits for); and
        the ratio of the denoising times.

    Raises:
        QuietbeamError: No model was promoted, or a process failed.
    """
    from quietbeam.service.runtime import token_path

    with tempfile.TemporaryDirectory(prefix="quietbeam-bench-") as name:
        directory = Path(name)
        config, address, url = _write_config(directory, denoiser, threads)
        images = _write_images(directory, size_px)
        log = directory / "daemon.log"
        with running(config, url, log), _detector(images, address, rate_hz):
            promoted_s = _wait_promoted(url)
            token = token_path(directory / "runtime").read_text().strip()
            turns = _turns(url, token, seconds, rounds)
    training, frozen = (_median(turns[kind]) for kind in ("training", "frozen"))
    return {
        "denoiser": denoiser,
        "size_px": size_px,
        "rate_hz": rate_hz,
        "threads": threads,
        "promoted_s": promoted_s,
        "training": training,
        "frozen": frozen,
        "denoise_ms_ratio": training["denoise_ms"] / frozen["denoise_ms"],
    }


def _write_config(directory: Path, denoiser: str, threads: int) -> tuple[Path, str, str]:
    detector, output, http = (free_port() for _ in range(3))
    config = directory / "bench.toml"
    text = _CONFIG.format(
        detector=detector, output=output, http=http,
        denoiser=denoiser, threads=threads, directory=directory,
    )  # fmt: skip
    config.write_text(text)
    return config, f"tcp://127.0.0.1:{detector}", f"http://127.0.0.1:{http}"


def _write_images(directory: Path, size_px: int) -> Path:
    """Frames of the phantom to and fro, so that nothing jumps when they are sent again."""
    from quietbeam.testing.phantoms import Phantom

    phantom = Phantom((size_px, size_px), _SCENE_FRAMES)
    frames = [phantom.frame(i) for i in range(_SCENE_FRAMES)]
    path = directory / "images.npy"
    np.save(path, np.stack([*frames, *frames[-2:0:-1]]))
    return path


@contextmanager
def _detector(images: Path, address: str, rate_hz: float) -> Iterator[None]:
    """Send until it is told to end."""
    command = [sys.executable, "-m", "quietbeam", "simulate", str(images), "--rate", str(rate_hz)]
    command += ["--bind", address, "--frames", "1000000000"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def _wait_promoted(url: str) -> float:
    began = time.monotonic()
    message = ""
    while time.monotonic() - began < _PROMOTED_S:
        pipeline = (status(url) or {}).get("pipeline") or {}
        message = pipeline.get("message") or message
        if pipeline.get("model_version"):
            return round(time.monotonic() - began, 1)
        time.sleep(0.2)
    raise QuietbeamError(f"no network was promoted within {_PROMOTED_S:.0f} s: {message}")


def _turns(url: str, token: str, seconds: float, rounds: int) -> dict[str, list[dict[str, float]]]:
    turns: dict[str, list[dict[str, float]]] = {"training": [], "frozen": []}
    for number in range(2 * rounds):
        # on off off on on off ...: a drift of the machine meets both alike
        kind = ("training", "frozen", "frozen", "training")[number % 4]
        send(url, token, "train_resume" if kind == "training" else "train_freeze", {})
        time.sleep(_SETTLE_S)
        turns[kind].append(_watch(url, seconds))
    return turns


def _watch(url: str, seconds: float) -> dict[str, float]:
    began = time.monotonic()
    before = _counts(url)
    time.sleep(seconds)
    after = _counts(url)
    elapsed = time.monotonic() - began
    change = {key: after[key] - before[key] for key in before}

    def mean_ms(what: str) -> float:
        return 1e3 * change[f"{what}_sum"] / max(change[f"{what}_count"], 1)

    return {
        "received_hz": change["received"] / elapsed,
        "clean_hz": change["sent"] / elapsed,
        "given_up": change["dropped"] / max(change["received"], 1),
        "denoise_ms": mean_ms("stage_duration"),
        "latency_ms": mean_ms("end_to_end_latency"),
    }


def _counts(url: str) -> dict[str, float]:
    page, found = read(f"{url}/metrics"), status(url)
    if page is None or found is None:
        raise QuietbeamError(f"the daemon at {url} does not answer")
    times = {f"{what}_{key}": float(value) for what, key, value in _TIMES.findall(page.decode())}
    stage: Mapping[str, Any] = found["ledger"]["denoise"]
    dropped = stage["dropped"]
    total = sum(dropped.values()) if isinstance(dropped, Mapping) else dropped
    return {**times, "received": stage["received"], "sent": stage["sent"], "dropped": total}


def _median(turns: list[dict[str, float]]) -> dict[str, float]:
    pick: Callable[[str], float] = lambda key: float(np.median([turn[key] for turn in turns]))  # noqa: E731
    return {key: pick(key) for key in turns[0]}
