"""``quietbeam bench``: frames per second, latency and memory of denoisers and engines."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from quietbeam.cli import Subparsers
from quietbeam.cli._output import add_command, add_json, print_json, print_table
from quietbeam.cli._progress import bar
from quietbeam.core.errors import ConfigError

ENGINES = ("openvino", "torch")
ENOUGH = 20
"""Frames below which a percentile says little; such rows are marked."""

TIMEOUT_S = 900.0
SOCKET_PX = 128


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement, made in a process of its own."""

    denoiser: str
    engine: str
    size_px: int
    threads: int
    frames: int
    seconds: float


def add_parser(subparsers: Subparsers) -> None:
    """Add the parser of ``quietbeam bench``."""
    parser = add_command(
        subparsers,
        "bench",
        "Measure every denoiser in every engine, each case in a process of its own: frames per "
        "second, latency of a frame (p50, p99), processor time and peak memory. A case stops "
        "after --frames or --seconds, whichever comes first, but measures two frames at least: "
        "umvd at 512 px takes many seconds for each. All together about ten minutes on 2 "
        "processors. With --live: the whole live path instead, from a detector's socket to clean "
        "frames, with the trainer working and resting in turns; about two minutes for each size. "
        "With --ingest: decoding into the ring, beside the bare decompressor (or copy) in the same "
        "run, and a detector that sends frames of 128 px at --rate over a socket.",
        "quietbeam bench --denoiser quiet kalman --size 256 --json",
    )
    parser.add_argument("--denoiser", nargs="+", metavar="NAME", help="default: all installed")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--size", nargs="+", type=int, default=[256, 512], metavar="PX")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--frames", type=int, default=200, help="at most (default: 200)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per case (default: 4)")
    parser.add_argument("--live", action="store_true", help="measure the whole live path")
    parser.add_argument("--ingest", action="store_true", help="measure decoding into the ring")
    parser.add_argument(
        "--gpu", action="store_true",
        help="measure engines on a GPU, beside what its memory and arithmetic allow",
    )  # fmt: skip
    parser.add_argument(
        "--training", nargs="+", choices=("off", "process", "stream"), default=["off", "process"],
        help="with --gpu: what trains meanwhile (default: off process)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help="frames per second sent (default: 20 with --live, 1000 with --ingest)",
    )  # fmt: skip
    parser.add_argument("--case", help=argparse.SUPPRESS)
    add_json(parser)
    parser.set_defaults(execute=_execute)


def _execute(arguments: argparse.Namespace) -> int:
    if arguments.case:  # this is the process of one case
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return 0
    arguments.rate = arguments.rate or (1000.0 if arguments.ingest else 20.0)
    cases = _cases(arguments)
    if arguments.gpu:
        return _execute_gpu(arguments)
    if arguments.ingest:
        return _execute_ingest(arguments)
    if arguments.live:
        return _execute_live(arguments)
    started = time.monotonic()
    found = machine()
    with bar() as progress:
        # Exporting takes memory and time that belong to no case: it is done beforehand.
        for case in _one_of_each(cases):
            progress(f"export {case.denoiser}", 0.0)
            _run(case)
            progress(f"export {case.denoiser}", 1.0)
        rows = []
        for number, case in enumerate(cases):
            progress("bench", number / len(cases))
            rows.append(_run(case))
        progress("bench", 1.0)
    took_s = time.monotonic() - started
    failed = sum("error" in row for row in rows)
    if arguments.json:
        print_json({"machine": found, "took_s": round(took_s, 1), "cases": rows})
    else:
        _print(rows, found, took_s)
    return 1 if failed else 0


def _execute_live(arguments: argparse.Namespace) -> int:
    from quietbeam.cli._bench_live import measure_live

    found, rows = machine(), []
    names: list[str] = arguments.denoiser or ["quiet"]
    sizes: list[int] = arguments.size
    combinations = [(n, s, t) for n in names for s in sizes for t in arguments.threads]
    with bar() as progress:
        for number, (denoiser, size_px, threads) in enumerate(combinations):
            progress("live", number / len(combinations))
            seconds = arguments.seconds
            rows.append(
                measure_live(
                    denoiser, size_px, arguments.rate, threads=threads, seconds=seconds, rounds=4
                )
            )
        progress("live", 1.0)
    if arguments.json:
        print_json({"machine": found, "live": rows})
    else:
        _print_live(rows, found)
    return 0


