"""What single facilities made of their streams: their dialects, one by one."""

import dataclasses
import json

import msgpack
import numpy as np
import pytest
from pydantic import ValidationError

from helpers.sources import decoder, feed
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.testing.simulators import compress, encoder
from quietbeam.testing.simulators.facilities import Jungfraujoch, Karabo, SlsDetector
from quietbeam_plugins.sources.karabo import Karabo as KaraboSource
from quietbeam_plugins.sources.slsdetector import SlsDetector as SlsSource

SECOND = 1_000_000_000
IMAGES = np.random.default_rng(0).poisson(7, (3, 24, 40)).astype("u2")


def run_start(**told):
    return RunStart(run="01RUN", shape=IMAGES.shape[1:], dtype=IMAGES.dtype, **told)


def frame(index, pixels=IMAGES[0], time_ns=0):
    return Frame(run="01RUN", index=index, time_ns=time_ns, received_ns=0, pixels=pixels)


END = RunEnd(run="01RUN", reason="completed")


def kinds(events):
    return [type(event).__name__ for event in events]


def stins(**fields):
    base = {"htype": "image", "msg_number": 1, "frame": 0, "shape": [24, 40], "type": "uint16"}
    return json.dumps({**base, "compression": "none", **fields}).encode()


def test_stins_tells_what_its_header_tells():
    sending = encoder("stins")
    told = {"exposure_s": 0.04, "frames_expected": 3, "energy_kev": 12.4, "saturation": 6e4}
    begun = feed(decoder("stins"), [*sending.start(run_start(**told)), *sending.frame(frame(0))])[0]
    for name, value in told.items():
        assert getattr(begun, name) == pytest.approx(value), name
    assert begun.nodata == 65535
    assert begun.run.startswith("01RUN-")  # from the name of the file
    json.dumps(begun.metadata)


THRESHOLDS = {
    "all": [0, 1, 2],
    ("threshold_2",): [1],
    ("threshold_3", "threshold_1"): [2, 0],
}


@pytest.mark.parametrize("channels", THRESHOLDS)
@pytest.mark.parametrize("packed", [True, False])
def test_thresholds_of_stins_are_channels_sent_in_one_part_or_in_many(channels, packed):
    header = {"shape": [3, 24, 40], "compression": "bslz4" if packed else "none"}
    if packed:
        parts = [stins(**header, chunks=[1, 24, 40]), *map(compress.bslz4, IMAGES)]
    else:
        parts = [stins(**header), IMAGES.tobytes()]
    taken = THRESHOLDS[channels]
    for messages in ([parts], [[part] for part in parts]):
        events = feed(decoder("stins", channels=channels), messages)
        assert kinds(events) == ["RunStart", "Frame"]
        names = tuple(f"threshold_{n + 1}" for n in taken)
        assert events[0].channels == (names if len(taken) > 1 else ())
        np.testing.assert_array_equal(events[1].pixels, np.squeeze(IMAGES[taken]))
    events = feed(decoder("stins", channels=("threshold_4",)), [parts])
    assert [event.reason for event in events] == ["malformed"]


def test_a_threshold_of_stins_that_is_damaged_or_missing_costs_its_frame_and_no_other():
    header = stins(shape=[3, 24, 40], compression="bslz4", chunks=[1, 24, 40])
    good = [compress.bslz4(pixels) for pixels in IMAGES]
    running = decoder("stins")
    events = feed(running, [[header, good[0], good[1][:40], good[2]]])
    assert [event.reason for event in events] == ["compression"]
    events = feed(running, [[header, *good[:2]], [header, *good]])
    assert kinds(events) == ["Rejected", "RunStart", "Frame"]
    assert events[0].reason == "truncated"
    np.testing.assert_array_equal(events[2].pixels, IMAGES)


