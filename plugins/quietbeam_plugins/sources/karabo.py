"""karabo-bridge 2 (European XFEL): trains of pulses, asked for, published or pushed.

A message is a sequence of pairs: a msgpack header, then a msgpack dictionary or
the bytes of one array.  One array of one source is read; every pulse of a train
gives a frame.  Version 1.0 is refused: it needs objects of msgpack_numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from quietbeam.core.errors import SourceError
from quietbeam.core.events import Event, Rejected, RunStart
from quietbeam_plugins.sources.payload import (
    Bytes,
    RefusedError,
    image,
    image_dtype,
    refuse_pickle,
    whole,
)
from quietbeam_plugins.sources.series import SeriesKey, SeriesMachine, stamped
from quietbeam_plugins.sources.zmq_parts import StreamSource

_MAX_HEADER_BYTES = 4 << 20
_MAX_AXES = 8
_DEFAULT_AXES = {2: "yx", 3: "pyx", 4: "pmyx"}
_KEY: SeriesKey = ("", 0)


class Karabo(StreamSource):
    """A karabo-bridge server, protocol 2 (needs the extra ``karabo``)."""

    request: ClassVar[bytes] = b"next"

    socket: Literal["req", "sub", "pull"] = "req"  # pyright: ignore[reportIncompatibleVariableOverride]
    """``req`` for a server that answers (REP), ``sub`` if it publishes, ``pull`` if it pushes."""
    source: str | None = None
    """Which source of the train to read; None takes the first that has ``key``."""
    key: str = "image.data"
    """Which array of the source."""
    axes: str | None = None
    """Its axes: p pulses, m modules, y and x; None: ``yx``, ``pyx`` or ``pmyx`` by their number.
    Online data are often ``mxyp``. Modules are stacked along y; every pulse is a frame."""

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, axes: str | None) -> str | None:
        if axes is None:
            return None
        letters = set(axes)
        if len(letters) < len(axes) or not {"y", "x"} <= letters <= set("pmyx"):
            raise ValueError("expected y and x, and p or m where there are some, such as 'mxyp'")
        return axes

    def decoder(self) -> KaraboDecoder:
        """Give a fresh decoder.

        Raises:
            SourceError: msgpack is not installed.
        """
        return KaraboDecoder(self)


class KaraboDecoder:
    """Parts to events; see ``payload.Decoder``."""

    def __init__(self, settings: Karabo) -> None:
        try:
            import msgpack  # noqa: F401
        except ImportError:
            raise SourceError("karabo needs msgpack: pip install 'quietbeam[karabo]'") from None
        self._settings = settings
        self._machine = SeriesMachine(settings.run_timeout_s, has_ends=False)
        self._source = settings.source
        self._header: Mapping[str, Any] | None = None
        self._metadata: dict[str, Mapping[str, Any]] = {}
        self._first_train: int | None = None
        self._refused = False

    def feed(
        self, part: Bytes, received_ns: int, *, starts_message: bool = True
    ) -> Iterator[Event]:
        """Take a header, or what it describes."""
        yield from self._machine.tick(received_ns)
        if starts_message:
            if self._header is not None:
                yield from self._without_data(self._header)
            self._header, self._refused, self._metadata = None, False, {}
        elif self._refused:
            return
        header, self._header = self._header, None
        try:
            if header is None:
                self._header = _header(part)
            elif header["content"] == "array":
                yield from self._array(header, part, received_ns)
            else:
                self._dictionary(header, part)
        except RefusedError as refused:
            self._refused = True
            yield refused.event

    def idle(self, now_ns: int) -> Iterator[Event]:
        """Settle a run whose trains stopped."""
        return self._machine.tick(now_ns)

    def finish(self) -> Iterator[Event]:
        """Settle everything."""
        if self._header is not None:
            yield from self._without_data(self._header)
            self._header = None
        yield from self._machine.finish()

    @staticmethod
    def _without_data(header: Mapping[str, Any]) -> Iterator[Event]:
        detail = f"{header['source']!r:.60}: what its header announces never came"
        yield Rejected(reason="truncated", detail=detail)

    def _dictionary(self, header: Mapping[str, Any], part: Bytes) -> None:
        """Note when the values of a source were taken; the values themselves are not read."""
        metadata = header.get("metadata")
        if not isinstance(metadata, Mapping):  # 2.0 and 2.1 put it between the values
            values = unpack(part)
            prefix = "metadata."
            told = {k[len(prefix) :]: v for k, v in values.items() if str(k).startswith(prefix)}
            metadata = values.get("metadata", told)
        self._metadata[header["source"]] = metadata if isinstance(metadata, Mapping) else {}

    def _array(self, header: Mapping[str, Any], part: Bytes, received_ns: int) -> Iterator[Event]:
        source = header["source"]
        if self._machine.running is None:  # one that was damaged must not bind us for ever
            self._source = self._settings.source
        if header.get("path") != self._settings.key or source != (self._source or source):
            return
        self._source = source
        metadata = self._metadata.get(source, {})
        train = whole(metadata.get("timestamp.tid"), "timestamp.tid")
        frames = self._pulses(header, part)
        run = self._machine.running
        looks = frames.shape[1:], frames.dtype, len(frames)
        changed = run is not None and (run.shape, run.dtype, run.metadata["pulses"]) != looks
        if changed or self._first_train is None or train < self._first_train:
            yield from self._machine.restart()
        if self._machine.running is None:
            self._first_train = train
        first = (train - (self._first_train or 0)) * len(frames)
        whole(first + len(frames), "frame number")
        for pulse, pixels in enumerate(frames):
            yield from self._machine.frame(
                _KEY,
                first + pulse,
                pixels,
                time_ns=_time_ns(metadata) or received_ns,
                received_ns=received_ns,
                describe=lambda: self._describe(source, train, frames),
            )

    def _pulses(self, header: Mapping[str, Any], part: Bytes) -> NDArray[Any]:
        """Give the images of a train: (pulse, h, w)."""
        dtype = image_dtype(header.get("dtype"))
        sizes = header.get("shape")
        if not isinstance(sizes, list) or not 2 <= len(sizes) <= _MAX_AXES:
            raise RefusedError("shape", f"shape {sizes!r:.60}; expected a list of 2 to 4 sizes")
        shape = tuple(_size(n) for n in sizes)
        axes = self._settings.axes or _DEFAULT_AXES.get(len(shape), "")
        if len(axes) != len(shape):
            raise RefusedError("shape", f"shape {sizes!r:.60} does not have the axes {axes!r}")
        flat = image(part, (prod(shape[:-1]), shape[-1]), dtype, "", self._settings.max_frame_bytes)
        array = flat.reshape(shape)
        for axis in "mp":  # so that all four are there
            if axis not in axes:
                array, axes = array[np.newaxis], axis + axes
        array = array.transpose([axes.index(axis) for axis in "pmyx"])
        pulses, modules, h, w = array.shape
        return np.ascontiguousarray(array).reshape(pulses, modules * h, w)

    def _describe(self, source: str, train: int, frames: NDArray[Any]) -> RunStart:
        return RunStart(
            run=stamped("karabo"),
            shape=(frames.shape[1], frames.shape[2]),
            dtype=frames.dtype,
            metadata={
                "format": "karabo-bridge",
                "source": source,
                "key": self._settings.key,
                "first_train": train,
                "pulses": len(frames),
            },
        )


def unpack(part: Bytes) -> Mapping[str, Any]:
    """Read a msgpack map without building any object that msgpack does not know itself.

    Raises:
        RefusedError: It is none, or larger than any header.
    """
    import msgpack

    if len(part) > _MAX_HEADER_BYTES:
        raise RefusedError("oversized", f"header of {len(part)} bytes; at most {_MAX_HEADER_BYTES}")
    try:
        found = msgpack.unpackb(bytes(part), raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        refuse_pickle(part)
        raise RefusedError("malformed", f"msgpack: {error!r:.200}") from None
    if not isinstance(found, Mapping):
        raise RefusedError("malformed", f"msgpack {type(found).__name__}, expected a map")
    return found


def _header(part: Bytes) -> Mapping[str, Any]:
    refuse_pickle(part)
    header = unpack(part)
    content = header.get("content")
    if content is None and header and all(isinstance(v, Mapping) for v in header.values()):
        detail = "karabo-bridge 1.0 (all in one part); have the server send version 2.2"
        raise RefusedError("unsafe", detail)
    if not isinstance(header.get("source"), str):
        raise RefusedError("malformed", "a header without a source")
    if content not in ("array", "msgpack"):
        raise RefusedError("unknown_type", f"content {content!r:.60}; expected 'array'")
    return header


def _size(value: Any) -> int:
    try:
        return whole(value, "size", least=1)
    except RefusedError as error:
        raise RefusedError("shape", str(error)) from None


def _time_ns(metadata: Mapping[str, Any]) -> int:
    """Read seconds and attoseconds, both written as text; 0 without them."""
    seconds, attoseconds = (metadata.get(f"timestamp.{part}", "") for part in ("sec", "frac"))
    if not str(seconds).isdecimal() or not str(attoseconds).isdecimal():
        return 0
    return int(str(seconds)[:18]) * 1_000_000_000 + int(str(attoseconds)[:24]) // 1_000_000_000
