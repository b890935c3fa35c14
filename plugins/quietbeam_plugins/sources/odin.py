"""odin-data's LiveView: every so many frames, a JSON header and then the bytes.

There is neither start nor end: a run ends when frames stop, or when the
acquisition, the shape or the dtype changes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import numpy as np

from quietbeam.core.events import Event
from quietbeam_plugins.sources.array import Array, ArrayDecoder, ArrayHeader
from quietbeam_plugins.sources.channels import Wanted, layout_of
from quietbeam_plugins.sources.payload import (
    Bytes,
    RefusedError,
    codec_of,
    image_dtype,
    parse_json,
    whole,
)


class OdinLiveView(Array):
    """The live view of odin-data (LiveViewPlugin)."""

    socket: Literal["pull", "sub"] = "sub"
    """``sub``: odin-data publishes."""
    dataset: str | None = None
    """Which dataset to read where several are sent; None takes the first that comes."""

    def decoder(self) -> OdinDecoder:
        """Give a fresh decoder."""
        return OdinDecoder(self)


class OdinDecoder(ArrayDecoder):
    """Parts to events; see ``payload.Decoder``."""

    header_keys = (b"frame_num", b"acquisition_id")
    label = "odin"

    def __init__(self, settings: OdinLiveView) -> None:
        super().__init__(settings)
        self._wanted = self._dataset = settings.dataset

    def header(
        self,
        part: Bytes,
        received_ns: int,  # noqa: ARG002
    ) -> Generator[Event, None, ArrayHeader]:
        """Read a header."""
        yield from ()
        header = parse_json(part)
        dataset = str(header.get("dataset", ""))
        if self._machine.running is None:  # one that was damaged must not bind us for ever
            self._dataset = self._wanted
        if self._dataset is None:
            self._dataset = dataset
        if dataset != self._dataset:
            raise RefusedError("foreign", f"dataset {dataset!r:.60}, reading {self._dataset!r:.60}")
        return _read(header, self._settings.channels)

    def is_another_run(self, header: ArrayHeader, dtype: np.dtype[Any]) -> bool:
        """Tell it by the acquisition too."""
        run = self._machine.running
        if run is None:
            return False
        before, now = (about.get("acquisition_id") for about in (run.metadata, header.metadata))
        return before != now or super().is_another_run(header, dtype)  # no set: a list has no hash


def _read(header: dict[str, Any], wanted: Wanted) -> ArrayHeader:
    compression = header.get("compression")
    known = {"frame_num", "shape", "dtype", "dsize", "compression"}
    return ArrayHeader(
        layout=layout_of(header.get("shape"), None, None, wanted),
        dtype=image_dtype(header.get("dtype")),
        codec=codec_of(compression.lower() if isinstance(compression, str) else compression),
        number=whole(header.get("frame_num"), "frame_num"),
        time_ns=0,  # the format tells none
        metadata={key: value for key, value in header.items() if key not in known},
    )
