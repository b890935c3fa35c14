from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from quietbeam.cli.evaluate import SCENES as NAMES
from quietbeam.offline.evaluation.against_truth import front_width
from quietbeam.testing import scenes
from quietbeam.testing.scenes import SCENES


def test_the_command_knows_every_scene():
    assert tuple(SCENES) == NAMES


@cache
def scene(name, seed=1):
    return SCENES[name](32, 20, seed)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_within_0_and_1(name):
    truth = scene(name).truth
    assert truth.shape == (20, 32, 32)
    assert truth.dtype == np.float32
    assert 0 <= truth.min() < truth.max() <= 1


@pytest.mark.parametrize("name", ["moving", "particle"])
def test_a_seed_gives_one_scene(name):
    again, other = SCENES[name](32, 20, 1), SCENES[name](32, 20, 2)
    assert np.array_equal(scene(name).truth, again.truth)
    assert not np.array_equal(scene(name).truth, other.truth)


@pytest.mark.parametrize(("name", "change"), [("slow", scenes.SLOW), ("fast", scenes.FAST)])
def test_coarsening_changes_by_what_was_asked_for(name, change):
    truth = scene(name).truth
    moved = np.abs(np.diff(truth, axis=0)).mean((1, 2))
    assert moved.mean() == pytest.approx(change, rel=0.1)
    assert moved[4:] == pytest.approx(change, rel=0.15)


def test_the_front_is_where_the_scene_says_and_as_wide():
    moving = SCENES["moving"](64, 24, 0)
    assert moving.front_px is not None
    # The texture has no mean along the front: the bare edge is left.
    profiles = moving.truth.mean(1)
    for profile, position in zip(profiles, moving.front_px, strict=True):
        assert np.interp(position, np.arange(64), profile) == pytest.approx(0.475, abs=0.01)
    assert np.diff(moving.front_px) == pytest.approx(scenes.FRONT_SPEED_PX)
    assert front_width(moving.truth, moving.front_px) == pytest.approx(
        scenes.FRONT_WIDTH_PX, rel=0.1
    )
    behind = moving.truth[:, :, :8]
    assert behind.std() > 0.03


def test_the_particle_appears_at_once_in_the_middle_and_moves_on():
    truth = scene("particle").truth
    jump = truth[10] - truth[9]
    assert jump.max() > 0.3
    assert np.abs(truth[9] - truth[8]).max() < 0.1
    places = [np.unravel_index(np.argmax(frame - truth[9]), frame.shape) for frame in truth[10:]]
    distance = np.hypot(*np.subtract(places[-1], places[0]))
    assert distance == pytest.approx(0.4 * 9, abs=1.5)


def test_the_beam_dips_by_30_percent_and_recovers():
    truth = scene("dip").truth
    level = truth.mean((1, 2))
    assert level.min() / level[0] == pytest.approx(0.7, abs=0.01)
    assert np.argmin(level) == 10
    assert level[-1] == pytest.approx(level[0], rel=0.01)