@pytest.mark.parametrize("settings", [KaraboSource, SlsSource])
def test_formats_without_channels_refuse_the_setting(settings):
    with pytest.raises(ValidationError, match="channels"):
        settings(address="tcp://127.0.0.1:1", channels=("threshold_1",))


def test_a_stins_series_whose_header_was_lost_is_a_run_of_its_own():
    running = decoder("stins", grace_s=0)
    pixels = IMAGES[0].tobytes()
    events = feed(running, [[stins(), pixels], [b'{"htype":"series_end","msg_number":2}']])
    assert kinds(events) == ["RunStart", "Frame", "RunEnd"]
    assert kinds(feed(running, [[stins(msg_number=1, frame=1), pixels]])) == ["Rejected"]  # stray
    assert kinds(feed(running, [[stins(msg_number=4), pixels]])) == ["RunStart", "Frame"]


@pytest.mark.parametrize("form", ["karabo", "odin"])
def test_a_damaged_name_at_first_does_not_hide_the_stream_for_ever(form):
    running, sending = decoder(form, run_timeout_s=5.0), encoder(form)
    first, second = sending.frame(frame(0)) + sending.frame(frame(1))
    name, other = {"karabo": (b"AGIPD1M", b"AGIXD1M"), "odin": (b':"data"', b':"dxta"')}[form]
    damaged = [part.replace(name, other) for part in first]
    feed(running, [damaged])
    list(running.idle(20 * SECOND))
    assert kinds(feed(running, [second], 20 * SECOND))[-2:] == ["RunStart", "Frame"]


