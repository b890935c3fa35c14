"""Every frame gets one estimate in order; fusion is the product of two Gaussians."""

import numpy as np
import pytest

from quietbeam.model.clean import overstated
from quietbeam.model.correct import fill_invalid
from quietbeam.model.fuse import fuse
from quietbeam.model.stream import Streamer


class Delay:
    """An engine that answers with the frame of ``lag`` frames ago."""

    blind = False

    def __init__(self, lag):
        self.lag = lag
        self.reset()

    def reset(self):
        self.seen = []

    def __call__(self, frame):
        self.seen.append(frame)
        return self.seen[max(0, len(self.seen) - 1 - self.lag)], np.zeros_like(frame)

    def stage(self, weights):
        raise NotImplementedError

    def flip(self):
        raise NotImplementedError


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 20])
def test_every_frame_gets_exactly_one_estimate_in_order(lag, frames):
    streamer = Streamer(Delay(lag))
    answers = []
    for i in range(frames):
        answers += streamer.push(np.full((1, 1), i, np.float32))
    answers += streamer.flush()
    assert [int(mean[0, 0]) for mean, _ in answers] == list(range(frames))


def test_the_ends_are_mirrored_about_the_end_frame():
    engine = Delay(2)
    streamer = Streamer(engine)
    for i in range(5):
        streamer.push(np.full((1, 1), i, np.float32))
    streamer.flush()
    assert [int(frame[0, 0]) for frame in engine.seen] == [2, 1, 0, 1, 2, 3, 4, 3, 2]


def test_fusion_weighs_by_inverse_variance():
    mean, measured = np.zeros((1, 2), np.float32), np.full((1, 2), 2.0, np.float32)
    variance = np.array([[1.0, 3.0]], np.float32)
    estimate, posterior, weight = fuse(mean, variance, measured)
    np.testing.assert_allclose(estimate, [[1.0, 1.5]])
    np.testing.assert_allclose(posterior, [[0.5, 0.75]])
    np.testing.assert_allclose(weight, [[0.5, 0.75]])


def test_unknown_variance_outliers_and_invalid_pixels_keep_the_prediction():
    mean = np.zeros((1, 3), np.float32)
    measured = np.array([[1.0, 50.0, 1.0]], np.float32)
    variance = np.array([[0.0, 1.0, 1.0]], np.float32)
    estimate, posterior, _ = fuse(mean, variance, measured, np.array([[True, True, False]]))
    np.testing.assert_array_equal(estimate, mean)
    np.testing.assert_allclose(posterior, [[0.0, 1.0, 1.0]])


def test_holes_are_filled_from_valid_neighbours_only():
    pixels = np.full((20, 20), 5.0, np.float32)
    valid = np.ones((20, 20), bool)
    pixels[4:6, 4:6], valid[4:6, 4:6] = 1e9, False
    np.testing.assert_allclose(fill_invalid(pixels, valid), 5.0, rtol=1e-5)
    assert np.isfinite(fill_invalid(pixels, np.zeros_like(valid))).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_predicted_deviation_is_taken_at_the_measured_error(factor):
    assert overstated(2.0, 1e-6, 2.0 * factor**2) == pytest.approx(factor, rel=1e-4)


def test_an_error_that_is_hardly_known_hardly_changes_a_predicted_deviation():
    assert overstated(2.0, 20.0, 8.0) == pytest.approx(1, abs=0.01)
    assert overstated(-1.0, 5.0, 8.0) < 2


@pytest.mark.parametrize("told", [0.0, float("nan")])
def test_without_a_prediction_there_is_nothing_to_overstate(told):
    assert overstated(2.0, 0.1, told) == 1
    assert overstated(float("nan"), 0.1, 8.0) == 1
