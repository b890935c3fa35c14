"""The live figure agrees with the truth that it cannot see, and knows how well."""

import numpy as np
import pytest

from quietbeam import Frame
from quietbeam.model.clean import Estimate, Preparation, Prepared
from quietbeam.model.fuse import fuse
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.pipeline.quality import SPECS, LiveQuality

GAIN, OFFSET = 2.0, 9.0
SHAPE = (80, 80)


class Run:
    """Estimates with a known error, fed to the figure; keeps both, frame by frame."""

    def __init__(self, noise, seed=0):
        self.stabiliser = Stabiliser(noise)
        self.prepare = Preparation(self.stabiliser)
        self.quality = LiveQuality(self.stabiliser)
        self.rng = np.random.default_rng(seed)
        self.figures, self.true_db = [], []

    def push(self, counts, truth, exact, blind_error, variance=0.0, live=("toy", 1)):
        """Everything (h, w); ``exact`` the truth in stabilised units, errors in these as well."""
        counts = counts.astype(np.float32)
        index = len(self.figures)
        frame = Frame(run="r", index=index, time_ns=0, received_ns=0, pixels=counts)
        ready = self.prepare.stabilise(frame, counts, np.ones(counts.shape, bool))
        blind = (exact + self.rng.normal(0, blind_error, counts.shape)).astype(np.float32)
        spread = np.full(counts.shape, variance, np.float32)
        z, posterior, weight = fuse(blind, spread, ready.z)
        clean = self.stabiliser.inverse(z)
        estimate = Estimate(ready, blind, spread, z, posterior, weight)
        figures = self.quality.update(estimate, clean, *live)
        self.figures.append(figures)
        error = np.mean((clean - truth) ** 2)
        self.true_db.append(10 * np.log10(max(figures["quality.peak"], 1e-9) ** 2 / (error + 1e-9)))

    def off_by_db(self, index=-1):
        """The estimated less the true PSNR, of one frame."""
        return self.figures[index]["quality.psnr_estimated_db"] - self.true_db[index]

    def error_db(self, index=-1):
        return self.figures[index]["quality.psnr_error_db"]


def photons(blind_error, variance, frames=120, assumed_gain=GAIN):
    """A scene that stands still, in Poisson and read-out noise."""
    run = Run(NoiseModel(assumed_gain, OFFSET))
    rng = np.random.default_rng(0)
    bright = 15 + 8 * np.sin(np.arange(SHAPE[1]) / 9) * np.ones(SHAPE)
    exact = run.stabiliser.forward((GAIN * (bright - 0.25)).astype(np.float32))
    for _ in range(frames):
        counts = GAIN * rng.poisson(bright) + rng.normal(0, np.sqrt(OFFSET), SHAPE)
        run.push(counts, GAIN * bright, exact, blind_error, variance)
    return run


def gaussian(scene, blind_error, noise=None, seed=0, live=lambda _: ("toy", 1)):
    """Unit noise over a (t, h, w) scene; ``blind_error`` of frame i by call."""
    run = Run(NoiseModel(0.0, 1.0), seed)
    if noise is None:
        noise = np.random.default_rng(seed + 1).standard_normal(scene.shape)
    for i, (truth, one) in enumerate(zip(scene, noise, strict=True)):
        run.push(truth + one, truth, truth, blind_error(i), live=live(i))
    return run


def still(frames):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return np.broadcast_to(4 * np.sin(x / 9) * np.sin(y / 7), (frames, *SHAPE))


@pytest.mark.parametrize(("error", "variance"), [(0.2, 0.0), (0.3, 0.09), (0.5, 0.25), (0.15, 0.5)])
def test_the_estimated_psnr_is_within_a_third_of_a_decibel_of_the_true_one(error, variance):
    run = photons(error, variance)
    assert run.off_by_db() == pytest.approx(0, abs=0.3)


def test_a_calibration_that_is_off_by_a_tenth_does_not_spoil_the_figure():
    assert photons(0.3, 0.0, assumed_gain=1.1 * GAIN).off_by_db() == pytest.approx(0, abs=0.3)


def test_the_noise_of_the_raw_frames_is_measured_in_counts():
    figures = photons(0.2, 0.0, frames=40).figures[-1]
    mean = GAIN * (15 + 8 * np.sin(np.arange(SHAPE[1]) / 9).mean())
    assert figures["quality.noise_sd"] == pytest.approx(np.sqrt(GAIN * mean + OFFSET), rel=0.01)


