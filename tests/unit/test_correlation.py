"""Noise of known correlation is found with its figures; white noise over a moving scene is not."""

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from quietbeam.model.correlation import NoiseCorrelation
from quietbeam.model.correlation_meter import CorrelationMeter, measure

T, S = 36, 96


@pytest.fixture(scope="module")
def white():
    return np.random.default_rng(0).standard_normal((T, S, S)).astype(np.float32)


def chained(noise, axis, r):
    """First-order autoregressive noise of unit variance along ``axis``."""
    out = np.moveaxis(noise.copy(), axis, 0)
    for i in range(1, len(out)):
        out[i] = r * out[i - 1] + np.sqrt(1 - r**2) * out[i]
    return np.moveaxis(out, 0, axis)


@cache
def discs(contrast, speed):
    """Discs of 8 px with edges of about two pixels that fly to and fro."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:S, :S]
    out = np.zeros((T, S, S), np.float32)
    for start, angle in zip(rng.uniform(0, S, (16, 2)), rng.uniform(0, 2 * np.pi, 16), strict=True):
        step = speed * np.array([np.sin(angle), np.cos(angle)])
        for t in range(T):
            cy, cx = 8 + np.abs((start + t * step) % (2 * S - 32) - S + 16)
            out[t] += contrast / (1 + np.exp((np.hypot(y - cy, x - cx) - 4) / 0.7))
    return out


@cache
def speckle(contrast, speed):
    image = gaussian_filter(np.random.default_rng(2).standard_normal((S, 2 * S)), 1.5, mode="wrap")
    spectrum = np.fft.fft(contrast * image / image.std(), axis=1)
    phase = -2j * np.pi * np.fft.fftfreq(2 * S)
    moved = [np.fft.ifft(spectrum * np.exp(phase * speed * t)).real[:, :S] for t in range(T)]
    return np.asarray(moved, np.float32)


SCENES = {
    "dark": lambda: np.zeros((T, S, S), np.float32),
    "slow discs": lambda: discs(10, 0.3),
    "fast discs": lambda: discs(10, 1.5),
    "slow speckle": lambda: speckle(4, 0.3),
    "speckle": lambda: speckle(4, 1.0),
}


@pytest.mark.parametrize("name", SCENES)
def test_white_noise_over_a_moving_scene_raises_no_alarm(white, name):
    found = measure(SCENES[name]() + white)
    assert found.sentences() == ()
    assert not found.in_time
    assert found.time[0] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("scene", ["dark", "fast discs"])
@pytest.mark.parametrize(("r", "reach"), [(0.2, 1), (0.5, 3)])
def test_afterglow_is_measured_whatever_the_scene_does(white, scene, r, reach):
    found = measure(SCENES[scene]() + chained(white, 0, r))
    assert found.time[0] == pytest.approx(r, abs=0.06)
    assert found.reach_frames == reach
    assert found.reach_px == (0, 0)
    assert f"r1 = {found.time[0]:.2f}" in found.sentences()[0]


def test_frames_that_share_half_an_exposure_reach_one_frame(white):
    found = measure((white[1:] + white[:-1]) / np.sqrt(2))
    assert found.time[0] == pytest.approx(0.5, abs=0.04)
    assert found.reach_frames == 1
    assert "1 frame more" in found.sentences()[0]


@pytest.mark.parametrize("scene", ["dark", "slow speckle"])
@pytest.mark.parametrize(("axis", "name"), [(2, "rows"), (1, "columns")])
def test_noise_along_scan_lines_is_found_in_its_direction_only(white, scene, axis, name):
    found = measure(SCENES[scene]() + chained(white, axis, 0.5))
    other = {"rows": "columns", "columns": "rows"}[name]
    assert getattr(found, name)[:3] == pytest.approx((0.5, 0.25, 0.125), abs=0.03)
    assert getattr(found, other)[0] == pytest.approx(0, abs=0.03)
    assert len(found.sentences()) == 1
    assert f"along {name}" in found.sentences()[0]
    assert not found.in_time


def test_noise_of_whole_lines_reaches_far(white):
    lines = np.random.default_rng(3).standard_normal((T, S, 1)).astype(np.float32)
    found = measure(white + 0.5 * lines)
    assert found.line == pytest.approx(0.2, abs=0.03)
    assert found.reach_px == (0, 11)


def test_blurred_noise_is_found_in_both_directions(white):
    found = measure(np.stack([gaussian_filter(frame, 0.6) for frame in white]))
    assert min(found.reach_px) >= 1
    assert found.alike > 1.3
    assert not found.in_time


def test_where_noise_is_as_blurred_as_the_scene_its_correlation_in_time_is_not_guessed(white):
    blurred = 5 * np.stack([gaussian_filter(frame, 1.5) for frame in white])
    found = measure(SCENES["fast discs"]() + blurred)
    assert np.isnan(found.time).all()
    assert "cannot be told" in found.sentences()[0]


def test_rounding_is_not_taken_for_correlation(white):
    assert measure(np.rint(SCENES["slow discs"]() + white)).sentences() == ()


def test_a_pattern_that_stays_is_told_from_noise(white):
    pattern = np.random.default_rng(4).standard_normal((S, S)).astype(np.float32)
    found = measure(SCENES["slow discs"]() + white + 0.7 * pattern)
    assert found.fixed == pytest.approx(0.49, rel=0.2)
    assert "stays in place" in found.sentences()[0]
    assert not found.in_time


@pytest.mark.slow
def test_the_standard_error_is_what_it_says():
    rng = np.random.default_rng(5)
    runs = [measure(rng.standard_normal((24, 64, 64)).astype(np.float32)) for _ in range(24)]
    in_space = np.std([r for found in runs for r in (found.rows[0], found.columns[0])])
    assert in_space == pytest.approx(runs[0].error, rel=0.3)
    assert np.std([found.time[0] for found in runs]) < 1.3 * runs[0].time_error


def test_bad_pixels_and_gaps_change_nothing(white):
    noise = chained(white, 0, 0.3)
    valid = np.random.default_rng(6).random((S, S)) > 0.02
    meter = CorrelationMeter()
    for position, frame in enumerate(noise):
        if position != 20:
            meter.add(position, np.where(valid, frame, 1e6).astype(np.float32), valid)
    found = meter.result()
    assert found.time[0] == pytest.approx(0.3, abs=0.06)
    assert found.rows[0] == pytest.approx(0, abs=0.03)


def test_masked_and_dark_parts_of_the_image_do_not_hide_the_rest(white):
    noise = chained(white, 0, 0.4)
    noise[:, :, :60] = 0
    valid = np.ones((S, S), bool)
    valid[100:] = False
    found = measure(noise, [valid] * T)
    assert found.time[0] == pytest.approx(0.4, abs=0.06)
    assert measure(noise, [~np.ones((S, S), bool)] * T).sentences() == ()


@pytest.mark.parametrize("frames", [0, 2, 4])
def test_of_too_few_frames_nothing_is_said(white, frames):
    found = measure(white[:frames])
    assert not found.in_time
    assert found.sentences() == ()


def test_frames_without_noise_say_nothing():
    assert measure([np.ones((32, 32), np.float32)] * 12).sentences() == ()


def test_a_long_run_is_looked_at_in_bursts_only():
    meter, frame = CorrelationMeter(), np.zeros((16, 16), np.float32)
    for position in range(640):
        meter.add(position, frame)
    assert 256 <= meter.result().frames < 400


def test_the_power_of_second_differences_follows_from_the_correlation(white):
    noise = chained(white, 0, 0.3)
    second = np.diff(noise, n=2, axis=0)
    found = measure(noise)
    assert found.second_difference == pytest.approx(np.mean(second**2) / 6, rel=0.05)
    assert NoiseCorrelation().second_difference == 1
