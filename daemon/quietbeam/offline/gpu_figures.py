"""``quietbeam bench --gpu``: engines on a GPU beside what its memory and its arithmetic allow.

``python -m quietbeam.offline.gpu_figures NAME DEVICE`` trains until standard input ends and prints
steps per second: the training process of a measurement.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from quietbeam.model.device_engine import DeviceEngine

Training = Literal["off", "process", "stream"]
TRAININGS: tuple[Training, ...] = ("off", "process", "stream")
ENGINES = ("tensorrt", "cuda")
BURST = 16
"""Frames that go to the device before it is waited for once."""

_LARGE = {"quiet": {"size": "L"}}  # on a GPU its own size


@dataclass(frozen=True, slots=True)
class GpuCase:
    """One measurement."""

    denoiser: str
    engine: str
    size_px: int
    training: Training
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device was measured to do: bytes copied (read and written) and FLOP in one second."""

    copied_bytes_per_s: float
    sent_bytes_per_s: float
    flop_per_s: float


def limits(device: str = "cuda", megabytes: int = 1024, side: int = 8192) -> Limits:
    """Measure copies on the device, copies to it, and products of matrices in 16 bits."""
    import torch

    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.empty(megabytes << 20, dtype=torch.uint8, pin_memory=device == "cuda")
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return Limits(
        2 * source.numel() / _fastest(lambda: target.copy_(source), device),
        host.numel() / _fastest(lambda: target.copy_(host, non_blocking=True), device),
        2 * side**3 / _fastest(lambda: matrix @ matrix, device),
    )


def _fastest(work: Callable[[], object], device: str, times: int = 10) -> float:
    """Seconds of the fastest of several calls, each waited for."""
    import torch

    taken = []
    for _ in range(times + 2):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[2:])


def module_of(name: str) -> Any:
    """The denoiser at the size that is meant for GPUs."""
    from quietbeam.core.plugin import DenoiserPlugin
    from quietbeam.registry import find

    plugin: Any = find("denoisers", name, DenoiserPlugin)
    return plugin(**_LARGE.get(name, {})).build()


