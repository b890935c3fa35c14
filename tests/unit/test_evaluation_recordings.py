from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from quietbeam import ConfigError, DataError
from quietbeam.cli import main
from quietbeam.offline.evaluation.recorded import evaluate_recordings, fitted
from quietbeam.offline.evaluation.recordings import open_all, open_repeats


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def scene():
    y, x = np.indices((40, 44))
    return (100 + 30 * np.sin(0.3 * x) * np.cos(0.2 * y)).astype(np.float32)


@pytest.fixture
def repeats(tmp_path, scene, rng):
    path = tmp_path / "repeats.h5"
    with h5py.File(path, "w") as file:
        file["frames"] = scene + 5 * rng.standard_normal((16, *scene.shape)).astype(np.float32)
        file["other"] = np.zeros((3, 40, 44), np.float32)
    return path


@pytest.fixture
def pairs(tmp_path, scene, rng):
    path = tmp_path / "pairs.h5"
    targets = np.stack([scene, scene[::-1], scene.T[:40, :40].repeat(2, 1)[:, :44]])
    with h5py.File(path, "w") as file:
        file["frames"] = 3 * targets + 20 + 15 * rng.standard_normal(targets.shape)
        file["target"] = targets
    return path


def test_repeats_without_a_target_are_split_so_that_the_target_shares_no_noise(repeats, scene):
    one = open_repeats(f"{repeats}:/frames")
    with h5py.File(repeats) as file:
        frames = file["frames"][:]
    assert one.name == "repeats.h5:/frames"
    assert np.array_equal(one.noisy, frames[::2])
    assert np.allclose(one.target[3], frames[1::2].mean(0), atol=1e-4)
    assert one.target_variance == pytest.approx(25 / 8, rel=0.05)
    assert not one.images
    assert one.notes == ()


def test_a_scene_that_moves_is_noticed(tmp_path, scene, rng):
    path = tmp_path / "moving.npy"
    moving = np.stack([np.roll(scene, i, 1) for i in range(12)])
    np.save(path, moving + rng.standard_normal(moving.shape))
    (note,) = open_repeats(str(path)).notes
    assert "not a static scene" in note


def test_slices_choose_frames_rows_and_columns_of_frames_and_target(repeats):
    with h5py.File(repeats) as file:
        frames = file["frames"][:]
    one = open_repeats(f"{repeats}:/frames[0:3, 4:36, :20]@/frames[15]")
    assert np.array_equal(one.noisy, frames[:3, 4:36, :20])
    assert np.array_equal(one.target[2], frames[15, 4:36, :20])
    mean = open_repeats(f"{repeats}:/frames[0:3]@/frames[8:]")
    assert np.allclose(mean.target[0], frames[8:].mean(0), atol=1e-4)
    last = open_repeats(f"{repeats}:/frames[:2]@/frames[-1]")
    assert np.array_equal(last.target[0], frames[-1])


def test_a_target_for_each_frame_means_unrelated_images(pairs):
    one = open_repeats(str(pairs) + ":/frames[1:]")
    assert one.images
    with h5py.File(pairs) as file:
        assert np.allclose(one.target, file["target"][1:])
    alone = open_repeats(str(pairs) + ":/frames[0]")
    assert not alone.images


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("[a:b]", ConfigError),
        ("[1,2,3,4]", ConfigError),
        ("[20:]", DataError),
        ("[0:3]", DataError),
    ],
)
def test_what_cannot_be_compared_is_refused(repeats, part, error):
    with pytest.raises(error, match="repeats"):
        open_repeats(f"{repeats}:/frames{part}")


def test_a_folder_gives_all_that_can_be_compared_and_says_what_cannot(repeats, pairs, tmp_path):
    np.save(tmp_path / "single.npy", np.zeros((2, 20, 20)))
    with h5py.File(repeats, "a") as file:
        del file["other"]
    found, notes = open_all([str(tmp_path)])
    assert [one.name for one in found] == ["pairs.h5", "repeats.h5"]
    assert len(notes) == 1
    assert "single.npy" in notes[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recording"):
        open_all([str(tmp_path / "empty")])


def test_spots_are_bad_pixels_and_are_not_compared(tmp_path, scene, rng):
    video = scene + rng.standard_normal((8, *scene.shape)).astype(np.float32)
    video[2, 10, 12] = 5000
    video[1, 30, 7] = 8000
    path = tmp_path / "spots.npy"
    np.save(path, video)
    one = open_repeats(str(path), spots=True)
    assert np.isnan(one.noisy[1, 10, 12])
    assert np.isnan(one.target[0, 30, 7])
    assert np.isfinite(one.noisy).mean() > 0.95


def test_gain_and_offset_are_fitted(scene, rng):
    assert np.allclose(fitted(3 * scene - 7, scene), scene, atol=1e-3)
    holed = (3 * scene - 7).copy()
    holed[3, 3] = np.nan
    assert np.nanmax(np.abs(fitted(holed, scene) - scene)) < 1e-3
    assert np.allclose(fitted(np.ones_like(scene), scene), scene.mean())


@pytest.mark.slow
def test_the_psnr_of_repeats_is_that_against_the_truth_nobody_knows(repeats, scene):
    one = open_repeats(f"{repeats}:/frames")
    result = evaluate_recordings([one], {"kalman": 0}, peers=False, processes=1)
    scores = {score.method: score for score in result.scores}
    span = np.ptp(np.percentile(one.target, (0.1, 99.9)))
    # The fit of a gain takes the share of the noise off that the signal does not explain.
    signal = float(scene.var())
    residual = 25 * signal / (signal + 25)
    assert scores["raw"].psnr == pytest.approx(10 * np.log10(span**2 / residual), abs=0.2)
    assert scores["raw"].gain_db == 0
    assert scores["kalman"].gain_db > 2
    assert scores["best filter"].psnr >= scores["best causal filter"].psnr
    assert scores["best filter"].detail
    assert scores["kalman"].local_sd_ratio < 0.9


@pytest.mark.slow
def test_recordings_are_scored_by_the_command(pairs, tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["evaluate", "--recordings", str(pairs), "--methods", "kalman", "--no-peers", "--json"]
    assert main([*words, "--output", str(folder)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {score["method"] for score in printed["scores"]} == {
        "raw", "tuned spatial", "best filter",
    }  # fmt: skip
    assert any("kalman" in note and "video" in note for note in printed["notes"])
    text = (folder / "evaluation.md").read_text()
    assert "best filter" in text
    assert json.loads((folder / "evaluation.json").read_text()) == printed
    assert len(list(folder.glob("*.png"))) == 1
