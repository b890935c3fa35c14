"""Measures ingest: messages to frames in the ring, beside the bare work; and a real socket."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from quietbeam.cli._daemon import free_port
from quietbeam.core.errors import QuietbeamError
from quietbeam.core.events import Event, Frame, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import SourcePlugin
from quietbeam.core.ring import create
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.ingest import STAGE, Ingest

FORMATS = ("array-1.0", "dectris-v1", "dectris-v2")
COMPRESSIONS = ("none", "bslz4")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the kernel's shared memory
_RING_FRAMES = 8
_WARM_UP = 12  # so that the ring has been filled once: its memory is there
_MESSAGES_BYTES = 256 << 20
_WAIT_S = 60.0

Message = list[memoryview]


def measure_decoding(form: str, compression: str, size_px: int, frames: int) -> dict[str, Any]:
    """Time messages of uint16 frames through decoder and ingest into a ring, without a socket.

    Beside each message the bare work is timed in the same process: for
    compressed pixels the decompressor alone, for others one copy of them.

    Args:
        form: One of ``FORMATS``.
        compression: One of ``COMPRESSIONS``.
        size_px: Side of the image.
        frames: How many at most; their messages are made beforehand, up to 256 MB.

    Returns:
        Medians in milliseconds, their ratio, and rates in bytes and pixels.
    """
    pixels = np.random.default_rng(0).poisson(5, (size_px, size_px)).astype(np.uint16)
    played = _Played(form, _messages(form, compression, pixels, frames), _bare(compression, pixels))
    with _ring(pixels.nbytes) as ring:
        ledger = Ledger()
        _ingest(cast("SourcePlugin", played), ring, ledger).body()
    stage = ledger.stages()[STAGE]
    path_s, bare_s = float(np.median(played.path_s)), float(np.median(played.bare_s))
    return {
        "format": form,
        "compression": compression,
        "size_px": size_px,
        "frames": len(played.path_s),
        "dropped": stage.received - stage.sent,
        "path_ms": 1e3 * path_s,
        "bare_ms": 1e3 * bare_s,
        "ratio": bare_s / path_s,
        "bytes_per_s": pixels.nbytes / path_s,
        "pixels_per_s": pixels.size / path_s,
    }


class _Played:
    """A source of messages that are in memory; takes the time that each needs.

    Attributes:
        path_s: From a message to its frame in the ring.
        bare_s: The bare work, right after it.
    """

    def __init__(self, form: str, messages: Sequence[Message], bare: Callable[[], object]) -> None:
        self._form, self._messages, self._bare = form, messages, bare
        self.path_s: list[float] = []
        self.bare_s: list[float] = []

    @contextmanager
    def open(self) -> Iterator[Iterator[Event]]:
        yield self._events()

    def _events(self) -> Iterator[Event]:
        decoder = _source(self._form, address="tcp://127.0.0.1:1").decoder()
        for message in self._messages:
            began_s = time.perf_counter()
            for number, part in enumerate(message):
                yield from decoder.feed(part, 0, starts_message=number == 0)
            path_s = time.perf_counter() - began_s
            began_s = time.perf_counter()
            self._bare()
            self.bare_s.append(time.perf_counter() - began_s)
            self.path_s.append(path_s)
        del self.path_s[:_WARM_UP], self.bare_s[:_WARM_UP]
        yield from decoder.finish()


def _messages(form: str, compression: str, pixels: NDArray[Any], frames: int) -> list[Message]:
    """A series: its header, then frames."""
    from quietbeam.testing.simulators import encoder

    encoding = encoder(form, cast("Any", compression))
    run = RunStart(run="bench", shape=(pixels.shape[0], pixels.shape[1]), dtype=pixels.dtype)
    messages = encoding.start(run)
    made_bytes = 0
    for number in range(_WARM_UP + frames):
        frame = Frame(run="bench", index=number, time_ns=number, received_ns=0, pixels=pixels)
        messages += encoding.frame(frame)
        made_bytes += sum(map(len, messages[-1]))
        if number > _WARM_UP and made_bytes > _MESSAGES_BYTES:
            break
    return [[memoryview(part) for part in message] for message in messages]


def _bare(compression: str, pixels: NDArray[Any]) -> Callable[[], object]:
    """The work that no way of reading these pixels can do without."""
    if compression == "none":
        source, target = pixels.tobytes(), memoryview(bytearray(pixels.nbytes))

        def copy() -> None:
            target[:] = source

        return copy
    from dectris.compression import decompress

    from quietbeam.testing.simulators import compress

    blob = compress.bslz4(pixels)
    return lambda: decompress(blob, "bslz4", elem_size=pixels.itemsize)


def measure_socket(form: str, size_px: int, rate_hz: float, seconds: float) -> dict[str, Any]:
    """Read a detector of another process over a real socket at a steady rate.

    Args:
        form: One of ``FORMATS``.
        size_px: Side of the image, uint16.
        rate_hz: Frames per second that are sent.
        seconds: How long they are sent.

    Returns:
        Frames sent, given up by the sender, received, missing and dropped.

    Raises:
        QuietbeamError: The sender failed.
    """
    frames = max(2, round(rate_hz * seconds))
    address = f"tcp://127.0.0.1:{free_port()}"
    source = _source(form, address=address, run_timeout_s=2.0)
    ledger = Ledger()
    with _ring(2 * size_px * size_px) as ring:
        ingest = _ingest(source, ring, ledger)
        thread = threading.Thread(target=ingest.body)
        thread.start()
        try:
            report = _send(form, size_px, rate_hz, frames, address)
            _wait(lambda: ledger.stages()[STAGE].received >= report["sent"] and ingest.run is None)
        finally:
            ingest.stop()
            thread.join()
    stage = ledger.stages()[STAGE]
    return {
        "format": form,
        "size_px": size_px,
        "rate_hz": report["rate_hz"],
        "sent": report["sent"],
        "unsent": report["unsent"],
        "received": stage.received,
        "missing": report["sent"] - stage.received,
        "dropped": stage.received - stage.sent,
    }


def _send(form: str, size_px: int, rate_hz: float, frames: int, address: str) -> dict[str, Any]:
    """Be the detector, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="quietbeam-bench-") as folder:
        images = np.random.default_rng(0).poisson(5, (16, size_px, size_px)).astype(np.uint16)
        path = Path(folder) / "images.npy"
        np.save(path, images)
        command = [sys.executable, "-m", "quietbeam", "simulate", str(path), "--format", form]
        command += ["--rate", str(rate_hz), "--frames", str(frames), "--bind", address]
        done = subprocess.run(
            [*command, "--wait", "--json"], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise QuietbeamError(f"the simulated detector failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def _source(form: str, **settings: Any) -> Any:
    from quietbeam.registry import find

    name = "array" if form == "array-1.0" else "dectris"
    plugin: Any = find("sources", name, SourcePlugin)
    return plugin(**settings)


def _ingest(source: SourcePlugin, ring: Any, ledger: Ledger) -> Ingest:
    return Ingest(source, ring, ledger, lambda _run: {}, Alarms())


@contextmanager
def _ring(frame_bytes: int) -> Iterator[Any]:
    folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="quietbeam-bench-", dir=folder) as name:
        yield create(Path(name) / "raw", _RING_FRAMES * (frame_bytes + 4096))


def _wait(done: Callable[[], bool]) -> None:
    """Wait for what is on its way; what has not come by then is missing."""
    deadline_s = time.monotonic() + _WAIT_S
    while not done() and time.monotonic() < deadline_s:
        time.sleep(0.05)