def _execute_gpu(arguments: argparse.Namespace) -> int:
    from quietbeam.core.errors import QuietbeamError
    from quietbeam.model.engines import why_not
    from quietbeam.offline import gpu_figures as gpu

    if why_not("cuda"):
        raise ConfigError(f"--gpu: {why_not('cuda')}")
    found, rows = gpu.limits(), []
    names = arguments.denoiser or ["quiet", "umvd", "n2v"]
    cases = [
        gpu.GpuCase(name, engine, size_px, training, arguments.seconds)
        for name, engine in product(names, gpu.ENGINES)
        for size_px, training in product(arguments.size, arguments.training)
    ]
    with bar() as progress:
        for number, case in enumerate(cases):
            progress("gpu", number / len(cases))
            try:
                rows.append(gpu.measure(case, found))
            except QuietbeamError as error:
                rows.append({**asdict(case), "error": str(error)})
        progress("gpu", 1.0)
    if arguments.json:
        print_json({"machine": gpu_machine(), "limits": asdict(found), "gpu": rows})
    else:
        _print_gpu(rows)
    return 1 if any("error" in row for row in rows) else 0


def gpu_machine() -> dict[str, Any]:
    """What figures of a GPU depend on, besides ``machine``: driver, device, TensorRT."""
    from quietbeam.service.machine import gpu_report

    return {**machine(), **gpu_report()}


def _print_gpu(rows: Sequence[dict[str, Any]]) -> None:
    keys = ("frames_per_s", "p50_ms", "p99_ms", "swap_us", "floor_ms", "times_the_floor")
    header = ("denoiser", "engine", "px", "training", *keys)
    lines = []
    for row in rows:
        case = (row["denoiser"], row["engine"], str(row["size_px"]), row["training"])
        figures = [row["error"]] if "error" in row else [f"{row[key]:.3g}" for key in keys]
        lines.append((*case, *figures))
    print_table(lines, header)


def _execute_ingest(arguments: argparse.Namespace) -> int:
    from quietbeam.cli import _bench_ingest as ingest
    from quietbeam.service.logs import configure

    configure(level="warning", stream=sys.stderr)
    found = machine()
    forms, compressions = ingest.FORMATS, ingest.COMPRESSIONS
    cases = [(f, c, side) for f in forms for c in compressions for side in arguments.size]
    decoding, sockets = [], []
    with bar() as progress:
        for number, (form, compression, size_px) in enumerate(cases):
            progress("decode", number / len(cases))
            frames = arguments.frames
            decoding.append(ingest.measure_decoding(form, compression, size_px, frames))
        progress("decode", 1.0)
        for number, form in enumerate(ingest.FORMATS):
            progress("socket", number / len(ingest.FORMATS))
            sockets.append(
                ingest.measure_socket(form, SOCKET_PX, arguments.rate, arguments.seconds)
            )
        progress("socket", 1.0)
    if arguments.json:
        print_json({"machine": found, "decoding": decoding, "socket": sockets})
    else:
        _print_ingest(decoding, sockets, found)
    return 0


