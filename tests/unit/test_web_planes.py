"""How the live view makes codes of pixels: binning, limits, exactness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietbeam_plugins.sinks.web import planes as pl
from quietbeam_plugins.sinks.web.render import message, opened, rendered

SIDES = st.integers(1, 23)


@given(height=SIDES, width=SIDES, factor=st.integers(2, 11), seed=st.integers(0, 99))
def test_a_bin_is_the_mean_of_its_valid_pixels(height, width, factor, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(height, width)).astype(np.float32)
    valid = rng.random((height, width)) > 0.3
    for given_valid in (None, valid):
        got, kept = pl.binned(values, given_valid, factor)
        for row in range(-(-height // factor)):
            for column in range(-(-width // factor)):
                part = np.s_[
                    row * factor : (row + 1) * factor, column * factor : (column + 1) * factor
                ]
                inside = values[part] if given_valid is None else values[part][valid[part]]
                assert (kept is None or kept[row, column]) == bool(inside.size)
                if inside.size:
                    assert got[row, column] == pytest.approx(inside.mean(), abs=1e-5)


@given(low=st.integers(0, 60000), span=st.integers(0, 5000), seed=st.integers(0, 99))
def test_whole_counts_survive_exactly(low, span, seed):
    counts = np.random.default_rng(seed).integers(low, low + span + 1, (9, 7)).astype(np.uint32)
    made = pl.encode_u16(pl.raw_plane(counts, None, None, None, 1))
    codes = np.frombuffer(made.data, "<u2").reshape(9, 7)
    assert made.header["exact"] is True
    assert (made.header["offset"] + made.header["scale"] * codes == counts).all()


@given(scale=st.floats(1e-6, 1e6), offset=st.floats(-1e5, 1e5))
def test_floats_are_off_by_half_a_step_at_most(scale, offset):
    values = (offset + scale * np.linspace(0, 1, 48)).astype(np.float32).reshape(6, 8)
    made = pl.encode_u16(pl.float_plane(values, 1))
    codes = np.frombuffer(made.data, "<u2").reshape(6, 8).astype(float)
    back = made.header["offset"] + made.header["scale"] * codes
    rounding = 4 * np.spacing(np.float32(np.abs(values).max()))
    assert np.abs(back - values).max() <= 0.51 * made.header["scale"] + rounding


def test_an_image_without_a_valid_pixel_has_no_limits_and_no_fault():
    plane = pl.float_plane(np.full((4, 4), np.nan, np.float32), 1)
    assert pl.stats(plane)["min"] is None
    assert set(np.frombuffer(pl.encode_u16(plane).data, "<u2")) == {pl.NODATA}


@given(
    region=st.none() | st.tuples(*[st.integers(-50, 150)] * 4),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
def test_what_is_sent_fits_the_screen_and_covers_what_was_asked(region, size):
    (x0, y0, x1, y1), factor = pl.fitting_box((60, 100), region, size)
    assert 0 <= x0 < x1 <= 100
    assert 0 <= y0 < y1 <= 60
    assert x0 % factor == y0 % factor == 0
    assert -(-(x1 - x0) // factor) <= size[0] + 1
    assert -(-(y1 - y0) // factor) <= size[1] + 1


def test_labels_are_picked_and_never_averaged():
    labels = np.array([[1, 1, 9, 9], [1, 1, 9, 9], [5, 5, 7, 7], [5, 5, 7, 7]], np.int32)
    assert pl.nearest_binned(labels, 2).tolist() == [[1, 9], [5, 7]]


@pytest.mark.parametrize("transfer", ["linear", "sqrt", "log"])
def test_transfers_keep_the_ends_and_the_order(transfer):
    t = np.linspace(0, 1, 101, dtype=np.float32)
    shown = pl.transferred(t, transfer)
    assert shown[0] == 0
    assert shown[-1] == pytest.approx(1)
    assert (np.diff(shown) > 0).all()


def test_data_of_a_message_begin_at_multiples_of_eight():
    from helpers.web import pair, started
    from quietbeam_plugins.sinks.web.buffer import Buffer
    from quietbeam_plugins.sinks.web.messages import View

    shape = (5, 7)
    buffer = Buffer(16 << 20)
    buffer.start(started(shape=shape))
    frame, result = pair(3, shape=shape)
    buffer.raw(frame)
    entry = buffer.clean(result)
    assert entry is not None
    for length in range(12):
        view = View(type="view", planes=("raw", "clean", "sd"))
        header, pieces = opened(message(rendered(entry, view), {"seq": 1, "pad": "x" * length}))
        assert all(plane["at"] % 8 == 0 for plane in header["planes"])
        assert np.frombuffer(pieces["raw"], "<u2").reshape(shape)[0, 0] == 3