def cost(module: Any, size_px: int) -> dict[str, float]:
    """FLOP and least traffic of one frame.

    Bytes on the device: every input (frame, state, weights) read once, every output (mean,
    variance, states that are new) written once, in float32.  Bytes over the bus: a frame in,
    two images out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from quietbeam.model.cuda_engine import kept_as_is

    frame = torch.zeros(1, 1, size_px, size_px)
    state = module.initial_state(1, size_px, size_px)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        _, _, after = module(frame, state)
    kept = kept_as_is(module)
    numbers = 3 * frame.numel() + sum(tensor.numel() for tensor in state)
    numbers += sum(tensor.numel() for i, tensor in enumerate(after) if i not in kept)
    numbers += sum(weight.numel() for weight in module.state_dict().values())
    return {
        "flop": float(counter.get_total_flops()),
        "device_bytes": 4.0 * numbers,
        "bus_bytes": 4.0 * 3 * frame.numel(),
    }


def build(module: Any, case: GpuCase) -> DeviceEngine:
    """The engine itself, without the thread that guards it in the daemon.

    Raises:
        QuietbeamError: It cannot be built.
    """
    shape = (case.size_px, case.size_px)
    if case.engine == "cuda":
        from quietbeam.model.cuda_engine import cuda_engine

        return cuda_engine(module, shape, "f16")
    from quietbeam.model.engines import cache_directory
    from quietbeam.model.tensorrt_engine import tensorrt_engine

    return tensorrt_engine(module, shape, cache=cache_directory())


def measure(
    case: GpuCase,
    found: Limits,
    engine: Callable[[Any, GpuCase], DeviceEngine] = build,
    device: str = "cuda",
) -> dict[str, Any]:
    """Measure one case: bursts for frames per second, single frames for latency, swaps.

    Args:
        case: What to measure.
        found: Of this device, measured without other load.
        engine: Builds the engine.
        device: Where training runs.

    Raises:
        QuietbeamError: The engine cannot be built, or the device fails.
    """
    import numpy as np

    module = module_of(case.denoiser)
    needed = cost(module, case.size_px)
    running = engine(module, case)
    rng = np.random.default_rng(0)
    frames = [
        30 + rng.standard_normal((case.size_px, case.size_px), np.float32) for _ in range(BURST)
    ]
    for _ in range(4):  # graphs of all sets of buffers are captured
        running.burst(frames)
    with _trained(case, device) as training:
        single = _times(lambda i: running(frames[i % BURST]), case.seconds / 2)
        bursts = _times(lambda _i: running.burst(frames), case.seconds / 2)
    swaps = _times(lambda _i: running.flip(), 0.1)
    floor_s = max(
        needed["device_bytes"] / found.copied_bytes_per_s,
        needed["bus_bytes"] / found.sent_bytes_per_s,
        needed["flop"] / found.flop_per_s,
    )
    frame_s = sum(bursts) / len(bursts) / BURST
    return {
        **asdict(case),
        "kind": running.kind,
        "precision": running.precision,
        "frames": len(single) + BURST * len(bursts),
        "frames_per_s": 1 / frame_s,
        "p50_ms": 1e3 * float(np.percentile(single, 50)),
        "p99_ms": 1e3 * float(np.percentile(single, 99)),
        "swap_us": 1e6 * float(np.percentile(swaps, 50)),
        **needed,
        "floor_ms": 1e3 * floor_s,
        "times_the_floor": frame_s / floor_s,
        "training_steps_per_s": training.get("steps_per_s"),
    }


def _times(work: Callable[[int], object], seconds: float) -> list[float]:
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < seconds:
        began = time.perf_counter()
        work(len(taken))
        taken.append(time.perf_counter() - began)
    return taken


@contextlib.contextmanager
def _trained(case: GpuCase, device: str) -> Iterator[dict[str, float]]:
    """Train meanwhile; ``steps_per_s`` is told at the end."""
    told: dict[str, float] = {}
    if case.training == "process":
        with _training_process(case.denoiser, device, told):
            yield told
    elif case.training == "stream":
        with _training_thread(case.denoiser, device, told):
            yield told
    else:
        yield told


@contextlib.contextmanager
def _training_process(name: str, device: str, told: dict[str, float]) -> Iterator[None]:
    command = [sys.executable, "-m", __name__, name, device]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None  # noqa: S101
        child.stdout.readline()  # it has taken its first step
        try:
            yield
        finally:
            out, _ = child.communicate(timeout=60)
    told.update(json.loads(out.splitlines()[-1]))


@contextlib.contextmanager
def _training_thread(name: str, device: str, told: dict[str, float]) -> Iterator[None]:
    started, stop = threading.Event(), threading.Event()

    def body() -> None:
        told["steps_per_s"] = train(name, device, started.set, stop.is_set)

    thread = threading.Thread(target=body)
    thread.start()
    started.wait(120)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def train(name: str, device: str, started: Callable[[], None], stop: Callable[[], bool]) -> float:
    """Train on noise, on a stream of the lowest priority, until told to stop: steps per second."""
    import torch

    low = torch.cuda.Stream(priority=0) if device == "cuda" else None
    with contextlib.nullcontext() if low is None else torch.cuda.stream(low):
        module = module_of(name).to(device).train()
        optimiser = torch.optim.Adam(module.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        clip = torch.randn(8, module.window, 64, 64, device=device)
        valid = torch.ones_like(clip, dtype=torch.bool)
        steps, began = 0, time.perf_counter()
        while not (steps and stop()):
            optimiser.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = module.training_loss(clip, valid, generator)
            loss.backward()
            optimiser.step()
            float(loss.detach())  # as a trainer does that watches its loss
            steps += 1
            if steps == 1:
                started()
        return steps / (time.perf_counter() - began)


def _main() -> int:
    name, device = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    rate = train(name, device, lambda: _tell("started"), ended.is_set)
    _tell(json.dumps({"steps_per_s": rate}))
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(_main())
