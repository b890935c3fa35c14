from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, shift

from quietbeam.offline.evaluation.against_truth import (
    bias_sd,
    coverage,
    front_growth,
    front_width,
    temporal_lag,
)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def waves(times):
    """A scene that is known at any time, not at whole frames only."""
    y, x = np.indices((24, 26))
    t = np.asarray(times, float)[:, None, None]
    return 0.5 + 0.3 * np.sin(0.4 * x + 0.15 * t) * np.cos(0.3 * y - 0.1 * t)


@pytest.mark.parametrize("lag", [-2.5, -1, 0, 0.3, 1, 3.7])
def test_a_video_that_is_late_by_a_fraction_of_a_frame_is_measured_so(lag, rng):
    truth = waves(np.arange(40))
    late = waves(np.arange(40) - lag)
    assert temporal_lag(late, truth) == pytest.approx(lag, abs=0.02)
    noisy = late + 0.1 * rng.standard_normal(late.shape)
    assert temporal_lag(noisy, truth) == pytest.approx(lag, abs=0.1)


def test_an_exponential_mean_trails_by_its_time_constant():
    truth = waves(0.2 * np.arange(60))
    state, late = truth[0], []
    for frame in truth:
        state = state + 0.25 * (frame - state)
        late.append(state)
    # The lag of a first-order filter is (1 - rate) / rate frames for slow changes.
    assert temporal_lag(np.array(late), truth) == pytest.approx(3, abs=0.15)


def test_a_static_scene_has_no_lag():
    truth = np.ones((20, 8, 8)) * np.arange(8)
    assert np.isnan(temporal_lag(truth, truth))
    assert np.isnan(temporal_lag(truth[:2], truth[:2]))


def front(sd_px, speed=0.35):
    positions = 16 + speed * np.arange(30)
    x = np.arange(64)
    from scipy.special import erfc

    rows = [0.2 + 0.3 * erfc((x - p) / (np.sqrt(2) * sd_px)) for p in positions]
    return np.repeat(np.array(rows)[:, None], 20, axis=1), positions


@pytest.mark.parametrize("sd_px", [1.5, 2, 3])
def test_the_width_of_a_blurred_edge_is_2_563_of_its_deviation(sd_px):
    video, positions = front(sd_px)
    # Linear interpolation between pixels adds the variance of a sixth of a pixel squared or less.
    assert front_width(video, positions) == pytest.approx(2.563 * sd_px, rel=0.04)
    assert front_width(1 - video, positions) == pytest.approx(2.563 * sd_px, rel=0.04)


def test_noise_and_loss_of_contrast_do_not_widen_a_front_but_a_mean_in_time_does(rng):
    truth, positions = front(1.5)
    noisy = 0.1 + 0.5 * truth + 0.1 * rng.standard_normal(truth.shape)
    assert abs(front_growth(noisy, truth, positions)) < 0.05
    late = shift(truth, (2, 0, 0), order=1, mode="nearest")
    assert abs(front_growth(late[2:], truth[2:], positions[2:])) < 0.03
    mean = np.asarray([truth[max(0, i - 20) : i + 1].mean(0) for i in range(30)])
    assert front_growth(mean[20:], truth[20:], positions[20:]) > 0.3
    blurred = gaussian_filter1d(truth, 1.5, axis=2)
    assert front_growth(blurred, truth, positions) == pytest.approx(np.sqrt(2) - 1, abs=0.05)


def test_without_a_front_there_is_no_width():
    flat = np.full((4, 8, 40), 0.5)
    assert np.isnan(front_width(flat, np.full(4, 20.0)))
    assert np.isnan(front_width(flat, np.full(4, 1.0)))
    assert np.isnan(front_growth(flat, flat, None))


def test_bias_is_told_in_deviations_of_the_noise(rng):
    truth = np.zeros((10, 50, 50))
    noisy = truth + 0.2 * rng.standard_normal(truth.shape)
    assert bias_sd(truth + 0.1, truth, noisy) == pytest.approx(0.5, rel=0.02)
    assert bias_sd(truth - 0.1, truth, noisy) == pytest.approx(-0.5, rel=0.02)
    assert np.isnan(bias_sd(truth, truth, truth))


def test_coverage_of_a_right_standard_deviation_is_nominal(rng):
    truth = rng.random((10, 50, 50))
    sd = 0.1 + 0.2 * rng.random(truth.shape)
    estimate = truth + sd * rng.standard_normal(truth.shape)
    assert coverage(estimate, sd, truth, 1) == pytest.approx(0.683, abs=0.01)
    assert coverage(estimate, sd, truth, 2) == pytest.approx(0.954, abs=0.01)
    assert np.isnan(coverage(estimate, np.full((1, 1, 1), np.nan), truth, 1))
