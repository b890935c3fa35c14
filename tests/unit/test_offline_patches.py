from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietbeam.core.errors import DataError
from quietbeam.offline.calibrated import CalibratedSeries, spatial_noise
from quietbeam.offline.denoise import array_series
from quietbeam.offline.patches import (
    TrainingSet,
    clip_indices,
    guard_tiles,
    is_guard,
)

LEARN = False


def series(shape=(40, 48, 56), seed=0, sigma=2.0):
    rng = np.random.default_rng(seed)
    frames = np.arange(shape[0])[:, None, None] * np.ones(shape)
    return frames + sigma * rng.standard_normal(shape)


def calibrated(array, **options):
    return CalibratedSeries(array_series(array), **options)


@given(
    st.integers(2, 60).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1))),
    st.integers(0, 40),
    st.integers(0, 4),
)
def test_a_clip_shows_its_target_once_and_only_real_frames(place, past, lag):
    frames, target = place
    indices = clip_indices(target, frames, past, lag)
    assert len(indices) == past + 1 + lag
    assert indices.min() >= 0
    assert indices.max() < frames
    assert list(np.flatnonzero(indices == target)) == [past]


def test_a_clip_from_the_middle_is_just_the_frames_in_order():
    assert list(clip_indices(20, 40, 5, 3)) == list(range(15, 24))


@pytest.mark.parametrize("frames", [4, 5, 9, 19, 48, 1000])
def test_every_recording_has_guards_and_mostly_others(frames):
    guards = [i for i in range(frames) if is_guard(i, frames)]
    assert 1 <= len(guards) <= frames / 2.9
    assert 0 not in guards


def test_guard_tiles_are_one_in_sixteen():
    assert guard_tiles((256, 256)).mean() == pytest.approx(1 / 16, abs=0.01)
    assert guard_tiles((64, 64)).any()


def test_guards_are_looked_at_but_never_learned_from():
    data = TrainingSet(calibrated(series()), 1 << 30)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        places = data.places(8, 32, rng, guards=LEARN)
        assert not any(is_guard(place.target, 40) for place in places)
        seen |= {place.target for place in places}
        _, valid = data.batch(8, 32, 6, 3, rng, guards=LEARN)
        assert valid[:, 6].all()  # the targets
        assert not valid.all()  # some neighbours are guards
    assert seen == {i for i in range(40) if not is_guard(i, 40)}


def test_patches_hold_the_stabilised_frames_they_say():
    recording = calibrated(series())
    data = TrainingSet(recording, 1 << 30)
    places = data.places(5, 32, np.random.default_rng(1), guards=True)
    clips, valid = data.clips(places, 32, 2, 1)
    assert valid.all()
    for place, clip in zip(places, clips, strict=True):
        for k, i in enumerate(clip_indices(place.target, 40, 2, 1)):
            part = recording.prepared(int(i)).z
            part = part[place.top : place.top + 32, place.left : place.left + 32]
            assert np.array_equal(clip[k], part)


def test_a_recording_larger_than_its_memory_is_spread_over_blocks():
    recording = calibrated(series((300, 64, 64)))
    limit = 300 * 64 * 64 * 5 // 3
    data = TrainingSet(recording, limit)
    held = [(block.first, block.z.nbytes * 1.25) for block in data._blocks]
    assert sum(size for _, size in held) <= limit
    assert held[0][0] == 0
    assert held[-1][0] + len(data._blocks[-1].z) == 300
    places = data.places(50, 32, np.random.default_rng(0), guards=True)
    clips, _ = data.clips(places, 32, 3, 3)
    means = recording.stabiliser.inverse(clips[:, 3]).mean((1, 2))
    blocks = [data._blocks[place.block].first + place.target for place in places]
    assert np.abs(means - blocks).max() < 1  # brightness of a frame is its number


def test_unrelated_images_have_guard_tiles():
    data = TrainingSet(calibrated(series((6, 64, 64)), images=True), 1 << 30)
    rng = np.random.default_rng(0)
    _, learn = data.batch(8, 64, 0, 0, rng, guards=LEARN)
    _, judged = data.batch(8, 64, 0, 0, rng, guards=True)
    assert learn.mean() == pytest.approx(1 - guard_tiles((64, 64)).mean(), abs=1e-6)
    assert judged[0, 0].sum() == guard_tiles((64, 64)).sum()


@pytest.mark.parametrize("gain", [0.0, 3.0])
def test_noise_of_single_images_is_found_in_space(gain):
    rng = np.random.default_rng(0)
    y, x = np.indices((256, 256))
    truth = 200 + 100 * np.sin(x / 20) * np.cos(y / 30)
    noisy = truth + np.sqrt(gain * truth + 25) * rng.standard_normal(truth.shape)
    model = spatial_noise([noisy.astype(np.float32)], [np.ones(truth.shape, np.bool_)])
    level = np.array([120.0, 200.0, 280.0])
    assert model.variance(level) == pytest.approx(gain * level + 25, rel=0.1)


def test_small_images_and_wrong_masks_are_refused():
    with pytest.raises(DataError, match="at least 16 x 16"):
        calibrated(series((5, 8, 30)))
    with pytest.raises(DataError, match="mask of shape"):
        calibrated(series(), mask=np.zeros((3, 3), np.bool_))
    with pytest.raises(DataError, match="not one valid pixel"):
        calibrated(np.full((5, 20, 20), np.nan))