def test_modules_that_the_end_overtook_start_no_run_of_their_own():
    running = decoder("sls", receivers=2, grace_s=0, module_timeout_s=0.1)
    events = feed(running, [sls(n, row=0) for n in (1, 2, 3)] + [sls(1, row=1), sls_end()])
    assert kinds(events) == ["RunStart", "Frame"]
    closing = list(running.idle(SECOND // 5))  # the end of the other receiver never comes
    assert kinds(closing) == ["Rejected", "Frame", "Rejected", "Frame", "RunEnd"]
    late = feed(running, [sls(2, row=1), sls(3, row=1)], SECOND // 4)
    assert [event.reason for event in late] == ["foreign", "foreign"]
    again = feed(running, [sls(1), sls(1, row=1), sls(2), sls(2, row=1)], SECOND // 3)
    assert kinds(again) == ["RunStart", "Frame", "Frame"]


def test_the_end_of_a_stins_series_may_overtake_its_last_frame():
    running, pixels = decoder("stins"), IMAGES[0].tobytes()
    end = [b'{"htype":"series_end","msg_number":3}']
    messages = [[stins(msg_number=1), pixels], end, [stins(msg_number=2, frame=1), pixels]]
    assert kinds(feed(running, messages)) == ["RunStart", "Frame", "Frame"]
    assert kinds(running.idle(SECOND)) == ["RunEnd"]


@pytest.mark.parametrize("form", ["xspress3", "xspress3-flat"])
def test_the_pickled_dead_times_of_xspress3_are_passed_over(form):
    sending, running = encoder(form), decoder(form)
    messages = sending.start(run_start(exposure_s=0.1))
    messages += [part for n in range(3) for part in sending.frame(frame(n, IMAGES[n]))]
    assert any(part[:1] == b"\x80" for message in messages for part in message)
    events = feed(running, [*messages, *sending.end(END)]) + list(running.finish())
    assert kinds(events) == ["RunStart", "Frame", "Frame", "Frame", "RunEnd"]
    assert events[0].exposure_s == pytest.approx(0.1)
    np.testing.assert_array_equal([event.pixels for event in events[1:4]], IMAGES)


def odin(number=0, **fields):
    base = {"frame_num": number, "acquisition_id": "a", "dtype": "uint16", "dataset": "data"}
    base |= {"compression": "none", "shape": ["24", "40"], "dsize": 1920}
    return [json.dumps({**base, **fields}).encode(), IMAGES[0].tobytes()]


def test_another_acquisition_of_odin_is_another_run():
    running = decoder("odin")
    assert kinds(feed(running, [odin(3), odin(4)])) == ["RunStart", "Frame", "Frame"]
    events = feed(running, [odin(5, acquisition_id="b")])
    assert kinds(events) == ["RunEnd", "RunStart", "Frame"]
    assert events[1].metadata["acquisition_id"] == "b"


def test_one_dataset_of_odin_is_read():
    messages = [odin(0, dataset="sum"), odin(0), odin(1, dataset="sum"), odin(1)]
    for dataset, read in [("data", "data"), ("sum", "sum"), (None, "sum")]:
        events = feed(decoder("odin", dataset=dataset), messages)
        assert [event.index for event in events if isinstance(event, Frame)] == [0, 1]
        assert [event.reason for event in events if isinstance(event, Rejected)] == ["foreign"] * 2
        begun = next(event for event in events if isinstance(event, RunStart))
        assert begun.metadata["dataset"] == read


def sls(number, row=0, column=0, pixels=None, grid=(1, 2), **fields):
    """One module; ``grid`` is (columns, rows)."""
    pixels = np.full((4, 6), 10 * row + column, "u2") if pixels is None else pixels
    base = {"jsonversion": 4, "bitmode": 8 * pixels.itemsize, "detshape": grid, "data": 1}
    base |= {"shape": pixels.shape[::-1], "frameNumber": number, "row": row, "column": column}
    base |= {"timestamp": 20_000_000, "detType": 3, "flipRows": 0, "expLength": 5}
    return [json.dumps({**base, **fields}).encode(), pixels.tobytes()]


def sls_end():
    return [json.dumps({"jsonversion": 4, "data": 0}).encode()]


def test_modules_become_one_frame_each_in_its_place():
    rng = np.random.default_rng(1)
    whole = rng.poisson(9, (8, 18)).astype("u2")
    places = [(row, column) for row in range(2) for column in range(3)]
    rng.shuffle(places)
    messages = [
        sls(1, row, column, whole[row * 4 :][:4, column * 6 :][:, :6], grid=(3, 2))
        for row, column in places
    ]
    events = feed(decoder("sls"), messages)
    assert kinds(events) == ["RunStart", "Frame"]
    np.testing.assert_array_equal(events[1].pixels, whole)
    assert events[1].time_ns == 2 * SECOND
    assert events[0].exposure_s == pytest.approx(5e-7)


def test_frames_come_in_order_though_receivers_do_not_keep_step():
    running = decoder("sls", receivers=2)
    first = feed(running, [sls(n, row=0) for n in (1, 2, 3)])
    assert first == []
    events = feed(running, [sls(n, row=1) for n in (1, 2, 3)])
    assert [event.index for event in events if isinstance(event, Frame)] == [1, 2, 3]


@pytest.mark.parametrize(("incomplete", "indices"), [("fill", [1, 2]), ("drop", [2])])
def test_a_frame_that_lacks_a_module_is_filled_or_dropped_and_counted(incomplete, indices):
    running = decoder("sls", incomplete=incomplete)
    events = feed(running, [sls(1, row=1), sls(2, row=0), sls(2, row=1)])
    frames = [event for event in events if isinstance(event, Frame)]
    assert [event.index for event in frames] == indices
    assert [event.reason for event in events if isinstance(event, Rejected)] == ["truncated"]
    if incomplete == "fill":
        begun = next(event for event in events if isinstance(event, RunStart))
        assert (frames[0].pixels[:4] == begun.nodata).all()
        assert (frames[0].pixels[4:] == 10).all()


def test_a_receiver_that_died_holds_nothing_up():
    running = decoder("sls", module_timeout_s=0.5)
    assert feed(running, [sls(1), sls(2)]) == []
    assert list(running.idle(SECOND // 4)) == []
    events = list(running.idle(SECOND))
    assert [event.index for event in events if isinstance(event, Frame)] == [1, 2]
    late = feed(running, [sls(2, row=1)], SECOND)
    assert [event.reason for event in late] == ["duplicate"]
    many = feed(running, [sls(n) for n in range(3, 100)], SECOND)  # memory does not grow
    assert sum(isinstance(event, Frame) for event in many) == 97 - 32


def test_an_acquisition_is_over_when_every_receiver_said_so_or_one_did_and_time_passed():
    running = decoder("sls", receivers=2)
    feed(running, [sls(1), sls(1, row=1)])
    assert feed(running, [sls_end()]) == []
    assert kinds(feed(running, [sls(2), sls(2, row=1)])) == ["Frame"]  # of the other receiver
    assert kinds(feed(running, [sls_end()])) == ["RunEnd"]
    assert kinds(feed(running, [sls(1), sls(1, row=1)])) == ["RunStart", "Frame"]
    assert feed(running, [sls_end()]) == []
    events = list(running.idle(2 * SECOND))
    assert (kinds(events), events[0].reason) == (["RunEnd"], "completed")
    assert [event.reason for event in feed(running, [sls_end()], 2 * SECOND)] == ["no_run"]


def test_an_acquisition_whose_end_was_missed_is_lost_when_the_next_one_starts():
    running = decoder("sls")
    feed(running, [sls(5), sls(5, row=1)])
    events = feed(running, [sls(1), sls(1, row=1)], 6 * SECOND)
    assert kinds(events) == ["RunEnd", "RunStart", "Frame"]
    assert events[0].reason == "lost"


def test_four_bits_become_bytes_high_bits_first():
    pixels = np.arange(32, dtype="u1").reshape(4, 8) % 16
    packed = sls(1, pixels=pixels, grid=(1, 1), bitmode=4)
    packed[1] = (pixels[:, ::2] << 4 | pixels[:, 1::2]).tobytes()
    events = feed(decoder("sls"), [packed])
    np.testing.assert_array_equal(events[1].pixels, pixels)
    sending, running = SlsDetector(bits=4), decoder("sls")
    whole = (IMAGES[0] % 16).astype("u1")
    assert (feed(running, sending.frame(frame(1, whole)))[1].pixels == whole).all()


def test_the_upside_down_half_of_an_eiger_is_turned():
    top, bottom = IMAGES[0][:4, :6], IMAGES[1][:4, :6]
    flipped = sls(1, row=1, pixels=np.ascontiguousarray(bottom[::-1]), detType=1, flipRows=1)
    events = feed(decoder("sls"), [sls(1, pixels=np.ascontiguousarray(top), detType=1), flipped])
    np.testing.assert_array_equal(events[1].pixels, np.vstack((top, bottom)))


def test_the_receivers_publish_on_consecutive_ports():
    settings = SlsSource(address="tcp://10.1.2.3:30001", receivers=3)
    assert settings.endpoints() == [f"tcp://10.1.2.3:{port}" for port in (30001, 30002, 30003)]


def train(array, number=10, source="a", path="image.data", **metadata):
    metadata = {"timestamp.tid": number, "timestamp.sec": "7", **metadata}
    metadata |= {"timestamp.frac": f"{5 * 10**17:018d}"}
    header = {"source": source, "content": "array", "path": path, "dtype": array.dtype.name}
    return [
        msgpack.packb({"source": source, "content": "msgpack", "metadata": metadata}),
        msgpack.packb({"a": 1}),
        msgpack.packb({**header, "shape": array.shape}),
        array.tobytes(),
    ]


@pytest.mark.parametrize("axes", ["pmyx", "mxyp", "myxp", "xypm"])
def test_pulses_are_frames_and_modules_are_stacked_whatever_the_order_of_the_axes(axes):
    pulses = np.random.default_rng(2).poisson(9, (2, 3, 4, 5)).astype("u2")
    array = np.ascontiguousarray(pulses.transpose(["pmyx".index(axis) for axis in axes]))
    events = feed(decoder("karabo", axes=axes), [train(array, 10), train(array, 12)])
    frames = [event for event in events if isinstance(event, Frame)]
    assert [event.index for event in frames] == [0, 1, 4, 5]  # train 11 was lost
    for pulse, event in enumerate(frames[:2]):
        np.testing.assert_array_equal(event.pixels, pulses[pulse].reshape(12, 5))
    assert frames[0].time_ns == 7 * SECOND + SECOND // 2


@pytest.mark.parametrize("axes", ["pm", "yxx", "yxq", "pmyxx", ""])
def test_axes_that_are_no_image_are_refused(axes):
    with pytest.raises(ValidationError):
        KaraboSource(address="tcp://127.0.0.1:1", axes=axes)


def test_one_array_of_one_source_is_read():
    array, other = IMAGES[0], IMAGES[1]
    message = train(other, source="b") + train(array, path="gain") + train(array, source="a")
    events = feed(decoder("karabo", source="a"), [message])
    np.testing.assert_array_equal(events[1].pixels, array)
    assert kinds(events) == ["RunStart", "Frame"]


def test_a_karabo_server_that_starts_again_or_changes_its_pulses_begins_a_run():
    running = decoder("karabo")
    assert kinds(feed(running, [train(IMAGES[:2], 10)])) == ["RunStart", "Frame", "Frame"]
    assert kinds(feed(running, [train(IMAGES[:2], 4)]))[:2] == ["RunEnd", "RunStart"]
    assert kinds(feed(running, [train(IMAGES, 5)]))[:2] == ["RunEnd", "RunStart"]


def test_version_2_1_of_karabo_puts_its_times_between_the_values():
    parts = train(IMAGES[0])
    parts[0] = msgpack.packb({"source": "a", "content": "msgpack"})
    parts[1] = msgpack.packb({"metadata.timestamp.tid": 3, "x": 1})
    assert kinds(feed(decoder("karabo"), [parts])) == ["RunStart", "Frame"]


def test_the_train_is_numbered_from_the_first():
    sending, running = Karabo(), decoder("karabo")
    events = feed(running, [*sending.frame(frame(7)), *sending.frame(frame(9))])
    assert [event.index for event in events[1:]] == [0, 2]
    assert events[0].metadata["first_train"] == 10_000_000_007


def test_jungfraujoch_keeps_what_stream_v2_does_not_know():
    sending, running = Jungfraujoch(), decoder("jungfraujoch")
    start = dataclasses.replace(run_start(), metadata={"sample": "x"})
    events = feed(running, [*sending.start(start), *sending.frame(frame(0)), *sending.end(END)])
    assert kinds(events) == ["RunStart", "Frame"]
    assert kinds(running.idle(SECOND)) == ["RunEnd"]
    running = decoder("jungfraujoch")
    messages = [*sending.message("calibration", {"pedestal": 3}), *sending.frame(frame(5))]
    begun = feed(running, messages)[0]
    assert begun.metadata["format"] == "jungfraujoch"
    assert begun.metadata["calibration"]["pedestal"] == 3
    assert begun.metadata["image"] == {"indexing_result": 0, "xfel_pulse_id": 5, "spots": []}


@pytest.mark.parametrize("headed", [True, False])
def test_dummies_between_the_frames_of_jungfraujoch_are_previews(headed):
    sending, running = Jungfraujoch(), decoder("jungfraujoch")
    messages = sending.start(run_start())
    messages = messages if headed else []
    messages += [*sending.dummy(frame(0)), *sending.frame(frame(1)), *sending.dummy(frame(2))]
    events = feed(running, messages)
    refused = [event.reason for event in events if isinstance(event, Rejected)]
    assert refused == ["preview", "preview"]
    assert [event.index for event in events if isinstance(event, Frame)] == [1]
