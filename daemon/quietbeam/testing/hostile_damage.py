"""Damage done to good messages, systematically: cut off at every byte, a bit turned in every byte.

For authors of sources, like ``hostile``; whatever comes of it, the decoder
must survive and read the next good series.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.testing.simulators import encoder
from quietbeam.testing.simulators.encoders import Compression, Message

_SHAPE = (4, 6)


def small_series(form: str, compression: Compression = "none") -> dict[str, Message]:
    """Give the messages of a series of one tiny image: ``start``, ``frame`` and ``end``.

    Args:
        form: One of ``hostile.FORMATS``.
        compression: Of the image.
    """
    encoding = encoder(form, compression)
    pixels = np.arange(24, dtype=np.uint16).reshape(_SHAPE)
    start = RunStart(run="small", shape=_SHAPE, dtype=pixels.dtype, frames_expected=1)
    frame = Frame(run="small", index=0, time_ns=1, received_ns=1, pixels=pixels)
    messages = {
        "start": encoding.start(start),
        "frame": encoding.frame(frame),
        "end": encoding.end(RunEnd(run="small", reason="completed")),
    }
    return {name: found[0] for name, found in messages.items() if found}


def cut_off(message: Message) -> Iterator[Message]:
    """Give the message with each part ended at each of its bytes, and with parts missing."""
    for number, part in enumerate(message):
        yield message[:number]
        for size in range(len(part)):
            yield [*message[:number], part[:size], *message[number + 1 :]]
            yield [*message[:number], part[:size]]


def bits_turned(message: Message) -> Iterator[Message]:
    """Give the message with one bit turned, another one for every byte of it."""
    for number, part in enumerate(message):
        for at in range(len(part)):
            damaged = bytearray(part)
            damaged[at] ^= 1 << at % 8
            yield [*message[:number], bytes(damaged), *message[number + 1 :]]
