"""Every wire format decodes to the pixels that went in, with all its dialects."""

import json
import zlib

import cbor2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from helpers.sources import decoder, feed
from quietbeam.core.events import Frame, Rejected, RunEnd, RunStart
from quietbeam.testing.simulators import FORMATS, UNCOMPRESSED, compress, encoder
from quietbeam_plugins.sources.decompress import decompress

SECOND = 1_000_000_000
RNG = np.random.default_rng(0)


def run_start(pixels, **told):
    return RunStart(run="01RUN", shape=pixels.shape, dtype=pixels.dtype, **told)


def frame(index, pixels, time_ns=0):
    return Frame(run="01RUN", index=index, time_ns=time_ns, received_ns=0, pixels=pixels)


def series(form, images, compression="none", **told):
    """All messages of a series."""
    encoding = encoder(form, compression)
    messages = encoding.start(run_start(images[0], **told))
    for index, pixels in enumerate(images):
        messages += encoding.frame(frame(index, pixels, index * 20))
    return messages + encoding.end(RunEnd(run="01RUN", reason="completed"))


def images(dtype="u2", count=3, shape=(24, 40)):
    return RNG.poisson(7, (count, *shape)).astype(dtype)


def kinds(events):
    return [type(event).__name__ for event in events]


ENCODED = [(form, "none") for form in FORMATS if form != "sls-4bit"]
ENCODED += [(f, codec) for f in FORMATS if f not in UNCOMPRESSED for codec in ("lz4", "bslz4")]


@pytest.mark.parametrize(("form", "compression"), ENCODED)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_a_series_decodes_to_the_pixels_that_went_in(form, compression, dtype):
    sent = images(dtype)
    running = decoder(form)
    events = [*feed(running, series(form, sent, compression)), *running.finish()]
    assert kinds(events) == ["RunStart", "Frame", "Frame", "Frame", "RunEnd"]
    assert (events[0].shape, events[0].dtype) == ((24, 40), np.dtype(dtype))
    for index, event in enumerate(events[1:4]):
        assert event.index == index
        assert event.pixels.dtype == sent.dtype
        np.testing.assert_array_equal(event.pixels, sent[index])


