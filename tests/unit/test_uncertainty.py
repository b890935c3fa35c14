"""How sure a mean is when errors of successive frames hang together."""

import math

import numpy as np
import pytest

from quietbeam_plugins.devices.uncertainty import Calibration, calibrate, sd_from_scatter


def ar1(rng, n, m, rho, sd):
    errors = np.empty((n, m))
    errors[0] = rng.normal(0, sd, m)
    for i in range(1, n):
        errors[i] = rho * errors[i - 1] + math.sqrt(1 - rho**2) * rng.normal(0, sd, m)
    return errors


def test_independent_errors_fall_with_the_root_of_the_frames():
    assert Calibration(2.0).sd_of_mean(16) == pytest.approx(0.5)


def test_errors_that_are_the_same_in_all_frames_never_fall():
    assert Calibration(2.0, 1.0).sd_of_mean(50) == pytest.approx(2.0)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_the_sd_of_a_mean_is_that_of_many_means(rho):
    errors = ar1(np.random.default_rng(0), 10, 40_000, rho, 1.5)
    assert Calibration(1.5, rho).sd_of_mean(10) == pytest.approx(errors.mean(0).std(), rel=0.02)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_the_error_is_found_without_the_truth(rho):
    rng = np.random.default_rng(1)
    truth = rng.normal(100, 10, 500)
    clean = truth + ar1(rng, 200, 500, rho, 0.7)
    raw = truth + rng.normal(0, 5, (200, 500))
    found = calibrate(clean, raw)
    assert found.frame_sd == pytest.approx(0.7, rel=0.1)
    assert found.correlation == pytest.approx(rho, abs=0.1)


def test_a_scene_that_changes_makes_the_figure_larger_never_smaller():
    rng = np.random.default_rng(2)
    truth = np.arange(200.0)[:, None] * 0.5 + rng.normal(100, 10, 300)
    clean, raw = truth + rng.normal(0, 0.7, (200, 300)), truth + rng.normal(0, 2, (200, 300))
    assert calibrate(clean, raw).frame_sd >= 0.7


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="expected two equal shapes"):
        calibrate(np.zeros((5, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_scatter_gives_the_sd_of_the_mean_of_values_that_hang_together(rho):
    rng = np.random.default_rng(4)
    series = ar1(rng, 400, 300, rho, 1.0)
    believed = np.mean([sd_from_scatter(list(one)) for one in series.T])
    assert believed == pytest.approx(series.mean(0).std(), rel=0.15)


def test_a_few_values_cannot_tell():
    assert sd_from_scatter([1.0, 2.0, 1.0]) == math.inf
    assert sd_from_scatter([1.0] * 10) == 0.0