def _cases(arguments: argparse.Namespace) -> list[Case]:
    from quietbeam.registry import available

    installed = list(available("denoisers"))
    wanted = arguments.denoiser or installed
    for name in wanted:
        if name not in installed:
            raise ConfigError(f"--denoiser {name}: installed are {', '.join(installed)}")
    for name, least in (("size", 16), ("threads", 1)):
        for value in getattr(arguments, name):
            if value < least:
                raise ConfigError(f"--{name} {value}: expected at least {least}")
    for name in ("frames", "seconds", "rate"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: expected more than 0")
    frames, seconds = arguments.frames, arguments.seconds
    return [
        Case(name, engine, size_px, threads, frames, seconds)
        for name, engine in product(wanted, arguments.engine)
        for size_px, threads in product(arguments.size, arguments.threads)
    ]


def _one_of_each(cases: Sequence[Case]) -> list[Case]:
    """One tiny case for every denoiser that is to run in OpenVINO."""
    names = dict.fromkeys(case.denoiser for case in cases if case.engine == "openvino")
    return [Case(name, "openvino", 32, 1, 1, 0.1) for name in names]


def _run(case: Case) -> dict[str, Any]:
    """Measure one case in a fresh process: memory, threads and caches of its own."""
    environment = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would slow each other down
        "OMP_NUM_THREADS": str(case.threads),
    }
    command = [sys.executable, "-m", "quietbeam", "bench", "--case", json.dumps(asdict(case))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {**asdict(case), "error": f"took longer than {TIMEOUT_S:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**asdict(case), "error": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case) -> dict[str, Any]:
    """Run one case in this process.

    Frames are a level with unit noise: no denoiser or engine here is faster or
    slower for one picture than for another.

    Raises:
        QuietbeamError: The denoiser or the engine cannot be built.
    """
    import numpy as np

    from quietbeam.config import EngineConfig
    from quietbeam.core.plugin import DenoiserPlugin
    from quietbeam.model.engines import build_engine
    from quietbeam.registry import find

    plugin: Any = find("denoisers", case.denoiser, DenoiserPlugin)
    module = plugin().build()
    weights = sum(int(np.prod(weight.shape)) for weight in module.state_dict().values())
    before_bytes = _memory("VmRSS")
    began = time.perf_counter()
    config = EngineConfig.model_validate({"kind": case.engine, "threads": case.threads})
    engine = build_engine(module, (case.size_px, case.size_px), config)
    build_s = time.perf_counter() - began
    noise = np.random.default_rng(0).standard_normal((2, case.size_px, case.size_px), np.float32)
    wall, cpu = _timed(engine, noise + 30, case, warm_up=2 * module.lag + 3)
    return {
        **asdict(case),
        "frames": len(wall),
        "few_frames": len(wall) < ENOUGH,
        "precision": getattr(engine, "precision", "f32"),
        "weights": weights,
        "lag": module.lag,
        "frames_per_s": len(wall) / sum(wall),
        "p50_ms": 1e3 * float(np.percentile(wall, 50)),
        "p99_ms": 1e3 * float(np.percentile(wall, 99)),
        "cpu_ms": 1e3 * cpu,
        "build_s": build_s,
        "peak_bytes": _memory("VmHWM"),
        "engine_bytes": max(0, _memory("VmHWM") - before_bytes),
    }


def _timed(engine: Any, frames: Any, case: Case, warm_up: int) -> tuple[list[float], float]:
    """Wall times of single frames after the warm-up, and processor time of one, in seconds."""
    for i in range(warm_up):
        began = time.perf_counter()
        engine(frames[i % len(frames)])
        if time.perf_counter() - began > case.seconds / 4:
            break  # so slow that one frame has warmed up everything
    wall: list[float] = []
    cpu = time.process_time()
    while len(wall) < case.frames and (sum(wall) < case.seconds or len(wall) < 2):
        began = time.perf_counter()
        engine(frames[len(wall) % len(frames)])
        wall.append(time.perf_counter() - began)
    return wall, (time.process_time() - cpu) / len(wall)


def _memory(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where /proc does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, other load, versions."""
    from importlib.metadata import version

    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ", 1)[1] for line in lines if "model name" in line), model)
    versions = {name: version(name) for name in ("quietbeam", "torch", "openvino")}
    load = round(os.getloadavg()[0], 2)
    return {"processor": model, "cores": os.cpu_count(), "load_1min": load, **versions}


def _print(rows: Sequence[dict[str, Any]], found: dict[str, Any], took_s: float) -> None:
    header = ("denoiser", "engine", "px", "threads", "frames/s", "p50 ms", "p99 ms", "cpu ms")
    print_table(list(_lines(rows)), (*header, "peak MiB", "engine MiB", "frames"))
    shown = ", ".join(f"{key} {value}" for key, value in found.items())
    print(f"\n{shown}; {took_s:.0f} s in all")
    if any(row.get("few_frames") for row in rows):
        print(f"* fewer than {ENOUGH} frames in the time given: p99 is the slowest of them")
    for row in rows:
        if "error" in row:
            print(f"{row['denoiser']} in {row['engine']}: {row['error']}", file=sys.stderr)


def _print_live(rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> None:
    header = ("denoiser", "px", "threads", "trainer", "in/s", "clean/s", "given up")
    lines = []
    for row in rows:
        for kind in ("training", "frozen"):
            seen = row[kind]
            case = (row["denoiser"], str(row["size_px"]), str(row["threads"]), kind)
            rates = (f"{seen[key]:.1f}" for key in ("received_hz", "clean_hz"))
            times = (f"{seen[key]:.1f}" for key in ("denoise_ms", "latency_ms"))
            lines.append((*case, *rates, f"{100 * seen['given_up']:.1f} %", *times))
    print_table(lines, (*header, "ms per frame", "latency ms"))
    print("\n" + ", ".join(f"{key} {value}" for key, value in found.items()))


def _print_ingest(
    decoding: Sequence[dict[str, Any]], sockets: Sequence[dict[str, Any]], found: dict[str, Any]
) -> None:
    lines = [
        (row["format"], row["compression"], row["size_px"], f"{row['path_ms']:.2f}",
         f"{row['bare_ms']:.2f}", f"{row['ratio']:.2f}", f"{row['bytes_per_s'] / 1e9:.2f}",
         f"{row['pixels_per_s'] / 1e6:.0f}", row["frames"])
        for row in decoding
    ]  # fmt: skip
    header = ("format", "codec", "px", "ms", "bare ms", "ratio", "GB/s", "Mpx/s", "frames")
    print_table(lines, header)
    keys = ("format", "size_px", "rate_hz", "sent", "unsent", "received", "missing", "dropped")
    print()
    print_table([[row[key] for key in keys] for row in sockets], keys)
    print("\n" + ", ".join(f"{key} {value}" for key, value in found.items()))


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        case = (row["denoiser"], row["engine"], str(row["size_px"]), str(row["threads"]))
        if "error" in row:
            yield (*case, "failed")
            continue
        figures = (f"{row[key]:.1f}" for key in ("frames_per_s", "p50_ms", "p99_ms", "cpu_ms"))
        memory = (f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "engine_bytes"))
        yield (*case, *figures, *memory, f"{row['frames']}{'*' if row['few_frames'] else ''}")
