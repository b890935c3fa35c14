"""Scenes of several channels whose truth is known, and a detector that sends them."""

from __future__ import annotations

import json
import time

import numpy as np

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.offline.sender import open_sender

SHAPE = (64, 80)


def truth(channels, index=0, shape=SHAPE, speed=0.0):
    """(c, h, w) mean counts: each channel has its own brightness, pattern and contrast."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    x = x + speed * index
    return np.stack(
        [
            20 * (n + 1) * (1 + 0.5 * np.sin(x / (5 + n)) * np.cos(y / (9 - n)))
            for n in range(channels)
        ]
    )


def counts(channels, index, **scene):
    """(c, h, w) Poisson counts, the same for the same index."""
    return np.random.default_rng(index).poisson(truth(channels, index, **scene)).astype(np.uint16)


class Camera:
    """Sends array-1.0 with the colours last, as areaDetector does in mode RGB1."""

    def start(self, run):
        return []

    def frame(self, frame):
        pixels = np.ascontiguousarray(np.moveaxis(frame.pixels, 0, -1))
        header = {"htype": "array-1.0", "type": "uint16", "shape": list(pixels.shape)}
        header |= {"frame": frame.index, "ndattr": {"ColorMode": 2}}
        return [[json.dumps(header).encode(), pixels.tobytes()]]

    def end(self, end):
        return []


def send(port, encoder, frames, *, rate_hz, stop=lambda: False):
    """Push (c, h, w) or (h, w) ``frames`` as one series; give how many left."""
    first = next(frames := iter(frames))
    channels = tuple(f"threshold_{n + 1}" for n in range(len(first))) if first.ndim == 3 else ()
    run = RunStart(
        run=f"run-{time.monotonic_ns()}",
        shape=first.shape,
        dtype=first.dtype,
        channels=channels,
        frame_time_s=1 / rate_hz,
    )
    sent, pixels, began = 0, first, time.monotonic()
    with open_sender(f"tcp://127.0.0.1:{port}", bind=False) as sender:
        for message in encoder.start(run):
            assert sender.send(message, 10)
        while pixels is not None and not stop():
            frame = Frame(
                run=run.run,
                index=sent,
                time_ns=round(sent / rate_hz * 1e9),
                received_ns=time.monotonic_ns(),
                pixels=pixels,
            )
            for message in encoder.frame(frame):
                assert sender.send(message, 10)
            sent += 1
            time.sleep(max(0.0, began + sent / rate_hz - time.monotonic()))
            pixels = next(frames, None)
        for message in encoder.end(RunEnd(run=run.run, reason="completed")):
            assert sender.send(message, 10)
    return sent
