"""An IOC on its own: the epics sink served a stream of frames at a rate, without a daemon.

``python -m helpers.ioc_stream SETTINGS_JSON SIDE RATE_HZ`` serves until stdin ends, and
then tells as JSON how many frames it posted and how long that took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quietbeam import Frame, QuietbeamError, Result, RunStart
from quietbeam_plugins.sinks.epics.sink import Epics

_METRICS = {"quality.noise_sd": {"unit": "count", "description": "noise", "shape": []}}
_STATUS = {
    "state": "running",
    "metrics": _METRICS,
    "maps": {},
    "degradation": "normal",
    "generation": {"number": 1, "version": "0", "started_unix_s": 1.0},
}


class Stream:
    """A link whose frames come by the clock."""

    connected = True

    def __init__(self, side: int, rate_hz: float) -> None:
        self.stopping = False
        self.given = 0
        self.late_s: list[float] = []
        self._period_s, self._began_s = 1.0 / rate_hz, 0.0
        noise = np.random.default_rng(0).normal(50, 5, (4, side, side)).astype(np.float32)
        self._clean = list(noise)
        self._raw = [np.clip(plane, 0, None).astype(np.uint16) for plane in noise]

    def poll(self, timeout_s: float) -> Sequence[Any]:
        now = time.monotonic()
        if not self._began_s:
            self._began_s = now
            shape = self._clean[0].shape
            return [RunStart(run="r", shape=shape, dtype=np.dtype(np.uint16))]
        due_s = self._began_s + self.given * self._period_s
        if due_s > now:
            time.sleep(min(timeout_s, due_s - now))
        if time.monotonic() < due_s:
            return []
        self.late_s.append(time.monotonic() - due_s)
        number, plane = self.given, self.given % 4
        self.given += 1
        common: dict[str, Any] = {"run": "r", "index": number, "time_ns": number * 10_000_000 + 1}
        common["received_ns"] = time.monotonic_ns()
        return [
            Frame(pixels=self._raw[plane], **common),
            Result(
                clean=self._clean[plane],
                sd=self._clean[plane],
                raw=None,
                metrics={"quality.noise_sd": 5.0},
                denoiser="none",
                model_version=0,
                latency_s=0.0,
                **common,
            ),
        ]

    def status(self) -> Mapping[str, Any]:
        return _STATUS

    def command(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        raise QuietbeamError(f"{name} {dict(arguments)}: there is no daemon")

    def verify(self, token: str) -> bool:
        return not token

    def tell(self, **facts: Any) -> None:
        assert facts

    def account(self, **counts: int) -> None:
        assert counts


def cpu_s_by_thread(scale: float) -> dict[str, float]:
    """Give the processor time of every thread of this process that took some, times ``scale``."""
    found: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        ticks = sum(map(int, rest.split()[11:13]))
        used = ticks / os.sysconf("SC_CLK_TCK") * scale
        if used > 0.05:
            found[f"{name} {task.name}"] = round(used, 2)
    return found


def main() -> None:
    settings, side, rate_hz = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    link = Stream(side, rate_hz)

    def wait() -> None:
        sys.stdin.read()
        link.stopping = True

    threading.Thread(target=wait, daemon=True).start()
    Epics(**settings).serve(link)
    late_ms = np.percentile(np.array(link.late_s) * 1e3, [50, 99])
    told = {"given": link.given, "late_p50_ms": late_ms[0], "late_p99_ms": late_ms[1]}
    told["cpu_ms_per_frame"] = cpu_s_by_thread(1e3 / link.given)
    sys.stderr.write(json.dumps(told) + "\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
