"""Events to messages, in the formats that single facilities made for themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import DataError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.testing.simulators import compress
from quietbeam.testing.simulators.encoders import (
    Compression,
    DectrisV2,
    Message,
    json_bytes,
    little_endian,
)

# A pickle of the text "dead times": never loaded, but Xspress3 really sends one.
_PICKLED_DEAD_TIMES = b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x0adead times\x94."


class Stins:
    """STINS of MAX IV: header and its description, images, end; all numbered.

    Args:
        compression: ``bslz4`` has its 12-byte header, ``lz4`` that of HDF5's filter.
    """

    def __init__(self, compression: Compression = "none") -> None:
        self._compression: Compression = compression
        self._number = -1

    def start(self, run: RunStart) -> list[Message]:
        """Two parts."""
        header = json_bytes(htype="header", msg_number=self._next(), filename=f"/data/{run.run}.h5")
        energy_ev = None if run.energy_kev is None else run.energy_kev * 1000
        told = {
            "count_time": run.exposure_s,
            "nimages": run.frames_expected,
            "photon_energy": energy_ev,
            "countrate_correction_count_cutoff": run.saturation,
        }
        known = {key: value for key, value in told.items() if value is not None}
        return [[header, json_bytes(**known)]]

    def frame(self, frame: Frame) -> list[Message]:
        """Two parts."""
        pixels = little_endian(frame.pixels)
        header = json_bytes(
            htype="image",
            msg_number=self._next(),
            frame=frame.index,
            shape=list(pixels.shape),
            type=pixels.dtype.name,
            compression=self._compression,
        )
        return [[header, compress.packed(pixels, self._compression)]]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format tells no reason
        """One part."""
        return [[json_bytes(htype="series_end", msg_number=self._next())]]

    def _next(self) -> int:
        self._number += 1
        return self._number


class Xspress3:
    """Xspress3 at MAX IV: spectra (channel, energy), each with a pickle of dead times.

    Args:
        compression: As for ``Stins``; the real one has none.
        flattened: Every part is a message of its own, as older servers do it.
    """

    def __init__(self, compression: Compression = "none", *, flattened: bool = False) -> None:
        self._compression: Compression = compression
        self._flattened = flattened
        self._exposure_s: float | None = None

    def start(self, run: RunStart) -> list[Message]:
        """One part."""
        self._exposure_s = run.exposure_s
        filename = f"/data/{run.run}.h5"
        return [[json_bytes(htype="header", filename=filename, overwritable=False)]]

    def frame(self, frame: Frame) -> list[Message]:
        """Three parts."""
        pixels = little_endian(frame.pixels)
        header = json_bytes(
            htype="image",
            frame=frame.index,
            shape=list(pixels.shape),
            exptime=self._exposure_s,
            type=pixels.dtype.name,
            compression=self._compression,
        )
        parts = [header, compress.packed(pixels, self._compression), _PICKLED_DEAD_TIMES]
        return [[part] for part in parts] if self._flattened else [parts]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format tells no reason
        """One part."""
        return [[json_bytes(htype="series_end")]]


class OdinLiveView:
    """odin-data's live view: two parts, sizes written as text; neither start nor end."""

    def __init__(self, compression: Compression = "none") -> None:
        self._compression: Compression = compression
        self._acquisition = ""

    def start(self, run: RunStart) -> list[Message]:
        """Nothing; the run's name becomes the acquisition."""
        self._acquisition = run.run
        return []

    def frame(self, frame: Frame) -> list[Message]:
        """Two parts."""
        pixels = little_endian(frame.pixels)
        blob = compress.packed(pixels, self._compression)
        names = {"none": "none", "lz4": "LZ4", "bslz4": "BSLZ4"}
        header = json_bytes(
            frame_num=frame.index,
            acquisition_id=self._acquisition,
            dtype={"float32": "float"}.get(pixels.dtype.name, pixels.dtype.name),
            dsize=len(blob),
            dataset="data",
            compression=names[self._compression],
            shape=[str(size) for size in pixels.shape],
        )
        return [[header, blob]]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []


