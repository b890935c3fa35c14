"""From a source's events into the raw ring: what does not fit, and pixels made where they end."""

from contextlib import contextmanager

import numpy as np
import pytest
from pydantic import PrivateAttr

from quietbeam.core import records, ring
from quietbeam.core.events import Dropped, Frame, RunEnd, RunStart
from quietbeam.core.ledger import Ledger
from quietbeam.core.plugin import SourcePlugin
from quietbeam.pipeline.alarms import Alarms
from quietbeam.pipeline.ingest import STAGE, Ingest
from quietbeam.testing.simulators import encoder, simulated_run
from quietbeam_plugins.sources.array import Array
from quietbeam_plugins.sources.dectris import Dectris

RING_BYTES = 1 << 20
IMAGE = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)


class Given(SourcePlugin):
    """Gives events made by a function, one by one."""

    _events: object = PrivateAttr()

    @contextmanager
    def open(self):
        yield self._events()


def taken_in(path, events):
    """Pass events through ingest; give the ledger and what a reader of the ring sees."""
    source, ledger, writer = Given(), Ledger(), ring.create(path / "ring", RING_BYTES)
    source._events = events
    reader = ring.RingReader(writer.path, "test", from_first=True)
    Ingest(source, writer, ledger, lambda _run: {"ours": 1}, Alarms()).body()
    runs, seen = records.RunReader(reader), []
    while not reader.finished:
        seen += runs.poll(0)
    assert (reader.lost, runs.orphans) == (0, 0)
    return ledger, seen


def run_of(name, **told):
    start = RunStart(run=name, shape=IMAGE.shape, dtype=IMAGE.dtype, **told)
    frames = [frame_of(name, index) for index in range(3)]
    return [start, *frames, RunEnd(run=name, reason="completed")]


def frame_of(name, index):
    return Frame(run=name, index=index, time_ns=0, received_ns=0, pixels=IMAGE + index)


def test_a_header_too_large_for_the_ring_is_left_out_and_the_run_goes_on(tmp_path):
    events = run_of("long", metadata={"header": "x" * RING_BYTES}) + run_of("next")
    ledger, seen = taken_in(tmp_path, lambda: iter(events))
    starts = [item for item in seen if isinstance(item, RunStart)]
    assert [start.run for start in starts] == ["long", "next"]
    assert starts[0].metadata == {"quietbeam": {"ours": 1}, "left_out": "larger than the raw ring"}
    assert ledger.stages()[STAGE].as_dict() == {
        "received": 6,
        "sent": 6,
        "dropped": {},
        "in_flight": 0,
    }
    assert ledger.notes("starts_oversized") == {"oversized": 1}


def test_a_run_whose_start_never_fits_is_given_up_frame_by_frame_and_the_next_one_is_whole(
    tmp_path,
):
    huge = np.zeros((1024, 1024), np.bool_)
    events = run_of("huge", mask=huge) + run_of("next")
    ledger, seen = taken_in(tmp_path, lambda: iter(events))
    kinds = [type(item).__name__ for item in seen]
    assert kinds == ["RunStart", "Record", "Record", "Record", "RunEnd"]
    assert seen[0].run == "next"
    assert ledger.run("huge")["stages"][STAGE]["dropped"] == {"oversized": 3}
    assert ledger.run("next")["stages"][STAGE]["sent"] == 3
    assert ledger.run("huge")["stages"][STAGE]["in_flight"] == 0


def test_frames_that_a_source_had_no_room_for_are_dropped_by_reason(tmp_path):
    events = run_of("a")
    events.insert(2, Dropped(frames=7, reason="queue_full"))
    ledger, _ = taken_in(tmp_path, lambda: iter(events))
    told = ledger.run("a")["stages"][STAGE]
    assert told == {"received": 10, "sent": 3, "dropped": {"queue_full": 7}, "in_flight": 0}


SOURCES = {
    "array-1.0": (Array, "bslz4"),
    "dectris-v1": (Dectris, "bslz4"),
    "dectris-v1-flat": (Dectris, "lz4"),
    "dectris-v2": (Dectris, "bslz4"),
}


def messages(form, codec, images):
    encoding = encoder(form, codec)
    run = simulated_run(images[0], len(images), 100.0)
    made = list(encoding.start(run))
    for number, pixels in enumerate(images):
        made += encoding.frame(
            Frame(run=run.run, index=number, time_ns=number, received_ns=0, pixels=pixels)
        )
    return made + encoding.end(RunEnd(run=run.run, reason="completed"))


@pytest.mark.parametrize("form", SOURCES)
def test_compressed_frames_are_made_in_the_ring_and_arrive_bit_exact(form, tmp_path):
    images = np.random.default_rng(0).poisson(5, (40, 24, 32)).astype("u2")
    source, codec = SOURCES[form]
    places = set()

    def events():
        decoder = source(address="tcp://127.0.0.1:1").decoder()
        for message in messages(form, codec, images):
            for number, part in enumerate(message):
                for event in decoder.feed(part, 0, starts_message=number == 0):
                    if isinstance(event, Frame):
                        places.add(event.pixels.ctypes.data)
                    yield event
        yield from decoder.finish()

    _, seen = taken_in(tmp_path, events)
    got = [item for item in seen if isinstance(item, ring.Record)]
    assert [record.meta["index"] for record in got] == list(range(40))
    np.testing.assert_array_equal([record.arrays[0] for record in got], images)
    step = np.diff(sorted(places))
    assert (step == step[-1]).sum() >= 35  # one after the other, all but the first


def test_damaged_frames_between_good_ones_harm_none_that_was_made_in_the_ring(tmp_path):
    images = np.random.default_rng(0).poisson(5, (20, 24, 32)).astype("u2")

    def events():
        decoder = Array(address="tcp://127.0.0.1:1").decoder()
        for message in messages("array-1.0", "bslz4", images):
            header, blob = message
            for parts in ([header, blob[: len(blob) // 2]], [header, blob], [header, blob]):
                for number, part in enumerate(parts):
                    yield from decoder.feed(part, 0, starts_message=number == 0)
        yield from decoder.finish()

    ledger, seen = taken_in(tmp_path, events)
    got = [item.arrays[0] for item in seen if isinstance(item, ring.Record)]
    np.testing.assert_array_equal(got, images)
    assert ledger.source().rejected == {"compression": 20, "duplicate": 20}
