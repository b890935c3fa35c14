"""What is trained on: contiguous, stabilised, and never a guard frame or a guard tile."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.trainer_toys import ToyNet
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.trainer.history import History, guard_tiles, is_guard, tile_mask
from quietbeam.trainer.sampler import Sampler, target_position

COUNTS = (Stabiliser(NoiseModel(0.0, 1.0)),)  # z = counts


def history(shape=(64, 64), window=3, target=1, mib=8, **options):
    memory = History(
        shape, window=window, target=target, clip_px=128, budget_bytes=mib << 20, **options
    )
    memory.start(np.uint16)
    return memory


def feed(memory, indices, run="r", valid=None):
    """Every pixel of frame i has the value i."""
    for index in indices:
        valid_now = np.ones(memory.shape, bool) if valid is None else valid
        memory.append(run, index, np.full(memory.shape, index, np.uint16), valid_now)


def sampler(memory, runs=("r",), batch=64, patch_px=16):
    return Sampler(memory, dict.fromkeys(runs, COUNTS), batch=batch, patch_px=patch_px)


def draw(memory, **options):
    batch = sampler(memory, **options).draw()
    assert batch is not None
    return batch


def test_windows_are_consecutive_and_hold_no_guard_frame():
    memory = history()
    feed(memory, range(200))
    values, _ = draw(memory)
    assert np.array_equal(np.diff(values, axis=1), np.ones_like(values[:, 1:]))
    assert not any(is_guard(int(index)) for index in np.unique(values))


def test_a_window_longer_than_15_may_look_at_guard_frames_but_never_aims_at_one():
    memory = history(window=39, target=35)
    feed(memory, range(300))
    values, valid = draw(memory)
    index = values[:, :, 0, 0].astype(int)
    guard = index % 16 == 15
    assert guard.any()
    assert not valid[guard].any()
    assert valid[~guard].all()
    assert not guard[:, 35].any()


def test_no_window_spans_a_gap():
    memory = history()
    feed(memory, [*range(5), *range(7, 12), *range(20, 29)])
    values, _ = draw(memory)
    assert np.array_equal(np.diff(values, axis=1), np.ones_like(values[:, 1:]))


def test_no_window_spans_two_runs_whose_numbers_happen_to_fit():
    memory = history()
    feed(memory, range(2), run="a")
    feed(memory, range(2, 4), run="b")
    assert sampler(memory, runs=("a", "b")).draw() is None


def test_nothing_is_drawn_from_a_run_without_calibration():
    memory = history()
    feed(memory, range(50), run="uncalibrated")
    assert sampler(memory).draw() is None
    feed(memory, range(100, 110))
    assert draw(memory)[0].min() >= 100


def test_nothing_can_be_drawn_from_nothing():
    assert sampler(history()).draw() is None


def test_guard_tiles_are_about_six_percent_and_always_the_same():
    tiles = guard_tiles((512, 512))
    assert 0.05 < len(tiles) / 256 < 0.07
    assert tiles == guard_tiles((512, 512))
    assert len(set(tiles)) == len(tiles)
    assert guard_tiles((64, 64)) == []


def test_guard_tiles_are_never_learned_from():
    memory = history(shape=(256, 256), mib=32)
    rows, columns = np.mgrid[:256, :256]
    place = (rows * 256 + columns).astype(np.uint16)
    for index in range(60):
        memory.append("r", index, place, np.ones((256, 256), bool))
    values, valid = draw(memory, batch=128, patch_px=64)
    learned = np.unique(values[valid].astype(int))
    guard = tile_mask((256, 256), 4)
    assert guard.any()
    assert not guard.reshape(-1)[learned].any()
    assert len(learned) > 0.7 * (~guard).sum()


def test_dead_pixels_are_never_learned_from():
    memory = history()
    valid = np.ones((64, 64), bool)
    valid[10:20, 30:50] = False
    for index in range(50):
        pixels = np.where(valid, 7, 1000).astype(np.uint16)
        memory.append("r", index, pixels, valid)
    values, mask = draw(memory)
    assert (values[mask] == 7).all()
    assert (values[~mask] == 1000).all()
    assert not mask.all()


def test_a_mask_that_changes_is_kept_frame_by_frame():
    memory = history()
    for index in range(14):
        valid = np.ones((64, 64), bool)
        valid[:, :32] = index % 2 == 0
        memory.append("r", index, np.where(valid, 1, 0).astype(np.uint16), valid)
    values, mask = draw(memory)
    assert np.array_equal(mask, values == 1)
    assert not mask.all()


def test_half_of_a_batch_is_old_once_there_is_something_old():
    memory = history(mib=2)  # 64 recent frames
    feed(memory, range(1000))
    values, _ = draw(memory, batch=200)
    recent = (values[:, 0, 0, 0] >= 1000 - 160).mean()
    assert 0.5 <= recent < 0.75


def test_the_reservoir_is_uniform_over_the_whole_run():
    first = []
    for seed in range(20):
        memory = history(shape=(16, 16), mib=1, seed=seed)
        memory.reservoir.resize(10)
        feed(memory, range(1600))
        assert len(memory.reservoir) == 10
        first += [clip.first for clip in memory.reservoir.clips]
    counts, _ = np.histogram(first, bins=4, range=(0, 1600))
    assert (np.abs(counts - 50) < 30).all()


@pytest.mark.parametrize("shape", [(20, 500), (17, 17), (130, 33)])
def test_images_smaller_than_a_patch_are_taken_whole(shape):
    memory = history(shape=shape)
    feed(memory, range(40))
    values, valid = draw(memory, batch=4, patch_px=64)
    assert values.shape == valid.shape == (4, 3, min(64, shape[0]), min(64, shape[1]))


def test_a_large_detector_is_remembered_in_part_within_the_bound():
    memory = history(shape=(1024, 1024), mib=16)
    feed(memory, range(40))
    assert memory.recent is not None
    assert memory.recent.view.h < 1024
    assert memory.recent.capacity >= 64
    kept = memory.recent.capacity * memory.recent.view.h * memory.recent.view.w * 2
    assert kept <= 16 << 20
    assert draw(memory, batch=4)[0].shape == (4, 3, 16, 16)


def test_the_view_of_a_large_detector_moves_on():
    memory = history(shape=(1024, 1024), mib=4)
    pixels, valid = np.zeros((1024, 1024), np.uint16), np.ones((1024, 1024), bool)
    views = set()
    for index in range(1100):
        memory.append("r", index, pixels, valid)
        views.add(memory.recent.view)
    assert len(views) > 1


def test_frames_are_kept_bit_equal_in_the_detectors_dtype():
    memory = history()
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 65536, (3, 64, 64)).astype(np.uint16)
    for index, pixels in enumerate(frames):
        memory.append("r", index, pixels.astype(np.float32), np.ones((64, 64), bool))
    assert memory.recent is not None
    kept = memory.recent.clip(2, 3, memory.recent.view)
    assert kept.pixels.dtype == np.uint16
    assert np.array_equal(kept.pixels, frames)


def test_corrected_frames_are_kept_as_they_are():
    memory = history()
    memory.start(np.float32)
    memory.append("r", 0, np.full((64, 64), 0.37, np.float32), np.ones((64, 64), bool))
    assert memory.recent is not None
    assert memory.recent.clip(0, 1, memory.recent.view).pixels.max() == np.float32(0.37)


def test_a_new_dtype_forgets_recent_frames_but_keeps_the_reservoir():
    memory = history()
    feed(memory, range(40))
    kept = len(memory.reservoir)
    memory.start(np.float32)
    assert kept == len(memory.reservoir) > 0
    assert memory.recent is not None
    assert len(memory.recent) == 0


def test_many_short_runs_do_not_pile_up():
    memory = history(mib=2)
    for number in range(1000):
        feed(memory, range(3), run=str(number))
    assert memory.recent is not None
    assert len(memory.recent._runs) <= 2 * memory.recent.capacity + 1
    values, _ = draw(memory, runs=["999"])
    assert values.shape[0] == 64


def test_patches_are_flipped_and_turned_but_time_runs_forward():
    memory = history(shape=(32, 32))
    rows, columns = np.mgrid[:32, :32]
    for index in range(15):
        pixels = (index * 2000 + 32 * rows + columns).astype(np.uint16)
        memory.append("r", index, pixels, np.ones((32, 32), bool))
    values, _ = draw(memory, batch=200)
    step_down = values[:, 0, 1, 0] - values[:, 0, 0, 0]
    assert set(np.unique(step_down)) == {-32, -1, 1, 32}
    assert (np.diff(values, axis=1) == 2000).all()


def test_the_same_seed_draws_the_same_batches():
    batches = []
    for _ in range(2):
        memory = history(seed=3)
        feed(memory, range(100))
        batches.append(draw(memory)[0])
    assert np.array_equal(*batches)


def test_the_target_of_a_denoiser_has_its_lag_behind_it():
    assert target_position(ToyNet(lag=2)) == 2
