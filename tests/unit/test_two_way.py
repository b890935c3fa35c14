"""A recording is estimated forwards and backwards in time: what that may and may not do."""

from __future__ import annotations

import numpy as np
import pytest

import quietbeam
from quietbeam.offline import two_way
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.choose import build
from quietbeam.offline.denoise import array_series
from quietbeam.offline.judge import judge_frames
from quietbeam.offline.passes import blind_estimates, engine_for
from quietbeam.offline.quality import mse
from quietbeam.offline.two_way import both_ways, calm, can_go_both_ways
from quietbeam.testing.cahn_hilliard import NOISES
from quietbeam.testing.scenes import SCENES


@pytest.fixture(scope="module")
def truth():
    return SCENES["slow"](32, 40, 0).truth


@pytest.fixture(scope="module")
def recording(truth):
    noisy = NOISES["gaussian"].apply(truth, seed=1)
    with CalibratedSeries(array_series(noisy)) as series:
        yield series


@pytest.fixture(scope="module")
def module():
    return build("quiet")[1].eval()


@pytest.fixture(scope="module")
def answers(recording, module):
    return list(both_ways(module, recording))


def counts(recording, answers):
    return np.stack([recording.stabiliser.inverse(mean) for _, mean, _ in answers])


def test_every_frame_is_answered_once_and_in_order(recording, answers):
    assert [prepared.position for prepared, _, _ in answers] == [*range(len(recording))]


def test_the_future_makes_estimates_better_than_a_stream_has_them(
    recording, module, truth, answers
):
    streamed = list(blind_estimates(engine_for(module, recording), recording))
    assert mse(counts(recording, answers), truth) < 0.5 * mse(counts(recording, streamed), truth)


def test_the_variance_told_is_that_of_the_error(recording, truth, answers):
    told = np.mean([variance.mean() for _, _, variance in answers])
    errors = mse(counts(recording, answers), truth) / recording.noise.offset_variance
    assert told == pytest.approx(errors, abs=0.015)  # of the noise variance: as chance allows


def test_the_error_is_known_without_the_truth(recording, truth, answers):
    verdict = judge_frames(answers, recording.stabiliser)
    assert len(verdict.blind_mse) == len(recording) - 2
    errors = mse(counts(recording, answers), truth) / recording.noise.offset_variance
    assert verdict.blind_mse.mean() == pytest.approx(errors, abs=0.015)


def test_small_blocks_give_nearly_what_a_large_one_gives(recording, module, answers, monkeypatch):
    monkeypatch.setattr(two_way, "_BLOCK_BYTES", 1)
    assert two_way.block_frames(recording.shape) == 8
    small = [mean for _, mean, _ in both_ways(module, recording)]
    apart = [np.mean((a - b[1]) ** 2) for a, b in zip(small, answers, strict=True)]
    assert len(small) == len(recording)
    assert np.mean(apart) < 0.02  # of the noise variance: each block has weights of its own


def test_a_part_from_the_middle_knows_what_came_before_it(recording, module, answers):
    part = list(both_ways(module, recording, range(20, 30)))
    assert [prepared.position for prepared, _, _ in part] == [*range(20, 30)]
    apart = [np.mean((a[1] - b[1]) ** 2) for a, b in zip(part, answers[20:30], strict=True)]
    assert np.mean(apart) < 0.02


@pytest.mark.parametrize("index", [0, 20, 39])
def test_a_pixel_does_not_reach_its_own_estimate(truth, module, index):
    noisy = NOISES["gaussian"].apply(truth, seed=1)
    changed = noisy.copy()
    changed[index, 16, 16] += 0.4  # two standard deviations

    def estimates(video):
        with CalibratedSeries(array_series(video)) as series:
            series.noise, series.stabiliser = known.noise, known.stabiliser
            return np.stack([mean for _, mean, _ in both_ways(module, series)])

    known = CalibratedSeries(array_series(noisy))
    moved = np.abs(estimates(changed) - estimates(noisy))[:, 16, 16]
    assert moved[index] < 0.005  # through the weights of the whole block, and nothing else
    assert moved.max() > 0.02


def test_spikes_and_bad_pixels_are_replaced_and_bright_things_that_stay_are_not(truth):
    noisy = NOISES["gaussian"].apply(truth, seed=1)
    noisy[30, 5, 5] += 10
    noisy[31, 8, 8] = np.nan
    noisy[:, 20, 20] += 10
    with CalibratedSeries(array_series(noisy)) as series:
        before, spike, bad = series.prepared(30).z, calm(series, 30), calm(series, 31)
        around = np.median(before[4:7, 4:7])
        assert spike[5, 5] == pytest.approx(around)
        assert spike[20, 20] == before[20, 20]
        assert np.isfinite(bad).all()
        assert np.array_equal(calm(series, 10), series.prepared(10).z)


def test_a_recording_too_short_or_with_noise_that_lasts_is_streamed_only(truth, module):
    rng = np.random.default_rng(0)
    white = rng.standard_normal((60, 32, 32), np.float32)
    lasting = 100 + white + 0.8 * np.roll(white, 1, 0)
    for video, possible in (
        (truth[:10] + white[:10], False),
        (lasting, False),
        (100 + white, True),
    ):
        with CalibratedSeries(array_series(video)) as series:
            assert can_go_both_ways(module, series) is possible
    assert not can_go_both_ways(build("umvd")[1], CalibratedSeries(array_series(100 + white)))


def test_denoising_tells_that_time_ran_both_ways_and_is_as_good_as_it_says(truth):
    noisy = NOISES["gaussian"].apply(truth, seed=1)
    result = quietbeam.denoise(noisy, "quiet", steps=12, fallback=())
    assert result.report.two_way
    inside = np.abs(result.clean - truth) < result.sd
    assert 0.6 < inside.mean() < 0.8
    figures = result.report.figures
    true_db = 10 * np.log10(figures.peak**2 / mse(result.clean, truth))
    assert figures.psnr_clean_db == pytest.approx(true_db, abs=1.5)
