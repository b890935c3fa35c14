"""Regions of an image that are set by process variables."""

import math

import numpy as np
import pytest

from quietbeam_plugins.sinks.epics.regions import region_value

IMAGE = np.arange(60, dtype=np.float32).reshape(6, 10)


def settings(number=2, **more):
    own = {"Use": 1, "MinX": 0, "MinY": 0, "SizeX": 0, "SizeY": 0, **more}
    return {f"ROIStat1:{number}:{name}": value for name, value in own.items()}


def measured(what, image=IMAGE, **more):
    return region_value(f"2.{what}", settings(**more), image)


def test_x_is_along_columns_and_y_along_rows():
    cut = {"MinX": 2, "MinY": 1, "SizeX": 3, "SizeY": 2}
    expected = IMAGE[1:3, 2:5]
    assert measured("mean", **cut) == expected.mean()
    assert measured("sd", **cut) == pytest.approx(expected.std())
    assert (measured("least", **cut), measured("most", **cut)) == (12.0, 24.0)
    assert measured("total", **cut) == expected.sum()
    assert measured("pixels", **cut) == 6


def test_a_size_of_0_reaches_to_the_edge():
    assert measured("total", MinX=9, MinY=5) == 59.0
    assert measured("pixels") == 60


def test_what_lies_outside_the_image_is_cut_off_and_nothing_is_not_a_number():
    assert measured("pixels", MinX=8, SizeX=100, MinY=5, SizeY=1) == 2
    assert math.isnan(measured("mean", MinX=10))
    assert math.isnan(measured("mean", image=None))
    assert math.isnan(measured("mean", Use=0))
    assert math.isnan(region_value("1.mean", settings(number=2), IMAGE))


def test_bad_pixels_do_not_count():
    holed = IMAGE.copy()
    holed[0, 0] = np.nan
    assert measured("pixels", image=holed) == 59
    assert measured("mean", image=holed) == holed[np.isfinite(holed)].mean(dtype=np.float64)


def test_of_several_channels_the_first_is_measured():
    assert measured("mean", image=np.stack([IMAGE, 2 * IMAGE])) == IMAGE.mean()
