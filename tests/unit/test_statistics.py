"""Statistics: means with their uncertainty, variability, drift, focus, beam, noise."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from helpers.analysed import collected, observation
from quietbeam import AnalysisPlugin, ConfigError, RunStart
from quietbeam.offline.quality import local_sd
from quietbeam.registry import find

Statistics = find("analyses", "statistics", AnalysisPlugin)
SHAPE = (96, 112)


def scene(shape=SHAPE):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return 200 + 40 * np.sin(x / 5) + 30 * np.cos(y / 7) + 20 * np.sin((x + y) / 11)


def measured(frames, **settings):
    run = RunStart(run="r", shape=frames[0].clean.shape, dtype=np.dtype("u2"))
    with Statistics(**settings).open(run) as measure:
        rows = [measure(frame) for frame in frames]
    declared = Statistics(**settings).metrics() | Statistics(**settings).maps()
    assert all(name in declared for row in rows for name in row)
    return collected(rows)


def smooth_errors(sigma, count, rng, correlated_in_time=0.0):
    """Errors of unit s.d., smooth in space: what a denoiser leaves."""
    before = None
    for _ in range(count):
        fresh = gaussian_filter(rng.standard_normal(SHAPE), sigma, mode="wrap")
        fresh /= fresh.std()
        kept = correlated_in_time
        before = fresh if before is None else kept * before + np.sqrt(1 - kept**2) * fresh
        yield before


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_the_error_of_a_mean_knows_that_clean_pixels_are_correlated(sigma):
    rng = np.random.default_rng(0)
    frames = [
        observation(scene() + 3 * e, 3, index=i)
        for i, e in enumerate(smooth_errors(sigma, 120, rng))
    ]
    region = (20, 30, 60, 90)
    found = measured(frames, regions={"spot": region})
    truth = scene()[20:60, 30:90].mean()
    error = np.array(found["spot_mean"][40:]) - truth
    told = np.median(found["spot_mean_sd"][40:])
    assert told == pytest.approx(error.std(), rel=0.35)
    assert np.mean(np.abs(error) < 2 * told) > 0.88
    assert np.nanmedian(found["error_area"]) == pytest.approx(
        max(1, 4 * np.pi * sigma**2), rel=0.25
    )


def test_before_the_correlation_was_measured_all_pixels_count_as_one():
    found = measured([observation(scene(), 3)], regions={"spot": (0, 0, 20, 20)})
    assert found["spot_mean_sd"] == [3.0]
    assert found["spot_sum_sd"] == [1200.0]


def test_temporal_correlation_of_errors_is_seen():
    rng = np.random.default_rng(1)
    frames = [
        observation(scene() + 3 * e, 3)
        for e in smooth_errors(1.0, 100, rng, correlated_in_time=0.7)
    ]
    rho = measured(frames)["error_temporal"][-1]
    np.testing.assert_allclose(rho, [0.7, 0.49, 0.24, 0.06], atol=0.12)


def test_variability_is_that_of_the_definition_raw_and_clean():
    rng = np.random.default_rng(2)
    raw = scene() + 10 * rng.standard_normal((3, *SHAPE))
    clean = scene() + 2 * rng.standard_normal((3, *SHAPE))
    frames = [observation(c, 2, measured=r) for c, r in zip(clean, raw, strict=True)]
    found = measured(frames, every=3, variability_map=True)
    expected = local_sd(raw)[1][1:-1, 1:-1]
    assert found["variability_raw"][0] == pytest.approx(expected.mean(), rel=1e-4)
    [image] = found["variability"]
    np.testing.assert_allclose(image[1:-1, 1:-1], local_sd(clean)[1][1:-1, 1:-1], rtol=2e-3)
    assert np.isnan(image[0]).all()
    assert found["variability_reduction"][0] == pytest.approx(
        1 - found["variability_clean"][0] / found["variability_raw"][0]
    )


def test_drift_is_told_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(3)
    moves = [(0.0, 0.0)] * 8 + [(0.4 * i, -0.25 * i) for i in range(1, 9)]
    texture = scene() + 60 * gaussian_filter(rng.standard_normal(SHAPE), 1.5)
    frames = [
        observation(shift(texture, m, mode="nearest", order=3) + rng.normal(0, 1, SHAPE), 1)
        for m in moves
    ]
    found = measured(frames, every=3)
    told = np.array([found["drift_y"], found["drift_x"]]).T
    true = np.array([moves[i] for i in (9, 12, 15)])
    np.testing.assert_allclose(told, true, atol=0.1)
    assert all(0 < sd < 0.1 for sd in found["drift_sd"])


def test_defocus_lowers_the_focus():
    frames = [observation(gaussian_filter(scene(), 0.2 * i), 1) for i in range(24)]
    focus = measured(frames, every=4)["focus"]
    assert all(np.diff(focus) < 0)


def test_the_beam_is_followed_with_its_error():
    rng = np.random.default_rng(4)
    level = np.r_[np.ones(16), np.linspace(1, 0.8, 20)]
    frames = [observation(scene() * f + rng.normal(0, 5, SHAPE), 5) for f in level]
    found = measured(frames, beam=(0, 0, 30, 30))
    error = (np.array(found["beam"]) - level)[12:]
    assert np.abs(error).max() < 5 * max(found["beam_sd"][12:])


def test_photon_transfer_gives_gain_and_offset_back():
    rng = np.random.default_rng(5)
    mean = np.tile(np.linspace(20, 800, SHAPE[1]), (SHAPE[0], 1))
    frames = [
        observation(mean, 1, measured=2 * rng.poisson(mean / 2) + rng.normal(0, 6, SHAPE))
        for _ in range(60)
    ]
    found = measured(frames, every=4)
    assert found["noise_gain"][-1] == pytest.approx(2, rel=0.1)
    assert found["noise_offset"][-1] == pytest.approx(36, rel=0.6)
    assert found["noise_area"][-1] == pytest.approx(1, abs=0.3)


def test_bad_pixels_are_left_out_everywhere_and_nothing_comes_from_nothing():
    dark = np.full(SHAPE, np.nan)
    found = measured([observation(dark, 1) for _ in range(24)], every=3)
    assert np.isnan(found["frame_mean"]).all()
    assert np.isnan(found["frame_mean_sd"]).all()
    assert "variability_raw" not in found
    holes = scene()
    holes[::7, ::5] = np.nan
    found = measured([observation(holes, 1) for _ in range(24)], every=3)
    assert found["frame_mean"][0] == pytest.approx(np.nanmean(holes))
    assert np.isfinite(found["variability_raw"]).all()


def test_a_region_outside_the_frame_is_refused():
    with pytest.raises(ConfigError, match=r"region x = \[0, 0, 200, 5\] is not inside 96 x 112"):
        measured([observation(scene(), 1)], regions={"x": (0, 0, 200, 5)})