@given(
    pixels=arrays.arrays(
        st.sampled_from(["u1", "u2", "u4", "i4", "f4"]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ),
    encoded=st.sampled_from([case for case in ENCODED if case[0] != "sls"]),  # it has no floats
)
@example(np.zeros((2, 3), "u2"), ("adzmq", "bslz4"))  # stored bytes that look like a blank header
@settings(max_examples=80, deadline=None)
def test_decoding_undoes_encoding_whatever_the_pixels(pixels, encoded):
    form, compression = encoded
    running = decoder(form)
    events = [*feed(running, series(form, [pixels], compression)), *running.finish()]
    assert kinds(events) == ["RunStart", "Frame", "RunEnd"]
    assert events[1].pixels.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("form", ["dectris-v1", "dectris-v1-flat", "dectris-v2"])
def test_what_the_header_tells_is_in_the_start(form):
    mask = np.zeros((24, 40), bool)
    mask[3, 5] = True
    told = {"frame_time_s": 0.05, "exposure_s": 0.04, "frames_expected": 3, "energy_kev": 12.4}
    told |= {"pixel_size_m": 75e-6, "mask": mask, "saturation": 60000.0}
    begun = feed(decoder(form), series(form, images(), **told))[0]
    assert isinstance(begun, RunStart)
    for name, value in told.items():
        if name != "mask":
            assert getattr(begun, name) == pytest.approx(value), name
    np.testing.assert_array_equal(begun.mask, mask)
    assert begun.nodata == 65535
    json.dumps(begun.metadata)


def test_detector_times_are_kept():
    for form in ("dectris-v1", "dectris-v2"):
        events = feed(decoder(form), series(form, images()))
        assert [event.time_ns for event in events if isinstance(event, Frame)] == [0, 20, 40]


def test_one_source_reads_both_stream_versions():
    running = decoder("dectris")
    sent = images()
    events = feed(running, series("dectris-v1", sent)) + list(running.idle(SECOND))
    events += feed(running, series("dectris-v2", sent), 2 * SECOND) + list(running.finish())
    assert kinds(events) == ["RunStart", "Frame", "Frame", "Frame", "RunEnd"] * 2


def test_a_fixed_version_refuses_the_other():
    running = decoder("dectris", format="v1")
    assert {type(event) for event in feed(running, series("dectris-v2", images()))} == {Rejected}


def v1_image(number=0, blob=None, shape=(40, 24), **changes):
    blob = images()[0].tobytes() if blob is None else blob
    description = {"htype": "dimage_d-1.0", "shape": list(shape), "type": "uint16"}
    description |= {"encoding": "<", "size": len(blob), **changes}
    return [
        json.dumps({"htype": "dimage-1.0", "series": 3, "frame": number, "hash": ""}).encode(),
        json.dumps(description).encode(),
        blob,
        json.dumps({"htype": "dconfig-1.0", "start_time": 5}).encode(),
    ]


def v1_header(*more, **config):
    return [
        json.dumps({"htype": "dheader-1.0", "series": 3, "header_detail": "basic"}).encode(),
        json.dumps(config).encode(),
        *more,
    ]


def test_stream_v1_counts_x_first_and_its_old_simulator_does_not():
    pixels = images()[0]
    for changes in ({}, {"htype": "dimaged-1.0", "shape": [24, 40]}):
        message = v1_image(blob=pixels.tobytes(), **changes)
        event = feed(decoder("dectris"), [message])[-1]
        np.testing.assert_array_equal(event.pixels, pixels)


def test_stream_v1_trusts_the_header_about_the_order_of_the_axes():
    pixels = images()[0]
    messages = [
        v1_header(x_pixels_in_detector=40, y_pixels_in_detector=24),
        v1_image(blob=pixels.tobytes(), shape=(24, 40)),
    ]
    events = feed(decoder("dectris"), messages)
    assert kinds(events) == ["RunStart", "Frame"]
    np.testing.assert_array_equal(events[1].pixels, pixels)


@pytest.mark.parametrize("header", ["whole", "blank", "none"])
@pytest.mark.parametrize("dtype", ["u2", "u4"])
def test_bslz4_is_read_with_a_blank_and_without_a_header(header, dtype):
    pixels = images(dtype, shape=(65, 70))[0]
    bare = compress.bslz4(pixels)[12:]
    whole = pixels.nbytes.to_bytes(8, "big") + (8192).to_bytes(4, "big") + bare
    blob = {"whole": whole, "blank": bytes(12) + bare, "none": bare}[header]
    found = np.empty_like(pixels)
    decompress(blob, "bslz4", found)
    np.testing.assert_array_equal(found, pixels)


def test_a_bare_lz4_block_as_long_as_its_content_is_not_taken_for_stored():
    content = b"abcdabcd12345678"  # 4 literals, a match of 4, 8 literals: 16 bytes in 16
    block = b"\x40abcd\x04\x00\x8012345678"
    assert len(block) == len(content) == 16
    found = np.empty(16, np.uint8)
    decompress(block, "lz4", found)
    assert found.tobytes() == content


def test_an_appendix_is_kept_for_the_header_and_ignored_for_images():
    messages = [
        v1_header(b'{"filename":"x"}', x_pixels_in_detector=40, y_pixels_in_detector=24),
        [*v1_image(0), b"anything"],
        [*v1_image(1), b'{"also":"json"}'],
    ]
    events = feed(decoder("dectris"), messages)
    assert kinds(events) == ["RunStart", "Frame", "Frame"]
    assert events[0].metadata["header_appendix"] == '{"filename":"x"}'


@pytest.mark.parametrize("name", ["dflatfield-1.0", "flatfield-1.0"])
def test_a_header_with_everything_is_read_in_one_message_or_in_many(name):
    flat = json.dumps({"htype": name, "shape": [40, 24], "type": "float32"}).encode()
    mask = json.dumps({"htype": "dpixelmask-1.0", "shape": [40, 24], "type": "uint32"}).encode()
    table = json.dumps({"htype": "dcountrate_table-1.0", "shape": [2, 9]}).encode()
    bad = np.zeros((24, 40), "u4")
    bad[0, 1] = 4
    blobs = (np.ones((24, 40), "f4").tobytes(), bad.tobytes(), b"{" * 72)
    parts = v1_header(flat, blobs[0], mask, blobs[1], table, blobs[2], b"appendix", nimages=5)
    for messages in ([parts], [[part] for part in parts]):
        events = feed(decoder("dectris"), [*messages, v1_image()])
        assert kinds(events) == ["RunStart", "Frame"]
        assert events[0].frames_expected == 5
        assert np.argwhere(events[0].mask).tolist() == [[0, 1]]


def test_pixels_that_look_like_json_are_pixels():
    pixels = np.full((24, 40), int.from_bytes(b"{{", "little"), "u2")
    for form, _ in ENCODED:
        running = decoder(form)
        events = [*feed(running, series(form, [pixels])), *running.finish()]
        assert kinds(events) == ["RunStart", "Frame", "RunEnd"]


def test_frames_without_times_come_once_it_is_clear_that_none_follow():
    running = decoder("dectris")
    assert feed(running, [v1_image(0)[:3]]) == []
    assert kinds(running.idle(SECOND)) == ["RunStart", "Frame"]
    assert kinds(feed(running, [v1_image(1)[:3], v1_image(2)])) == ["Frame", "Frame"]


def array_message(pixels, **header):
    base = {"htype": "array-1.0", "shape": list(pixels.shape), "type": pixels.dtype.name}
    return [json.dumps({**base, "frame": 0, **header}).encode(), pixels.tobytes()]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (17, 23), (96, 128)])
