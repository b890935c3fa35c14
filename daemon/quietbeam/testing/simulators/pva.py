"""An areaDetector on EPICS PV Access (needs p4p)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from quietbeam.core.errors import SinkError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.offline.sender import Message
from quietbeam.testing.simulators import compress
from quietbeam.testing.simulators.encoders import Compression, json_bytes, little_endian

SCHEME = "pva://"
_SCALARS = {
    "int8": 1,
    "int16": 2,
    "int32": 3,
    "int64": 4,
    "uint8": 5,
    "uint16": 6,
    "uint32": 7,
    "uint64": 8,
    "float32": 9,
    "float64": 10,
}


class NTNDArray:
    """Frames as NTNDArrays: what ``PvaSender`` makes one of, and the data.

    Args:
        compression: Without the header of HDF5's filters, as areaDetector does it.
    """

    def __init__(self, compression: Compression = "none") -> None:
        self._compression: Compression = compression

    def start(self, run: RunStart) -> list[list[bytes]]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []

    def frame(self, frame: Frame) -> list[list[bytes]]:
        """Two parts."""
        pixels = little_endian(frame.pixels)
        blob = compress.packed(pixels, self._compression)
        if self._compression == "bslz4":
            blob = blob[12:]
        elif self._compression == "lz4":
            blob = compress.bare_lz4(pixels)
        about = json_bytes(
            uniqueId=frame.index,
            dimension=list(pixels.shape[::-1]),
            type=pixels.dtype.name,
            codec="" if self._compression == "none" else self._compression,
            uncompressedSize=pixels.nbytes,
            time_ns=frame.time_ns,
        )
        return [[about, blob]]

    def end(self, end: RunEnd) -> list[list[bytes]]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []


class PvaSender:
    """Posts to one channel; offers what ``quietbeam.offline.sender.Sender`` does.

    Attributes:
        address: ``pva://CHANNEL``.
        sent: Images posted.
        unsent: Always 0: PV Access tells nobody who reads.
    """

    def __init__(self, channel: Any, address: str, read: threading.Event) -> None:
        self.address = address
        self.sent = 0
        self.unsent = 0
        self._channel = channel
        self._read = read

    def send(self, message: Message, patience_s: float = 5.0) -> bool:  # noqa: ARG002
        """Post one image."""
        self._channel.post(as_value(json.loads(message[0]), message[1]))
        self.sent += 1
        return True

    def wait_for_reader(self, patience_s: float | None = None) -> bool:
        """Wait until somebody reads; False if nobody came within ``patience_s``."""
        return self._read.wait(patience_s)


def as_value(about: dict[str, Any], blob: bytes) -> Any:
    """Make a ``p4p.Value`` of what ``NTNDArray.frame`` gives."""
    from p4p import Value
    from p4p.nt import NTNDArray as Normative

    coded = bool(about["codec"])
    dtype = np.dtype("u1" if coded else about["type"])
    prefix = {"u": "u", "i": "", "f": ""}[dtype.kind]
    names = {1: "byte", 2: "short", 4: "int", 8: "long"}
    member = {"float32": "float", "float64": "double"}.get(
        dtype.name, prefix + names[dtype.itemsize]
    )
    seconds, nanoseconds = divmod(about["time_ns"], 1_000_000_000)
    return Value(
        Normative.buildType(),
        {
            "value": (f"{member}Value", np.frombuffer(blob, dtype)),
            "codec": {"name": about["codec"], "parameters": _int32(_SCALARS[about["type"]])},
            "compressedSize": len(blob),
            "uncompressedSize": about["uncompressedSize"],
            "uniqueId": about["uniqueId"],
            "dimension": [{"size": n, "fullSize": n, "binning": 1} for n in about["dimension"]],
            "timeStamp": {"secondsPastEpoch": seconds, "nanoseconds": nanoseconds},
        },
    )


def _int32(number: int) -> Any:
    """An int in a variant would become a long; readers expect an int."""
    return ("i", number)


@contextmanager
def open_pva_sender(address: str, **conf: str) -> Iterator[PvaSender]:
    """Serve a channel.

    Args:
        address: ``pva://CHANNEL``.
        conf: Of the server, such as EPICS_PVAS_INTF_ADDR_LIST; else the environment's.

    Raises:
        SinkError: p4p is not installed, or the server cannot listen.
    """
    try:
        from p4p.nt import NTNDArray as Normative
        from p4p.server import Server
        from p4p.server.thread import SharedPV
    except ImportError:
        raise SinkError("pva needs p4p: pip install 'quietbeam[epics]'") from None
    read = threading.Event()
    channel: Any = SharedPV()

    @channel.onFirstConnect
    def _on_first_connect(_pv: Any) -> None:
        read.set()

    name = address.removeprefix(SCHEME)
    channel.open(Normative.buildType()())  # as areaDetector does it: an array without an image
    try:
        server = Server(providers=[{name: channel}], conf=conf or None, useenv=not conf)
    except RuntimeError as error:
        raise SinkError(f"cannot serve {name}: {error}") from error
    with server:
        yield PvaSender(channel, f"{SCHEME}{name}", read)
        time.sleep(0.2)  # what was posted last leaves in the background