class SlsDetector:
    """The receivers of an Eiger: two modules above each other, the lower one upside down.

    One publisher sends for both, so that its reader takes it for one receiver.

    Args:
        compression: Only ``none``: the format has no other.
        bits: For each pixel; 4 packs two into a byte.
    """

    def __init__(self, compression: Compression = "none", *, bits: int | None = None) -> None:
        if compression != "none":
            raise DataError(f"sls sends no compression; got {compression!r}")
        self._bits = bits
        self._index = -1

    def start(self, run: RunStart) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        self._index = -1
        return []

    def frame(self, frame: Frame) -> list[Message]:
        """Two parts for each module."""
        self._index += 1
        pixels = little_endian(frame.pixels)
        rows = 2 if len(pixels) % 2 == 0 else 1
        halves = np.split(pixels, rows)
        return [self._module(frame, row, half, rows) for row, half in enumerate(halves)]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format tells no reason
        """A header that announces no data."""
        return [[json_bytes(jsonversion=4, bitmode=0, data=0, frameNumber=0, shape=[0, 0])]]

    def _module(self, frame: Frame, row: int, pixels: NDArray[Any], rows: int) -> Message:
        bits = self._bits or pixels.itemsize * 8
        flipped = row == 1
        seen = pixels[::-1] if flipped else pixels
        blob = seen.tobytes() if bits != 4 else (seen[:, ::2] << 4 | seen[:, 1::2]).tobytes()
        header = json_bytes(
            jsonversion=4,
            bitmode=bits,
            fileIndex=0,
            detshape=[1, rows],
            shape=list(pixels.shape[::-1]),
            size=len(blob),
            acqIndex=frame.index,
            frameIndex=self._index,
            progress=0.0,
            fname="",
            data=1,
            completeImage=1,
            frameNumber=frame.index,
            expLength=0,
            packetNumber=64,
            timestamp=frame.time_ns // 100,
            modId=row,
            row=row,
            column=0,
            detType=1,
            version=2,
            flipRows=int(flipped),
            quad=0,
            rx_roi=[-1, -1, -1, -1],
        )
        return [header, blob]


class Karabo:
    """karabo-bridge 2.2: one train with one pulse for every frame.

    Args:
        compression: Only ``none``: the format has no other.
    """

    source = "SPB_DET_AGIPD1M-1/DET/detector"

    def __init__(self, compression: Compression = "none") -> None:
        if compression != "none":
            raise DataError(f"karabo sends no compression; got {compression!r}")
        self._first_train = 10_000_000_000

    def start(self, run: RunStart) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []

    def frame(self, frame: Frame) -> list[Message]:
        """Six parts: values, a small array, the images (pulse, module, y, x)."""
        import msgpack

        def pack(**fields: Any) -> bytes:
            return bytes(msgpack.packb(fields) or b"")

        pixels = little_endian(frame.pixels)[np.newaxis, np.newaxis]
        train = self._first_train + frame.index
        seconds, rest_ns = divmod(frame.time_ns, 1_000_000_000)
        metadata = {
            "source": self.source,
            "timestamp": frame.time_ns * 1e-9,
            "timestamp.sec": str(seconds),
            "timestamp.frac": f"{rest_ns * 1_000_000_000:018d}",
            "timestamp.tid": train,
        }
        values = {"header.pulseCount": 1, "header.trainId": train, "trailer.status": 0}
        parts = [pack(content="msgpack", source=self.source, metadata=metadata), pack(**values)]
        for path, array in (("image.cellId", np.zeros(1, "<u2")), ("image.data", pixels)):
            shape, dtype = list(array.shape), array.dtype.name
            parts.append(
                pack(content="array", source=self.source, path=path, dtype=dtype, shape=shape)
            )
            parts.append(array.tobytes())
        return [parts]

    def end(self, end: RunEnd) -> list[Message]:  # noqa: ARG002  the format has none
        """Nothing."""
        return []


class Jungfraujoch(DectrisV2):
    """Jungfraujoch: Stream V2 with a calibration message, more keys, and dummy previews."""

    def __init__(self, compression: Compression = "none", *, series: int = 1) -> None:
        super().__init__(compression, series=series, channel="default")

    def start(self, run: RunStart) -> list[Message]:
        """Also a calibration message."""
        return [*super().start(run), *self.message("calibration", {"pedestal_g0": 1000})]

    def frame(self, frame: Frame) -> list[Message]:
        """One image message with what Jungfraujoch found out."""
        found = {"indexing_result": 0, "xfel_pulse_id": frame.index, "spots": []}
        return self.message("image", {**self.image(frame), **found})

    def dummy(self, frame: Frame) -> list[Message]:
        """What the preview sends instead of a frame."""
        return self.frame(dataclasses.replace(frame, pixels=frame.pixels[:2, :2]))
