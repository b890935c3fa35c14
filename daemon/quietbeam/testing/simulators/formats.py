"""Every format that a simulated detector can send, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quietbeam.testing.simulators.encoders import (
    AdZmq,
    ArrayV1,
    Compression,
    DectrisV1,
    DectrisV2,
    Encoder,
)
from quietbeam.testing.simulators.facilities import (
    Jungfraujoch,
    Karabo,
    OdinLiveView,
    SlsDetector,
    Stins,
    Xspress3,
)
from quietbeam.testing.simulators.pva import NTNDArray

FORMATS: Mapping[str, Callable[[Compression], Encoder]] = {
    "dectris-v1": DectrisV1,
    "dectris-v1-flat": lambda compression: DectrisV1(compression, flattened=True),
    "dectris-v2": DectrisV2,
    "array-1.0": ArrayV1,
    "adzmq": AdZmq,
    "stins": Stins,
    "xspress3": Xspress3,
    "xspress3-flat": lambda compression: Xspress3(compression, flattened=True),
    "odin": OdinLiveView,
    "sls": SlsDetector,
    "sls-4bit": lambda compression: SlsDetector(compression, bits=4),
    "karabo": Karabo,
    "jungfraujoch": Jungfraujoch,
}
UNCOMPRESSED = ("sls", "sls-4bit", "karabo")
"""Formats that know no compression."""


def encoder(name: str, compression: Compression = "none") -> Encoder:
    """Give the encoder of a format, one of ``FORMATS`` (over ZMQ) or ``pva``."""
    return {**FORMATS, "pva": NTNDArray}[name](compression)