def test_bszstd_of_stream_v2_is_read(shape, dtype):
    pixels = images(dtype, shape=shape)[0]
    start, image = series("dectris-v2", [pixels], "bslz4")[:2]
    message = cbor2.loads(image[0])
    (channel,) = message["data"]
    array = message["data"][channel].value[1]
    blob = cbor2.CBORTag(56500, ["bszstd", pixels.itemsize, compress.bszstd(pixels)])
    typed = cbor2.CBORTag(40, [list(shape), cbor2.CBORTag(array.tag, blob)])
    changed = cbor2.dumps({**message, "data": {channel: typed}})
    event = feed(decoder("dectris-v2"), [start, [changed]])[-1]
    np.testing.assert_array_equal(event.pixels, pixels)


@pytest.mark.parametrize("spelling", ["endianness", "endianess"])
def test_big_endian_arrays_become_native(spelling):
    pixels = images(">u2")[0]
    event = feed(decoder("array"), [array_message(pixels, **{spelling: "big"})])[-1]
    assert event.pixels.dtype == np.dtype("u2")
    np.testing.assert_array_equal(event.pixels, pixels)


@pytest.mark.parametrize(
    "header",
    [
        {"htype": ["array-1.0"], "shape": [40, 24]},
        {"htype": "chunk-1.0", "shape": [40, 24, 1]},
        {"shape": [1, 24, 40]},
        {"shape": ["24", "40"]},
        {"tags": ["a"], "source": "camera", "more": None},
    ],
    ids=str,
)
def test_dialects_of_array_1_0(header):
    pixels = images()[0]
    event = feed(decoder("array"), [array_message(pixels, **header)])[-1]
    np.testing.assert_array_equal(event.pixels, pixels)


def test_the_jungfrau_dialect_has_no_htype():
    pixels = images()[0]
    header = {"type": "uint16", "shape": [24, 40], "frame": 8, "pulse_id": 77}
    events = feed(decoder("array"), [[json.dumps(header).encode(), pixels.tobytes()]])
    assert events[1].index == 8
    assert events[0].metadata == {"pulse_id": 77}


@pytest.mark.parametrize(
    "ndattr",
    ['{"T":nan}', '{"T":-nan, "U":inf}', r'{"path":"C:\data\x.tif"}', '{"text":"say "hi""}'],
)
def test_areadetector_attributes_that_are_no_json_do_not_matter(ndattr):
    pixels = images()[0]
    header = (
        '{"htype":"array-1.0", "type":"uint16", "shape":[24,40], "frame":4, '
        f'"timeStamp":1000.5, "encoding":"", "ndattr":{ndattr}}}'
    )
    events = feed(decoder("array"), [[header.encode(), pixels.tobytes()]])
    assert kinds(events) == ["RunStart", "Frame"]
    assert events[1].time_ns == (631_152_000 + 1000) * SECOND + SECOND // 2  # EPICS began in 1990


def test_areadetector_sends_rubbish_after_compressed_data():
    pixels = np.repeat(images()[0], 4, axis=0)
    rubbish = b"\xaa" * 500
    packed = {
        "lz4": compress.bare_lz4(pixels),
        "lz4hdf5": compress.lz4(pixels),
        "bslz4": compress.bslz4(pixels)[12:],
        "zlib": zlib.compress(pixels.tobytes()),
    }
    for name, blob in packed.items():
        message = array_message(pixels, encoding=name)
        message[1] = (blob + rubbish).ljust(pixels.nbytes, b"\xaa")
        event = feed(decoder("array"), [message])[-1]
        np.testing.assert_array_equal(event.pixels, pixels, err_msg=name)


