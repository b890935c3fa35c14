"""Offline denoising of recordings that nobody made for us; skipped where they are not.

The margins are about half of what was measured when the test was written.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, median_filter

import quietbeam
from quietbeam.offline.denoise import Report
from quietbeam.offline.quality import psnr, ssim
from quietbeam.offline.train import Recipe
from quietbeam.offline.write import denoise_file

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUIETBEAM_REALDATA", ROOT.parent / "shared" / "realdata"))

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (DATA / "MANIFEST.json").exists(),
        reason="no real recordings: set QUIETBEAM_REALDATA",
    ),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def load(name, dataset="frames", part=np.s_[:]):
    with h5py.File(DATA / name) as file:
        return file[dataset][part]


def brought_to(target, image):
    """Gain and offset of least squares, as the manifest asks for: each image has its own scale."""
    use = np.isfinite(image)
    return np.polyval(np.polyfit(image[use], target[use], 1), image)


def check_without_truth(report: Report, gain_db: float, ratio: float):
    figures = report.figures
    assert figures.trusted
    assert figures.psnr_clean_db > figures.psnr_raw_db + gain_db
    assert figures.psnr_error_db < 1.5
    assert figures.local_sd_ratio < ratio


def test_an_stxm_stack_is_cleaned_from_file_to_file(tmp_path):
    part = tmp_path / "stack.npy"
    np.save(part, load("stxm_ALS_FeL_71214078.h5", part=np.s_[:40, :64, :64]))
    (report,) = denoise_file(part, tmp_path / "clean.h5", "kalman")
    check_without_truth(report, 4, 0.95)
    with h5py.File(tmp_path / "clean.h5") as file:
        assert np.isfinite(file["/entry/clean/data"][:]).all()
        assert (file["/entry/clean/data_errors"][:] > 0).all()


def test_a_pollux_nexus_file_is_read_as_it_is(tmp_path):
    source = DATA / "nxstxm_PolLux" / "Sample_Stack_2021-03-16_128.hdf5"
    (report,) = denoise_file(source, tmp_path / "clean.h5", "quiet", Recipe(steps=2))
    assert report.used in {"kalman", "median", "svd"}  # four energies are fewer than the window
    assert "fewer than the 7" in report.reason


@pytest.mark.slow
def test_stxm_beats_the_classical_filter():
    video = load("stxm_ALS_FeL_71214078.h5", part=np.s_[:64, :112, :112])
    report = quietbeam.denoise(video, steps=150).report
    assert report.used == "quiet"
    assert report.advantage > 2 * report.advantage_error
    check_without_truth(report, 4, 0.95)
    # Scan lines: noise is correlated along them, and the figures show it.
    assert report.figures.residual_x > 0.2


@pytest.mark.slow
def test_bright_field_particles_beat_the_classical_filter():
    video = load("optical_brightfield_particles.h5", part=np.s_[:, 100:228, 100:228])
    report = quietbeam.denoise(video, steps=600).report
    assert report.used == "quiet"
    assert report.advantage > 2 * report.advantage_error
    check_without_truth(report, 8, 0.5)
    assert abs(report.figures.residual_x) < 0.05
    assert abs(report.figures.residual_t) < 0.1


@pytest.mark.slow
def test_sparse_photons_are_cleaned():
    video = load("xray_4thr_photon_counting_left.h5", part=np.s_[:, 100:228, :128])
    report = quietbeam.denoise(video, steps=60).report
    assert report.gain == pytest.approx(1, abs=0.2)  # it counts photons
    check_without_truth(report, 5, 0.8)


@pytest.mark.slow
def test_neutron_images_come_nearer_to_the_long_exposure():
    """5, 10 and 20 s against the 120 s image; gamma spots are marked as bad first."""
    conditions = [
        c.decode() for c in load("neutron_stepwedge_exposure_ladder_left.h5", "condition")
    ]
    exposures = load("neutron_stepwedge_exposure_ladder_left.h5", "exposure_s")
    frames = load("neutron_stepwedge_exposure_ladder_left.h5", part=np.s_[:, 200:456, 150:406])
    images = [i for i, c in enumerate(conditions) if c == "h2o"]
    truth = frames[images[-1]].astype(float)
    assert [int(exposures[i]) for i in images] == [5, 10, 20, 60, 120]
    noisy = np.stack([_without_spots(frames[i].astype(float)) for i in images[:3]])
    result = quietbeam.denoise(noisy, "n2v", steps=60, images=True)
    assert result.report.used == "n2v"
    use = np.isfinite(_without_spots(truth))
    gains = [
        _robust_psnr(clean, truth, use) - _robust_psnr(raw, truth, use)
        for raw, clean in zip(noisy, result.clean, strict=True)
    ]
    assert gains[0] > 2.5
    assert gains[1] > 1.5
    assert gains[2] > 0.5


def _without_spots(image):
    difference = np.abs(image - median_filter(image, 5))
    spots = binary_dilation(difference > 5 * np.median(difference) / 0.6745)
    return np.where(spots, np.nan, image)


def _robust_psnr(image, truth, use):
    """PSNR without the worst percent: spots that were missed."""
    use = use & np.isfinite(image)
    error = np.abs(brought_to(truth[use], image[use]) - truth[use])
    kept = error[error < np.quantile(error, 0.99)]
    peak = np.ptp(np.percentile(truth[use], (0.5, 99.5)))
    return 10 * np.log10(peak**2 / np.mean(kept**2))


def assert_nearer(noisy, clean, truth, *, psnr_db, similarity):
    """Every cleaned image is nearer to its target than the noisy one, by so much at least."""
    for raw, cleaned, target in zip(noisy, clean, truth, strict=True):
        before, after = brought_to(target, raw.astype(float)), brought_to(target, cleaned)
        peak = np.ptp(target)
        assert psnr(after, target, peak) > psnr(before, target, peak) + psnr_db
        assert ssim(after, target, peak) > ssim(before, target, peak) + similarity


@pytest.mark.slow
def test_widefield_pairs_come_nearer_to_the_mean_of_400():
    part = np.s_[::5, 128:384, 128:384]
    name = "pairs_W2S_widefield_avg1_vs_avg400.h5"
    noisy, truth = load(name, part=part), load(name, "target", part).astype(float)
    result = quietbeam.denoise(noisy, "n2v", steps=60, images=True)
    assert result.report.used == "n2v"
    assert_nearer(noisy, result.clean, truth, psnr_db=5, similarity=0.3)


@pytest.mark.slow
def test_confocal_pairs_come_nearer_to_the_mean_of_50():
    name = "pairs_FMD_raw_vs_gt.h5"
    ids = [i.decode() for i in load(name, "ids")]
    chosen = [ids.index("Confocal_FISH_1.png"), ids.index("Confocal_FISH_2.png")]
    part = np.s_[chosen, 128:384, 128:384]
    noisy, truth = load(name, part=part), load(name, "target", part).astype(float)
    result = quietbeam.denoise(noisy, "n2v", steps=100, images=True)
    assert result.report.used == "n2v"
    assert_nearer(noisy, result.clean, truth, psnr_db=3, similarity=0.15)
