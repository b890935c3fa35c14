"""Runs the children that denoise, ``processes`` at a time, each with one thread.

A child (``python -m quietbeam.offline.evaluation.child``) reads one order as
JSON and answers with one line.  A child that trains never sees the truth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import EngineError

Video = NDArray[np.float32]
Kind = Literal["raw", "filter", "peer", "best", "denoiser"]
"""Raw; classical or of others, tuned with the truth; the best of the filters; the daemon's own."""
Progress = Callable[[str, float], None]

BEST_CAUSAL, BEST = "best causal filter", "best filter"
"""Titles of the best classical filters tuned with the truth; the second may see the whole video."""
LIVE = " live"
"""Ends the name of a network that streams, as it does live; without it the future is used too."""
AT_ONCE = " at lag 0"
"""Ends the name of a network whose weights give each frame at once, from earlier ones only."""

_OVERHEAD = 50.0  # steps that starting and cleaning are worth
_TUNING = {"filters": 30.0, "peers": 60.0}


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """One noisy video and its truth, (t, h, w) float32 each.

    Attributes:
        name: For messages.
        seed: Of the trainings on it.
        images: The frames are unrelated: nothing may be taken from one to the next.
    """

    name: str
    noisy: Video
    truth: Video
    seed: int = 0
    images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one child is asked to do; paths are of ``.npy`` files.

    Attributes:
        task: "denoise" with a denoiser of the daemon, tune "filters" or
            "peers", or a "rehearsal": tell how many steps fit into ``cpu_seconds``.
        noisy: Input.
        truth: Input, "" for those that must not know it.
        output: Start of the paths that are written.
        names: Of the denoiser, the filters or the peers.
    """

    task: Literal["denoise", "filters", "peers", "rehearsal"]
    noisy: str
    truth: str
    output: str
    names: list[str]
    steps: int = 0
    cpu_seconds: float = 0.0
    seed: int = 0
    images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one method made of one video; figures NaN and paths "" where there are none.

    Attributes:
        clean: Path.
        sd: Path.
        estimated_psnr: dB, as the denoiser judges itself without the truth.
        peak: What that refers to.
        trusted: The denoiser trusts that figure.
        train_cpu_s: Processor time of the training.
        frame_cpu_ms: Processor time for each frame, once it runs.
        detail: Steps, or settings.
    """

    method: str
    kind: Kind
    clean: str
    sd: str = ""
    estimated_psnr: float = float("nan")
    peak: float = float("nan")
    trusted: bool = True
    train_cpu_s: float = 0.0
    frame_cpu_ms: float = 0.0
    detail: str = ""


@dataclass(slots=True, eq=False)
class Done:
    """The estimates of one child, or why there are none."""

    material: int
    estimates: list[Estimate] = field(default_factory=list)
    failure: str = ""


@contextmanager
def workshop(
    materials: Sequence[Material], processes: int, progress: Progress
) -> Iterator[Workshop]:
    """Give a place where children work; their files are gone when it closes."""
    with tempfile.TemporaryDirectory(prefix="quietbeam-") as folder, _Pool(processes) as pool:
        for number, material in enumerate(materials):
            np.save(Path(folder) / f"{number}.npy", material.noisy)
            np.save(Path(folder) / f"{number}-truth.npy", material.truth)
        yield Workshop(materials, Path(folder), pool, progress)


class _Pool(ThreadPoolExecutor):
    """Threads that each wait for a child; after an error nothing new is begun."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.shutdown(wait=True, cancel_futures=error is not None)


class Workshop:
    """Children at work on ``materials``; made by ``workshop``."""

    def __init__(
        self,
        materials: Sequence[Material],
        folder: Path,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self._materials, self._folder, self._pool = materials, folder, pool
        self._progress, self._lock = progress, threading.Lock()
        self._total = self._done = 0.0

    def rehearse(self, methods: Sequence[str], cpu_seconds: float) -> dict[str, int]:
        """Tell how many steps of each method take ``cpu_seconds`` of processor time.

        Measured on the first material; 0 for a denoiser that needs no training
        or cannot be trained on it.
        """
        orders = {
            name: self._order(0, "rehearsal", [name], cpu_seconds=cpu_seconds) for name in methods
        }
        futures = {name: self._pool.submit(_child, order) for name, order in orders.items()}
        steps = dict.fromkeys(methods, 0)
        for name, future in futures.items():
            with suppress(EngineError):  # the training itself will say what is wrong
                steps[name] = int(future.result()["steps"])
        return steps

    def work(
        self,
        methods: Mapping[str, int],
        filters: Sequence[str],
        peers: Sequence[str],
        *,
        strict: bool,
    ) -> list[Done]:
        """Let every method loose on every material.

        Args:
            methods: Denoisers by name, with steps of training.
            filters: In ``BASELINES``.
            peers: In ``PEERS``.
            strict: A failure ends it all; else it is told in the answer.

        Raises:
            EngineError: ``strict`` and a child failed.
        """
        orders: list[tuple[int, Order]] = []
        numbers = range(len(self._materials))
        for name, steps in reversed([*methods.items()]):  # the long ones first: no lonely last one
            orders += [(n, self._order(n, "denoise", [name], steps=steps)) for n in numbers]
        if peers:
            orders += [(n, self._order(n, "peers", peers)) for n in numbers]
        if filters:
            orders += [(n, self._order(n, "filters", filters)) for n in numbers]
        self._total = sum(_cost(order) for _, order in orders)
        futures: list[Future[Done]] = [
            self._pool.submit(self._one, number, order, strict) for number, order in orders
        ]
        for future in as_completed(futures):
            future.result()  # the first failure is heard of at once
        return [future.result() for future in futures]

    def _order(self, number: int, task: Any, names: Sequence[str], **more: Any) -> Order:
        material = self._materials[number]
        base = self._folder / str(number)
        return Order(
            task=task,
            noisy=f"{base}.npy",
            truth=f"{base}-truth.npy" if task in _TUNING else "",
            output=f"{base}-{names[0]}",
            names=list(names),
            seed=material.seed,
            images=material.images,
            **more,
        )

    def _one(self, number: int, order: Order, strict: bool) -> Done:  # noqa: FBT001
        done = Done(number)
        try:
            answer = _child(order)
            done.estimates = [Estimate(**one) for one in answer["estimates"]]
        except EngineError as error:
            what = order.names[0] if order.task == "denoise" else order.task
            done.failure = f"{what} on {self._materials[number].name}: {error}"
            if strict:
                raise EngineError(done.failure) from error
        with self._lock:
            self._done += _cost(order)
            self._progress("training and scoring", min(1.0, self._done / self._total))
        return done


def _cost(order: Order) -> float:
    return _TUNING.get(order.task, order.steps + _OVERHEAD)


def _child(order: Order) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    child = subprocess.run(
        [sys.executable, "-m", "quietbeam.offline.evaluation.child"],
        input=json.dumps(asdict(order)),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if child.returncode:
        raise EngineError(child.stderr.strip()[-2000:] or f"child ended with {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])
