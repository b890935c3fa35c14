"""The runtime directory, its lock and token, and the rings' files."""

import os
import stat
import subprocess
import sys

import pytest

from quietbeam.core.errors import ConfigError
from quietbeam.core.ring import RingReader, create
from quietbeam.service.rings import choose_directory, open_rings, reclaim
from quietbeam.service.runtime import (
    RuntimeDirectory,
    directory_for,
    holder_of,
    read_address,
    safe_name,
    token_path,
)

MIB = 1 << 20


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private_and_holds_token_and_address(tmp_path):
    with RuntimeDirectory(tmp_path / "a" / "run") as runtime:
        assert mode(runtime.path) == 0o700
        assert mode(token_path(runtime.path)) == 0o600
        assert token_path(runtime.path).read_text().strip() == runtime.token
        assert len(runtime.token) >= 32
        runtime.publish_address("http://127.0.0.1:5")
        assert read_address(runtime.path) == "http://127.0.0.1:5"
    assert not token_path(runtime.path).exists()
    with pytest.raises(ConfigError, match="no daemon is running"):
        read_address(runtime.path)


def test_a_second_holder_is_refused_by_name_and_the_first_is_not_disturbed(tmp_path):
    with RuntimeDirectory(tmp_path) as first:
        assert holder_of(tmp_path) == os.getpid()
        with pytest.raises(ConfigError, match=f"pid {os.getpid()}"), RuntimeDirectory(tmp_path):
            pass
        assert token_path(tmp_path).read_text().strip() == first.token
    assert holder_of(tmp_path) is None
    with RuntimeDirectory(tmp_path) as next_one:
        assert next_one.token != first.token


def test_a_directory_open_to_others_is_closed(tmp_path):
    (tmp_path / "run").mkdir(mode=0o777)
    with RuntimeDirectory(tmp_path / "run") as runtime:
        assert mode(runtime.path) == 0o700


def test_what_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="runtime_directory"), RuntimeDirectory(tmp_path / "file"):
        pass
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="not a directory of this user"):
        RuntimeDirectory(tmp_path / "link").__enter__()


def test_the_place_is_found_again_by_name(monkeypatch, tmp_path):
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert directory_for("a b/c", None) == tmp_path / f"quietbeam-{os.getuid()}-a_b_c"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/quietbeam")
    assert str(directory_for("x", None)) == "/run/quietbeam"
    assert directory_for("x", tmp_path) == tmp_path
    assert safe_name("") == "unnamed"


def test_a_token_of_systemd_is_used(monkeypatch, tmp_path):
    (tmp_path / "web-token").write_text("a-token-from-systemd-1\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with RuntimeDirectory(tmp_path / "run") as runtime:
        assert runtime.token == "a-token-from-systemd-1"


def test_rings_are_made_whole_and_taken_away(tmp_path):
    with open_rings("x", MIB, 2 * MIB, tmp_path, shared=tmp_path) as (raw, _clean):
        assert raw.path.stat().st_blocks * 512 >= MIB  # really there, not only promised
        assert mode(raw.path) == 0o600
        reader = RingReader(raw.path, "r")
        assert not reader.finished
    assert reader.finished
    assert list(tmp_path.iterdir()) == []


def test_rings_of_dead_daemons_are_reclaimed_and_living_ones_stay(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    stale = create(tmp_path / f"quietbeam-x-{int(done.stdout)}.raw", MIB).path
    own = create(tmp_path / f"quietbeam-x-{os.getpid()}.raw", MIB).path
    other = tmp_path / "quietbeam-notes.txt"
    other.write_text("not a ring")
    assert reclaim(tmp_path) == [stale]
    assert own.exists()
    assert other.exists()


def test_rings_that_fit_nowhere_are_refused_with_the_sizes(tmp_path):
    with pytest.raises(ConfigError, match=r"\[rings\].*MiB free"):
        choose_directory(1 << 60, tmp_path)


def test_without_shared_memory_the_rings_go_to_the_runtime_directory(tmp_path):
    assert choose_directory(MIB, tmp_path, shared=tmp_path / "nowhere") == tmp_path


def test_a_token_that_is_easily_guessed_is_refused_and_not_shown(tmp_path, monkeypatch):
    (tmp_path / "web-token").write_text("sesame\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="no good token: 6 characters") as caught:
        RuntimeDirectory(tmp_path / "run").__enter__()
    assert "sesame" not in str(caught.value)
