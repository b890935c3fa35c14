"""The live figure agrees with the truth that it cannot see."""

import numpy as np
import pytest

from quietbeam import Frame
from quietbeam.model.clean import Estimate, Preparation
from quietbeam.model.fuse import fuse
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.pipeline.quality import LiveQuality

GAIN, OFFSET = 2.0, 9.0


def series(blind_error, variance, frames=60, shape=(96, 96), assumed_gain=GAIN):
    """Feed estimates with a known error; give the last figures and the true mean squared error."""
    rng = np.random.default_rng(0)
    photons = 15 + 8 * np.sin(np.arange(shape[1]) / 9) * np.ones(shape)
    stabiliser = Stabiliser(NoiseModel(assumed_gain, OFFSET))
    prepare, quality = Preparation(stabiliser), LiveQuality(stabiliser)
    truth = GAIN * photons
    errors, figures = [], {}
    for i in range(frames):
        counts = GAIN * rng.poisson(photons) + rng.normal(0, np.sqrt(OFFSET), shape)
        counts = counts.astype(np.float32)
        frame = Frame(run="r", index=i, time_ns=0, received_ns=0, pixels=counts)
        ready = prepare.stabilise(frame, counts, np.ones(shape, bool))
        exact = stabiliser.forward((truth - 0.25 * GAIN).astype(np.float32))
        blind = (exact + rng.normal(0, blind_error, shape)).astype(np.float32)
        spread = np.full(shape, variance, np.float32)
        z, posterior, weight = fuse(blind, spread, ready.z)
        clean = stabiliser.inverse(z)
        estimate = Estimate(ready, blind, spread, z, posterior, weight)
        figures = quality.update(estimate, clean, "toy")
        errors.append(np.mean((clean - truth) ** 2))
    return figures, np.mean(errors[-200:])


@pytest.mark.parametrize(("error", "variance"), [(0.2, 0.0), (0.3, 0.09), (0.5, 0.25), (0.15, 0.5)])
def test_the_estimated_psnr_is_within_half_a_decibel_of_the_true_one(error, variance):
    figures, mse = series(error, variance)
    true = 10 * np.log10(figures["quality.peak"] ** 2 / mse)
    assert figures["quality.psnr_estimated_db"] == pytest.approx(true, abs=0.5)


def test_a_calibration_that_is_off_by_a_tenth_does_not_spoil_the_figure():
    figures, mse = series(0.3, 0.0, assumed_gain=1.1 * GAIN)
    true = 10 * np.log10(figures["quality.peak"] ** 2 / mse)
    assert figures["quality.psnr_estimated_db"] == pytest.approx(true, abs=0.5)


def test_the_noise_of_the_raw_frames_is_measured_in_counts():
    figures, _ = series(0.2, 0.0)
    mean = GAIN * (15 + 8 * np.sin(np.arange(96) / 9).mean())
    assert figures["quality.noise_sd"] == pytest.approx(np.sqrt(GAIN * mean + OFFSET), rel=0.01)


def test_impulsive_noise_is_not_trusted():
    stabiliser = Stabiliser(NoiseModel(0.0, 1.0, impulsive=True))
    prepare, quality = Preparation(stabiliser), LiveQuality(stabiliser)
    figures = {}
    for i in range(4):
        pixels = np.full((20, 20), float(i % 2), np.float32)
        frame = Frame(run="r", index=i, time_ns=0, received_ns=0, pixels=pixels)
        ready = prepare.stabilise(frame, pixels, np.ones((20, 20), bool))
        zero = np.zeros_like(pixels)
        figures = quality.update(Estimate(ready, zero, zero, zero, zero, zero), zero, "toy")
    assert figures["quality.trusted"] == 0.0
