"""A device without a control system: regions of the frames that a ``zmq`` output publishes."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from ophyd import Component as Cpt
from ophyd import Device, Signal
from ophyd.status import DeviceStatus

_POLL_MS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One image: its number, when its raw frame came to the daemon, (h, w) pixels."""

    index: int
    arrived_s: float
    pixels: NDArray[Any]


class Frames:
    """The images of one output (array-1.0, uncompressed), read by a thread.

    Args:
        address: Of the output, e.g. ``tcp://127.0.0.1:9898``.
        keep: Images kept.
    """

    def __init__(self, address: str, keep: int = 4096) -> None:
        self.seen: deque[Seen] = deque(maxlen=keep)
        self._listeners: list[Callable[[Seen], None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(address,), daemon=True)
        self._thread.start()

    def listen(self, hear: Callable[[Seen], None]) -> None:
        """Call ``hear`` with every image from now on, in the thread that reads."""
        self._listeners.append(hear)

    def close(self) -> None:
        """Read no more."""
        self._stop.set()
        self._thread.join()

    def _read(self, address: str) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(address)
            while not self._stop.is_set():
                if socket.poll(_POLL_MS):
                    self._take(*socket.recv_multipart())

    def _take(self, text: bytes, data: bytes) -> None:
        header = json.loads(text)
        if header.get("encoding"):
            return
        pixels = np.frombuffer(data, header["type"]).reshape(header["shape"])
        arrived_s = time.monotonic() - float(header.get("latency_s") or 0.0)
        image = Seen(int(header["frame"]), arrived_s, pixels)
        self.seen.append(image)
        for hear in list(self._listeners):
            hear(image)


@contextmanager
def reading(address: str, keep: int = 4096) -> Iterator[Frames]:
    """Give the images of an output."""
    frames = Frames(address, keep)
    try:
        yield frames
    finally:
        frames.close()


class StreamRegion(Device):
    """The mean of a region, over frames that arrived after ``trigger``.

    Args:
        frames: Where images come from.
        region: (top, left, bottom, right) in pixels, the end excluded.
    """

    num_frames = Cpt(Signal, value=1, kind="config")
    value = Cpt(Signal, value=float("nan"), kind="hinted")
    first_id = Cpt(Signal, value=0, kind="normal")
    last_id = Cpt(Signal, value=0, kind="normal")

    def __init__(
        self, frames: Frames, region: tuple[int, int, int, int], *, name: str, **kwargs: Any
    ) -> None:
        super().__init__("", name=name, **kwargs)
        self._region = region
        self._going: tuple[DeviceStatus, float, list[tuple[int, float]]] | None = None
        self._wanted = 1
        frames.listen(self._hear)

    def measured(self, metric: str) -> Signal:
        """Give the signal of the one metric there is, ``value``.

        Raises:
            KeyError: Another one is asked for.
        """
        if metric != "value":
            raise KeyError(f"{metric!r}: a region of a stream has the metric 'value' only")
        return self.value

    def trigger(self) -> DeviceStatus:
        """Measure: done after ``num_frames`` frames that arrive from now on."""
        status = DeviceStatus(self)
        self._wanted = int(str(self.num_frames.get()))
        self._going = (status, time.monotonic(), [])
        return status

    def _hear(self, image: Seen) -> None:
        if self._going is None or image.arrived_s <= self._going[1]:
            return
        status, _, taken = self._going
        top, left, bottom, right = self._region
        taken.append((image.index, float(np.nanmean(image.pixels[top:bottom, left:right]))))
        if len(taken) < self._wanted:
            return
        self._going = None
        self.value.put(float(np.mean([value for _, value in taken])))
        self.first_id.put(taken[0][0])
        self.last_id.put(taken[-1][0])
        status.set_finished()
