from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quietbeam import EngineError
from quietbeam.model import checkpoint

WEIGHTS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "a.bias": np.float32([0.5, -1]),
}
METADATA = {"denoiser": "quiet", "settings": '{"a": 1}', "version": "3", "created": "2024-01-01"}


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    digest = checkpoint.save(path, WEIGHTS, METADATA)
    weights, metadata = checkpoint.load(path)
    assert metadata == METADATA
    assert set(weights) == set(WEIGHTS)
    assert all(np.array_equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert all(array.dtype == np.float32 for array in weights.values())
    assert digest == checkpoint.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_saving_again_replaces_the_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, WEIGHTS, METADATA)
    checkpoint.save(path, {"b": np.ones(3, np.float32)}, METADATA)
    assert set(checkpoint.load(path)[0]) == {"b"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_weight_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, WEIGHTS, METADATA)
    with pytest.raises(EngineError, match=r"a\.bias is not finite"):
        checkpoint.save(path, {**WEIGHTS, "a.bias": np.float32([np.nan, 0])}, METADATA)
    assert np.array_equal(checkpoint.load(path)[0]["a.bias"], WEIGHTS["a.bias"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    checkpoint.save(path, WEIGHTS, METADATA)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(saved, tmp_path_factory, where, bit):
    data = bytearray(saved)
    data[int(where * len(data))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "m.safetensors"
    path.write_bytes(data)
    try:
        weights, metadata = checkpoint.load(path)
    except EngineError:
        return
    # Padding, or a space in the JSON: nothing that was said has changed.
    assert metadata == METADATA
    assert all(np.array_equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_named(saved, tmp_path, keep):
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved[:keep])
    with pytest.raises(EngineError, match=r"m\.safetensors: not a whole safetensors file"):
        checkpoint.load(path)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"absent.*cannot be read: No such file"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(EngineError, match=r"absent.*cannot be read"):
        checkpoint.sha256(tmp_path / "absent")


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"cos\nmkdir\n(S'%s'\ntR." % str(tmp_path / "sprung").encode())
    with pytest.raises(EngineError):
        checkpoint.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_safetensors_file_of_someone_else_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.ones(2, np.float32)}))
    with pytest.raises(EngineError, match="not written by quietbeam"):
        checkpoint.load(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "m.safetensors", WEIGHTS, METADATA)