def test_array_runs_end_when_frames_stop_start_again_or_change():
    running = decoder("array", run_timeout_s=1.0)
    pixels = images()[0]
    small = pixels[:4, :4].copy()

    def send(number, image=pixels, now_s=0.0):
        return kinds(feed(running, [array_message(image, frame=number)], round(now_s * SECOND)))

    assert send(5) == ["RunStart", "Frame"]
    assert send(6) == ["Frame"]
    assert send(4) == ["Frame"]  # overtaken
    assert send(5) == ["Rejected"]  # a duplicate
    assert send(0) == ["RunEnd", "RunStart", "Frame"]
    assert send(1) == ["Frame"]
    assert send(2, small) == ["RunEnd", "RunStart", "Frame"]
    assert send(3, small.astype("u4")) == ["RunEnd", "RunStart", "Frame"]
    assert send(4, small.astype("u4"), now_s=0.9) == ["Frame"]
    assert kinds(running.idle(round(2.5 * SECOND))) == ["RunEnd"]
    assert send(7, now_s=3.0) == ["RunStart", "Frame"]


def v2_message(**fields):
    ids = {"series_id": 3, "series_unique_id": "01ABC"}
    return [cbor2.dumps(cbor2.CBORTag(55799, {**ids, **fields}))]


def v2_array(pixels, tag, order=40):
    shape = list(pixels.shape)
    data = pixels.tobytes(order="C" if order == 40 else "F")
    return cbor2.CBORTag(order, [shape, cbor2.CBORTag(tag, data)])


TYPED = [(64, "u1"), (65, ">u2"), (66, ">u4"), (67, ">u8"), (69, "<u2"), (70, "<u4"), (71, "<u8")]
TYPED += [(72, "i1"), (73, ">i2"), (77, "<i2"), (78, "<i4"), (80, ">f2"), (81, ">f4"), (85, "<f4")]


@pytest.mark.parametrize(("tag", "dtype"), TYPED)
@pytest.mark.parametrize("order", [40, 1040])
def test_typed_arrays_of_stream_v2(tag, dtype, order):
    pixels = images(dtype)[0]
    message = v2_message(type="image", image_id=0, data={"a": v2_array(pixels, tag, order)})
    event = feed(decoder("dectris"), [message])[-1]
    assert event.pixels.dtype == pixels.dtype.newbyteorder("=")
    assert event.pixels.flags.c_contiguous
    np.testing.assert_array_equal(event.pixels, pixels)


def thresholds(*pixels):
    """An image message with so many channels."""
    data = {f"threshold_{n}": v2_array(one, 69) for n, one in enumerate(pixels, 1)}
    return v2_message(type="image", image_id=0, data=data)


def test_all_announced_channels_are_read_in_their_order():
    one, two = images()[:2]
    start = v2_message(type="start", channels=["threshold_2", "threshold_1"])
    begun, frame = feed(decoder("dectris"), [start, thresholds(one, two)])
    assert (begun.shape, begun.channels) == ((2, *one.shape), ("threshold_2", "threshold_1"))
    np.testing.assert_array_equal(frame.pixels, [two, one])
    begun, frame = feed(decoder("dectris"), [thresholds(one, two)])
    assert begun.channels == ("threshold_1", "threshold_2")
    np.testing.assert_array_equal(frame.pixels, [one, two])


def test_channels_are_chosen_by_name_in_any_order():
    one, two, three = images()[:3]
    message = thresholds(one, two, three)
    begun, frame = feed(decoder("dectris", channels=["threshold_3", "threshold_1"]), [message])
    assert begun.channels == ("threshold_3", "threshold_1")
    np.testing.assert_array_equal(frame.pixels, [three, one])
    begun, frame = feed(decoder("dectris", channels=["threshold_2"]), [message])
    assert (begun.shape, begun.channels) == (two.shape, ())
    assert begun.metadata["channel"] == "threshold_2"
    np.testing.assert_array_equal(frame.pixels, two)
    (refused,) = feed(decoder("dectris", channels=["difference"]), [message])
    assert (refused.reason, "'difference'" in refused.detail) == ("malformed", True)


def test_every_channel_has_its_own_mask():
    one, two = images()[:2]
    bad = np.zeros((2, *one.shape), "u4")
    bad[1, 3, 4] = 8
    start = v2_message(
        type="start",
        channels=["threshold_1", "threshold_2"],
        pixel_mask={f"threshold_{n}": v2_array(mask, 70) for n, mask in enumerate(bad, 1)},
    )
    begun = feed(decoder("dectris"), [start, thresholds(one, two)])[0]
    np.testing.assert_array_equal(begun.mask, bad != 0)
    assert [plane.mask.sum() for plane in begun.planes()] == [0, 1]


