"""Checkpoints: numbered for good, bounded in number, and never used when damaged."""

from __future__ import annotations

import numpy as np
import pytest

from quietbeam.core.errors import QuietbeamError
from quietbeam.model import checkpoint
from quietbeam.trainer.versions import KEEP, Saved, Versions


def weights(value):
    return {"a": np.full(3, value, np.float32), "b": np.zeros((2, 2), np.float32)}


def test_versions_count_on_after_a_restart(tmp_path):
    first = Versions(tmp_path, "toy")
    assert first.next == 1
    first.promote(weights(1), {}, in_use=0)
    first.promote(weights(2), {}, in_use=1)
    assert Versions(tmp_path, "toy").next == 3
    assert Versions(tmp_path, "other").next == 1


def test_versions_count_on_behind_what_runs(tmp_path):
    versions = Versions(tmp_path, "toy")
    versions.seen(7)
    path = versions.promote(weights(1), {"steps": "5"}, in_use=7)
    assert path.name == "toy_000008.safetensors"
    assert checkpoint.load(path)[1] == {"steps": "5", "version": "8"}


def test_ten_versions_are_kept_and_the_one_in_use(tmp_path):
    versions = Versions(tmp_path, "toy")
    for number in range(KEEP + 5):
        versions.promote(weights(number), {}, in_use=2)
    assert versions.all() == [2, *range(6, 16)]
    assert versions.load(2)["a"][0] == 1


def test_a_version_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(QuietbeamError):
        Versions(tmp_path, "toy").load(3)


def test_training_goes_on_from_where_it_stood(tmp_path):
    versions = Versions(tmp_path, "toy")
    versions.promote(weights(1), {"steps": "10"}, in_use=0)
    versions.keep_training(Saved(weights(2), weights(3), 25), {"run": "r"})
    found = next(iter(Versions(tmp_path, "toy").resume()))
    assert (found.weights["a"][0], found.mean["a"][0], found.steps) == (2, 3, 25)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    versions = Versions(tmp_path, "toy")
    versions.promote(weights(1), {"steps": "10"}, in_use=0)
    broken = versions.promote(weights(2), {"steps": "20"}, in_use=0)
    state = versions.keep_training(Saved(weights(2), weights(3), 25), {})
    for path, offset in ((broken, -1), (state, 200)):
        data = bytearray(path.read_bytes())
        data[offset] ^= 0xFF
        path.write_bytes(data)
    found = list(Versions(tmp_path, "toy").resume())
    assert [saved.steps for saved in found] == [10]
    assert np.array_equal(found[0].weights["a"], found[0].mean["a"])


def test_nothing_to_go_on_from_is_no_error(tmp_path):
    assert list(Versions(tmp_path / "new", "toy").resume()) == []


def test_the_number_of_a_promotion_survives_the_loss_of_its_file(tmp_path):
    versions = Versions(tmp_path, "toy")
    versions.promote(weights(1), {}, in_use=0).unlink()
    versions.keep_training(Saved(weights(1), weights(1), 5), {})
    after = Versions(tmp_path, "toy")
    assert list(after.resume())
    assert after.next == 2
