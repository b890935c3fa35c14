"""Plays a file as if a detector were sending it: HDF5, NeXus, TIFF, ``.npy``, captures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from quietbeam.core.errors import DataError
from quietbeam.core.events import Event, Frame, Rejected, RunEnd, RunStart
from quietbeam.core.plugin import SourcePlugin
from quietbeam.offline.capture import is_capture, read_capture
from quietbeam.offline.series import Series, open_series
from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.dectris import Dectris
from quietbeam_plugins.sources.jungfraujoch import Jungfraujoch
from quietbeam_plugins.sources.karabo import Karabo
from quietbeam_plugins.sources.odin import OdinLiveView
from quietbeam_plugins.sources.series import stamped
from quietbeam_plugins.sources.slsdetector import SlsDetector
from quietbeam_plugins.sources.stins import Stins
from quietbeam_plugins.sources.zmq_parts import StreamSource

CAPTURE_SUFFIX = ".qbcap"
_CAPTURED: tuple[type[StreamSource], ...] = (
    Array, Dectris, Jungfraujoch, Karabo, OdinLiveView, SlsDetector, Stins,
)  # fmt: skip
_IDLE_S = 0.1
_DEFAULT_RATE_HZ = 10.0


class Replay(SourcePlugin):
    """A recorded series of images, or a capture, at a given rate."""

    file: str
    """Path, or ``path.h5:/dataset``; a NeXus file's default signal is found without it."""
    rate_hz: PositiveFloat | None = None
    """Frames per second; None takes the file's own frame time, or 10."""
    loop: bool = False
    """Again and again, each time as a run of its own."""
    frames: PositiveInt | None = None
    """Play only so many of the first frames (of a series of images)."""
    speed: PositiveFloat = 1.0
    """How many times as fast as recorded (a capture)."""
    from_s: NonNegativeFloat = 0.0
    """Begin here, in seconds since the first message (a capture)."""
    to_s: PositiveFloat | None = None
    """End here (a capture)."""
    nodata: float | None = None
    """Count that means "no data"."""
    saturation: float | None = None
    """Count from which on a pixel is saturated."""

    def open(self) -> AbstractContextManager[Iterator[Event | None]]:
        """Give the events; a frame that cannot be read is ``Rejected``.

        Raises:
            DataError: The file is missing, damaged or holds no image series.
        """
        if self.file.endswith(CAPTURE_SUFFIX) or is_capture(Path(self.file)):
            return self._open_capture()
        return self._open_series()

    @contextmanager
    def _open_series(self) -> Iterator[Iterator[Event | None]]:
        with open_series(self.file) as series:
            yield self._play(series)

    @contextmanager
    def _open_capture(self) -> Iterator[Iterator[Event | None]]:
        path = Path(self.file).absolute()
        source = self._captured_source(path)
        with source.open() as events:
            yield events if self.rate_hz is None else _paced(events, self.rate_hz)

    def _captured_source(self, path: Path) -> StreamSource:
        """Give the source that wrote the capture, made to play it."""
        sources = {source.__name__.lower(): source for source in _CAPTURED}
        with read_capture(path) as capture:
            kind = capture.about.get("kind")
            if not isinstance(kind, str) or kind not in sources:
                raise DataError(f"{path}: a capture of {kind!r}; expected one of {list(sources)}")
            settings = capture.settings(sources[kind], StreamSource)
        settings |= {"pace": "recorded" if self.rate_hz is None else "fast", "loop": self.loop}
        settings |= {"speed": self.speed, "from_s": self.from_s, "to_s": self.to_s}
        try:
            return sources[kind].model_validate({**settings, "address": path.as_uri()})
        except ValidationError as error:
            told = error.errors()[0]
            raise DataError(
                f"{path}: its header is damaged: setting {told['loc'][0]}: {told['msg']}"
            ) from error

    def _play(self, series: Series) -> Iterator[Event | None]:
        recorded_hz = 1 / series.frame_time_s if series.frame_time_s else _DEFAULT_RATE_HZ
        rate_hz = self.rate_hz or recorded_hz
        while True:
            yield from _paced(self._run(series, 1 / rate_hz), rate_hz)
            if not self.loop:
                return

    def _run(self, series: Series, frame_time_s: float) -> Iterator[Event]:
        count = min(len(series), self.frames or len(series))
        is_count = np.issubdtype(series.dtype, np.integer)
        start = RunStart(
            run=stamped(Path(self.file.partition(":/")[0]).stem),
            shape=series.shape[1:],
            channels=series.channels,
            dtype=series.dtype,
            frame_time_s=frame_time_s,
            frames_expected=count,
            first_index=0,
            nodata=self.nodata,
            saturation=self.saturation,
            metadata={"format": "replay", "source": series.source, "counts": bool(is_count)},
        )
        yield start
        for index in range(count):
            try:
                pixels = series[index]
            except DataError as error:
                yield Rejected(reason="truncated", detail=str(error))
                continue
            yield Frame(
                run=start.run,
                index=index,
                time_ns=round(index * frame_time_s * 1e9),
                received_ns=time.monotonic_ns(),
                pixels=pixels,
            )
        yield RunEnd(run=start.run, reason="completed")


def _paced(events: Iterator[Event | None], rate_hz: float) -> Iterator[Event | None]:
    """Hold every frame back until it is due; the first one is due at once."""
    due_s = time.monotonic()
    for event in events:
        if isinstance(event, Frame):
            while (wait_s := due_s - time.monotonic()) > 0:
                if wait_s > _IDLE_S:
                    yield None
                time.sleep(min(wait_s, _IDLE_S))
            due_s = max(due_s, time.monotonic() - 1.0) + 1 / rate_hz
            yield _arriving_now(event)
        else:
            yield event


def _arriving_now(frame: Frame) -> Frame:
    return Frame(
        run=frame.run,
        index=frame.index,
        time_ns=frame.time_ns,
        received_ns=time.monotonic_ns(),
        pixels=frame.pixels,
    )
