"""Events and results as ring records, and back: what crosses a process, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.result import Result
from quietbeam.core.ring import Kind, Record, RingReader, RingWriter

_START_FIELDS = (
    "run",
    "frame_time_s",
    "exposure_s",
    "frames_expected",
    "first_index",
    "pixel_size_m",
    "energy_kev",
    "distance_m",
    "nodata",
    "saturation",
)
_END_FIELDS = ("run", "reason", "frames_sent", "account")


def put(ring: RingWriter, item: RunStart | Frame | RunEnd | Result) -> None:
    """Write one event or result."""
    match item:
        case RunStart():
            meta: dict[str, Any] = {name: getattr(item, name) for name in _START_FIELDS}
            meta |= {"shape": list(item.shape), "dtype": item.dtype.str}
            meta["metadata"] = dict(item.metadata)
            if item.channels:
                meta["channels"] = list(item.channels)
            ring.write(Kind.START, meta, *(() if item.mask is None else (item.mask,)))
        case Frame():
            ring.write(Kind.FRAME, _frame_meta(item), item.pixels)
        case RunEnd():
            ring.write(Kind.END, {name: getattr(item, name) for name in _END_FIELDS})
        case Result():
            _put_result(ring, item)


def _frame_meta(item: Frame | Result) -> dict[str, Any]:
    return {
        "run": item.run,
        "index": item.index,
        "time_ns": item.time_ns,
        "received_ns": item.received_ns,
    }


def _put_result(ring: RingWriter, item: Result) -> None:
    scalars = {k: float(v) for k, v in item.metrics.items() if np.ndim(v) == 0}
    arrays = {k: np.asarray(v) for k, v in item.metrics.items() if np.ndim(v) > 0}
    meta = _frame_meta(item) | {
        "denoiser": item.denoiser,
        "model_version": item.model_version,
        "latency_s": item.latency_s,
        "scalars": scalars,
        "arrays": list(arrays),
    }
    if item.maps:
        meta["maps"] = list(item.maps)
    ring.write(Kind.FRAME, meta, item.clean, item.sd, *arrays.values(), *item.maps.values())


def run_start(record: Record) -> RunStart:
    """Read a START record."""
    meta = dict(record.meta)
    mask: NDArray[np.bool_] | None = record.arrays[0] if record.arrays else None
    fields = {name: meta[name] for name in _START_FIELDS}
    return RunStart(
        shape=tuple(meta["shape"]),
        channels=tuple(meta.get("channels", ())),
        dtype=np.dtype(meta["dtype"]),
        mask=mask,
        metadata=meta["metadata"],
        **fields,
    )


def run_end(record: Record) -> RunEnd:
    """Read an END record."""
    return RunEnd(**record.meta)


def frame(record: Record) -> Frame:
    """Read a FRAME record of the raw ring."""
    return Frame(pixels=record.arrays[0], **record.meta)


def result(record: Record) -> Result:
    """Read a FRAME record of the clean ring; it carries no raw pixels."""
    meta = dict(record.meta)
    scalars, names = meta.pop("scalars"), meta.pop("arrays")
    clean, sd, *arrays = record.arrays
    metrics = scalars | dict(zip(names, arrays, strict=False))
    maps = dict(zip(meta.pop("maps", ()), arrays[len(names) :], strict=True))
    return Result(clean=clean, sd=sd, raw=None, metrics=metrics, maps=maps, **meta)


class RunReader:
    """Reads a ring as runs: whatever was lost, the grammar of events holds.

    A run whose start was overwritten gets it from the pinned copies; a run
    whose end was overwritten ends as ``lost`` when the next one starts.

    Attributes:
        orphans: Frames read whose run's start is known no more; not given out.
    """

    def __init__(self, ring: RingReader) -> None:
        self.ring = ring
        self.orphans = 0
        self._run: str | None = None

    def poll(self, timeout_s: float = 0.1) -> Iterator[RunStart | RunEnd | Record]:
        """Give what the next record means: none, one or several items.

        Frames stay ``Record`` (of kind FRAME): use ``frame`` or ``result``.
        """
        record = self.ring.read(timeout_s)
        if record is None:
            return
        run = record.meta["run"]
        if record.kind == Kind.START:
            yield from self._end_unfinished()
            self._run = run
            yield run_start(record)
        elif record.kind == Kind.END:
            yield from self._end(run_end(record))
        elif run == self._run:
            yield record
        else:
            yield from self._end_unfinished()
            started = list(self._start_again(run))
            self.orphans += not started
            yield from [*started, record] if started else []

    def _end(self, end: RunEnd) -> Iterator[RunStart | RunEnd]:
        if end.run != self._run:
            yield from self._end_unfinished()
            # a reader that resumes just before the end must still learn of it
            started = list(self._start_again(end.run)) if self.ring.resumed else []
            if not started:
                return
            yield from started
        self._run = None
        yield end

    def _start_again(self, run: str) -> Iterator[RunStart]:
        pinned = self.ring.pinned(run)
        if pinned is not None:
            self._run = run
            yield run_start(pinned)

    def _end_unfinished(self) -> Iterator[RunEnd]:
        if self._run is not None:
            yield RunEnd(run=self._run, reason="lost")
            self._run = None