def test_channels_that_do_not_fit_together_are_refused():
    one = images()[0]
    (refused,) = feed(decoder("dectris"), [thresholds(one, one[:8])])
    assert refused.reason == "shape"
    data = {"a": v2_array(one, 69), "b": v2_array(one.astype("<u4"), 70)}
    message = v2_message(type="image", image_id=0, data=data)
    (refused,) = feed(decoder("dectris"), [message])
    assert (refused.reason, "choose" in refused.detail) == ("dtype", True)
    assert [type(event).__name__ for event in feed(decoder("dectris", channels=["b"]), [message])]


def test_the_limit_on_bytes_is_for_all_channels_together():
    one, two = images()[:2]
    limited = {"max_frame_bytes": one.nbytes + two.nbytes - 1}
    (refused,) = feed(decoder("dectris", **limited), [thresholds(one, two)])
    assert refused.reason == "oversized"
    assert kinds(feed(decoder("dectris", **limited), [thresholds(one)])) == ["RunStart", "Frame"]
    colour = np.stack([one, two])
    (refused,) = feed(decoder("array", **limited), [array_message(colour)])
    assert refused.reason == "oversized"


RGB = ("red", "green", "blue")


@pytest.mark.parametrize(
    ("axis", "mode", "names"),
    [
        (2, None, RGB),
        (2, 2, RGB),
        (1, 3, RGB),
        (0, 4, RGB),
        (0, "RGB3", RGB),
        (0, None, ("channel_1", "channel_2", "channel_3")),
    ],
)
def test_the_colours_of_a_camera_are_found_wherever_they_are(axis, mode, names):
    planes = np.stack(images()[:3])
    sent = np.ascontiguousarray(np.moveaxis(planes, 0, axis))
    fields = {} if mode is None else {"ndattr": {"ColorMode": mode}}
    begun, frame = feed(decoder("array"), [array_message(sent, **fields)])
    assert (begun.shape, begun.channels) == (planes.shape, names)
    assert frame.pixels.flags.c_contiguous
    np.testing.assert_array_equal(frame.pixels, planes)
    begun, frame = feed(decoder("array", channels=[names[1]]), [array_message(sent, **fields)])
    assert (begun.shape, begun.channels) == (planes.shape[1:], ())
    np.testing.assert_array_equal(frame.pixels, planes[1])


def test_one_channel_on_an_axis_of_its_own_is_a_plain_image():
    one = images()[0]
    for sent in (one[None], one[..., None], one[None, None]):
        begun, frame = feed(decoder("array"), [array_message(sent)])
        assert (begun.shape, begun.channels) == (one.shape, ())
        np.testing.assert_array_equal(frame.pixels, one)


def test_another_number_of_channels_is_another_run():
    one, two = images()[:2]
    sent = [array_message(np.stack([one, two])), array_message(one, frame=1)]
    sent.append(array_message(np.stack([one, two]), frame=2, channels=["low", "high"]))
    events = feed(decoder("array"), sent)
    assert kinds(events) == ["RunStart", "Frame", "RunEnd"] * 2 + ["RunStart", "Frame"]
    starts = [event for event in events if isinstance(event, RunStart)]
    assert [len(start.channels) for start in starts] == [2, 0, 2]
    assert starts[2].channels == ("low", "high")


def test_a_broken_mask_does_not_cost_the_series():
    start = v2_message(
        type="start", channels=["a"], image_size_x=40, image_size_y=24, pixel_mask={"a": bytes(4)}
    )
    image = v2_message(type="image", image_id=0, data={"a": v2_array(images()[0], 69)})
    events = feed(decoder("dectris"), [start, image])
    assert kinds(events) == ["RunStart", "Frame"]
    assert events[0].mask is None


def test_the_run_is_named_after_the_unique_id_of_the_series():
    image = v2_message(type="image", image_id=0, data={"a": v2_array(images()[0], 69)})
    assert feed(decoder("dectris"), [image])[0].run == "01ABC"
    legacy = feed(decoder("dectris"), [v1_image()])[0].run
    assert legacy.startswith("series-3-")


def test_frames_larger_than_allowed_are_refused():
    running = decoder("dectris", max_frame_bytes=1000)
    events = feed(running, series("dectris-v1", images()))
    assert {event.reason for event in events} == {"oversized"}


def test_dummy_previews_are_refused_even_when_the_header_was_missed():
    messages = series("dectris-v2", images(count=2))
    dummies = series("dectris-v2", images(count=9, shape=(2, 2)))
    running = decoder("dectris-v2")
    events = feed(running, [dummies[8], messages[1], dummies[9], messages[2]])
    refused = [event.reason for event in events if isinstance(event, Rejected)]
    assert refused == ["preview", "preview"]
    assert kinds(events) == ["Rejected", "RunStart", "Frame", "Rejected", "Frame"]
    assert events[1].shape == (24, 40)
