"""What must hold for a decoder whatever bytes it is given; shared by property tests and fuzzers."""

from __future__ import annotations

from functools import cache

import numpy as np

from helpers import sources
from helpers.sources import feed
from quietbeam.core import records
from quietbeam.core.encoding import decode, encode
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.testing import hostile, simulators
from quietbeam.testing.simulators.encoders import DectrisV1, DectrisV2

MAX_FRAME_BYTES = 1 << 20
FORMATS = hostile.FORMATS
_MEND_THEMSELVES = ("array-1.0", "dectris-v1", "dectris-v2", "odin", "stins", "jungfraujoch")
"""They name the series or tell where one begins; the others are mended by a pause at the latest."""
_PAUSE_NS = 1_000_000_000_000
_OTHER = RunStart(run="~recovery", shape=(16, 20), dtype=np.dtype("u2"), frames_expected=3)


def decoder(form):
    return sources.decoder(form, max_frame_bytes=MAX_FRAME_BYTES)


def settled(running, messages, now_ns=0):
    """What messages give once it is clear that nothing more belongs to them."""
    return [*feed(running, messages, now_ns), *running.idle(now_ns + 10_000_000)]


def flattened(messages):
    """Every part as a message of its own, as some proxies send them."""
    return [[part] for message in messages for part in message]


def assert_grammar(events):
    """(RunStart Frame* RunEnd)*, and frames that are what their run says."""
    run = None
    for event in events:
        match event:
            case RunStart():
                assert run is None
                run = event
            case Frame():
                assert run is not None
                assert (event.run, event.pixels.shape) == (run.run, run.shape)
                assert event.pixels.dtype == run.dtype
                assert event.pixels.dtype.isnative
                assert 0 <= event.index < 2**63
                assert abs(event.time_ns) < 2**63
            case RunEnd():
                assert run is not None
                assert event.run == run.run
                run = None
            case _:
                assert isinstance(event, Rejected)
                assert event.detail
    assert run is None


class _Checked:
    """Takes what the ring would take, and reads it back."""

    def write(self, kind, meta, *arrays):
        record = decode(0, b"".join(encode(kind, meta, arrays)))
        str(record.meta).encode()  # no half characters: files and JSON refuse them


def assert_survives(form, message, *, mid_run=True, flat=False):
    """One message of any bytes: the grammar holds, and the next series is read bit for bit."""
    running, flat = decoder(form), flat and form != "karabo"  # which only knows whole messages
    messages = [*(_before(form) if mid_run else []), message]
    events = settled(running, flattened(messages) if flat else messages)
    told = [event for event in events if isinstance(event, Rejected)]
    assert len(told) <= 2 * len(message) + 1
    if form not in _MEND_THEMSELVES:
        events += running.idle(_PAUSE_NS)
    recovered = settled(running, _recovery(form), _PAUSE_NS)
    assert isinstance(recovered[-1], Frame), recovered
    np.testing.assert_array_equal(recovered[-1].pixels, _pixels(1))
    events += [*recovered, *running.finish()]
    assert_grammar(events)
    for event in events:
        if not isinstance(event, Rejected):
            records.put(_Checked(), event)


@cache
def _before(form):
    return hostile.before(form)


def _pixels(number):
    return np.full(_OTHER.shape, number, _OTHER.dtype)


@cache
def _recovery(form):
    """A series after the damage.  Its header comes twice: the first may complete what is broken."""
    named = {"dectris-v1": DectrisV1, "dectris-v2": DectrisV2}
    encoder = named[form](series=2**62) if form in named else simulators.encoder(form)
    header = encoder.start(_OTHER)
    frames = [
        message
        for i in range(2)
        for message in encoder.frame(
            Frame(run=_OTHER.run, index=i, time_ns=i, received_ns=i, pixels=_pixels(i))
        )
    ]
    return [*header, *header, *frames]
