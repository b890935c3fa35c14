"""Judges a long run: does anything grow, is every frame accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WARM_UP = 1 / 3
"""Share of the frames that may come before anything is judged: caches and pools fill."""
_FEWEST = 6  # samples that a slope is taken from


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment.

    Attributes:
        frames: That the daemon had taken in by then.
        pid: Another one than before: it was started again.
        memory_bytes: Anonymous resident memory; the rings, which are shared, are not in it.
        descriptors: Open files and sockets.
        threads: Of the process.
    """

    frames: int
    pid: int
    memory_bytes: int
    descriptors: int
    threads: int


def look_at(pid: int, frames: int) -> Sample | None:
    """Measure a process now; None if it has just gone."""
    home = Path(f"/proc/{pid}")
    try:
        text = (home / "status").read_text()
        told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        memory_bytes = int(told["RssAnon"].split()[0]) * 1024
        descriptors = sum(1 for _ in (home / "fd").iterdir())
        return Sample(frames, pid, memory_bytes, descriptors, int(told["Threads"]))
    except (OSError, KeyError):
        return None


def settled_part(samples: Sequence[Sample]) -> list[Sample]:
    """Leave out the warm-up."""
    if not samples:
        return []
    first, last = samples[0].frames, samples[-1].frames
    begin = first + WARM_UP * (last - first)
    return [sample for sample in samples if sample.frames >= begin]


def describe(samples: Sequence[Sample]) -> dict[str, Any]:
    """Describe one process after its warm-up.

    Returns:
        ``slope_bytes_per_frame`` with its 95 % limits: the median of all
        pairwise slopes (Theil 1950, Sen 1968), which single peaks do not
        move; None with fewer than six samples.  Growth of memory, and of the
        least descriptors and threads from the first to the last third.
    """
    from scipy.stats import theilslopes

    settled = settled_part(samples)
    found: dict[str, Any] = {
        "samples": len(settled),
        "restarts": len({sample.pid for sample in samples}) - 1,
        "slope_bytes_per_frame": None,
    }
    if len(settled) < _FEWEST or settled[0].frames == settled[-1].frames:
        return found
    memory = [sample.memory_bytes for sample in settled]
    slope: Any = theilslopes(memory, [sample.frames for sample in settled])
    third = len(settled) // 3
    early, late = settled[:third], settled[-third:]
    return found | {
        "slope_bytes_per_frame": float(slope.slope),
        "slope_low": float(slope.low_slope),
        "slope_high": float(slope.high_slope),
        "memory_bytes": memory[-1],
        "memory_grew_bytes": memory[-1] - memory[0],
        "descriptors": settled[-1].descriptors,
        "descriptors_grew": _least(late, "descriptors") - _least(early, "descriptors"),
        "threads": settled[-1].threads,
        "threads_grew": _least(late, "threads") - _least(early, "threads"),
    }


def growth(counts: Sequence[int]) -> int:
    """Give how far the least of the last third lies above the least of the middle third."""
    third = len(counts) // 3
    return min(counts[-third:]) - min(counts[third : 2 * third]) if third else 0


def _least(samples: Sequence[Sample], what: str) -> int:
    return min(asdict(sample)[what] for sample in samples)


def unaccounted(accounts: Mapping[str, Mapping[str, Any]]) -> int:
    """Sum what was received and is neither sent nor dropped, over all stages and outputs."""
    return sum(
        abs(a["received"] - a["sent"] - sum(a["dropped"].values())) for a in accounts.values()
    )


def failures(report: Mapping[str, Any], max_slope: float) -> list[str]:
    """Say all that is wrong with a run; nothing if it held."""
    found = []
    if report["sent"] != report["received"]:
        found.append(f"{report['sent']} frames were sent and {report['received']} received")
    if report["unaccounted"]:
        found.append(f"{report['unaccounted']} frames are not accounted for")
    if report["raw_lost"]:
        found.append(f"{report['raw_lost']} raw frames were not recorded")
    if report["shared_memory_grew"]:
        found.append(f"shared memory holds {report['shared_memory_grew']} entries more")
    for name, process in report["processes"].items():
        found += _of_process(name, process, max_slope)
    return found


def _of_process(name: str, process: Mapping[str, Any], max_slope: float) -> list[str]:
    slope = process["slope_bytes_per_frame"]
    if slope is None:
        return [f"{name}: too few samples ({process['samples']}) to judge; let it run longer"]
    found = []
    if slope > max_slope:
        found.append(f"{name}: memory grows by {slope:.1f} bytes a frame (limit {max_slope:g})")
    if process["restarts"]:
        found.append(f"{name}: was started again {process['restarts']} times")
    grew = {what: process[f"{what}_grew"] for what in ("descriptors", "threads")}
    return found + [f"{name}: {n} {what} more than at first" for what, n in grew.items() if n > 0]