def test_every_figure_is_described_and_given():
    assert photons(0.2, 0.0, frames=12).figures[-1].keys() == SPECS.keys()


def test_impulsive_noise_is_not_trusted():
    run = Run(NoiseModel(0.0, 1.0, impulsive=True))
    for i in range(4):
        flat = np.zeros((20, 20), np.float32)
        run.push(flat + i % 2, flat, flat, 0.0)
    assert run.figures[-1]["quality.trusted"] == 0.0
    assert "outliers" in run.quality.message


@pytest.mark.slow
def test_the_standard_error_is_what_it_says():
    scene = still(24)
    runs = [gaussian(scene, lambda _: 0.3, seed=seed) for seed in range(0, 24, 2)]
    scatter = np.std([run.off_by_db() for run in runs])
    said = np.mean([run.error_db() for run in runs])
    assert 0.5 * scatter < said < 2 * scatter


def test_the_error_shrinks_to_its_target_and_frames_are_forgotten_then():
    run = gaussian(still(160), lambda _: 0.35)
    assert run.error_db(8) > 1.5 * run.error_db(-1)
    assert run.error_db(-1) == pytest.approx(0.14, abs=0.03)


def test_after_a_slow_dip_the_figure_comes_back():
    dip = gaussian(still(200), lambda i: 0.3 + 0.5 * np.exp(-(((i - 80) / 15) ** 2)))
    assert abs(dip.off_by_db(-1)) < 1


def test_a_better_version_of_the_network_shows_within_a_few_frames():
    run = gaussian(
        still(110), lambda i: 0.5 if i < 80 else 0.42, live=lambda i: ("toy", 1 + i // 80)
    )
    assert abs(run.off_by_db(79)) < 0.3
    assert all(abs(run.off_by_db(i)) < 3 * run.error_db(i) + 0.1 for i in range(80, 110))
    assert abs(run.off_by_db(100)) < 0.6


def test_another_denoiser_starts_the_figure_anew():
    run = gaussian(still(90), lambda i: 0.3 if i < 60 else 0.6, live=lambda i: ("ab"[i // 60], 0))
    assert abs(run.off_by_db(62)) < 1
    assert abs(run.off_by_db(-1)) < 0.3


def test_a_sudden_loss_of_quality_shows_at_once():
    run = gaussian(still(100), lambda i: 0.2 if i < 90 else 0.8)
    assert abs(run.off_by_db(92)) < 1


def test_what_moves_is_not_taken_for_noise():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places = [20 + np.abs((1.7 * t + 9 * np.arange(8)[:, None]) % 112 - 56) for t in range(160)]
    scene = np.stack(
        [
            sum(
                10 / (1 + np.exp((np.hypot(y - 10 - 11 * k, x - at[0]) - 4) / 0.7))
                for k, at in enumerate(place)
            )
            for place in places
        ]
    )
    second = np.mean(np.diff(scene, n=2, axis=0) ** 2) / 6
    assert second > 0.04  # as much as the error of the estimate: it would be taken for perfect
    run = gaussian(scene, lambda _: 0.2)
    assert abs(run.off_by_db()) < 3 * run.error_db()
    assert run.error_db() < 0.8
    assert run.figures[-1]["quality.noise_sd"] == pytest.approx(1, abs=0.004)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_predicted_error_that_is_wrong_throughout_is_noticed(factor):
    rng = np.random.default_rng(3)
    truth = still(120)
    stabiliser = Stabiliser(NoiseModel(0.0, 1.0))
    quality = LiveQuality(stabiliser)
    error = 0.3
    for i, scene in enumerate(truth):
        pixels = np.asarray(scene + rng.standard_normal(scene.shape), np.float32)
        blind = np.asarray(scene + error * rng.standard_normal(scene.shape), np.float32)
        frame = Frame(run="r", index=i, time_ns=0, received_ns=0, pixels=pixels)
        everywhere = np.ones(scene.shape, np.bool_)
        prepared = Prepared(i, frame, pixels, everywhere, pixels)
        zero = np.zeros_like(pixels)
        sd = np.full_like(pixels, factor * error)
        quality.update(Estimate(prepared, blind, zero, blind, zero, zero), blind, "toy", sd=sd)
    assert quality.overstated == pytest.approx(factor, rel=0.12)
