"""Each injected fault of a configuration is named, with its mend, and no other."""

import os
import socket

import pytest

from helpers.daemons import free_port
from quietbeam.cli import main
from quietbeam.service.diagnosis import diagnose, filesystem_of
from quietbeam.service.runtime import RuntimeDirectory

SOUND = """
[source]
kind = "array"
address = "tcp://127.0.0.1:{port}"
[denoiser]
kind = "kalman"
[rings]
raw_mib = 4
clean_mib = 4
[service]
http = "127.0.0.1:0"
runtime_directory = "{directory}/run"
[[sinks]]
kind = "hdf5"
directory = "{directory}"
reserve_bytes = 1000
"""


@pytest.fixture
def diagnosed(tmp_path):
    """Write the sound configuration, changed by replacements, and diagnose it."""

    def write(*changes, more=""):
        text = SOUND.format(port=free_port(), directory=tmp_path) + more
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "config.toml"
        path.write_text(text)
        return diagnose(path)

    return write


def test_nothing_is_wrong_with_a_sound_one(diagnosed):
    assert diagnosed() == []


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("configuration", ("raw_mib = 4", "raw_mb = 4"), "raw_mb"),
        ("configuration", ('kind = "kalman"', 'kind = "kalmann"'), "kalmann"),
        ("configuration", ('kind = "array"', 'kind = "array'), "not valid TOML"),
        ("shared_memory", ("raw_mib = 4", "raw_mib = 90000000"), "90000004 MiB"),
        ("not_writable", ('directory = "{directory}"', 'directory = "/proc/quietbeam"'), "/proc"),
        ("runtime_directory", ("{directory}/run", "/proc/run"), "/proc/run"),
        ("disk_full", ("reserve_bytes = 1000", "reserve_bytes = 9000000000000000000"), "reserve"),
        ("open_http", ('http = "127.0.0.1:0"', 'http = "0.0.0.0:0"'), "everybody"),
    ],
)
def test_a_fault_is_named_with_its_mend(diagnosed, tmp_path, name, change, said):
    old, new = (text.replace("{directory}", str(tmp_path)) for text in change)
    [finding] = diagnosed((old, new))
    assert finding.name == name
    assert said in finding.what
    assert finding.mend


def test_a_port_that_somebody_holds(diagnosed):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        [finding] = diagnosed(("127.0.0.1:0", f"127.0.0.1:{port}"))
    assert (finding.name, str(port) in finding.what, "ss -ltnp" in finding.mend) == (
        "port_taken", True, True,
    )  # fmt: skip


def test_another_daemon(diagnosed, tmp_path):
    with RuntimeDirectory(tmp_path / "run"):
        [finding] = diagnosed()
    assert finding.name == "already_running"
    assert str(os.getpid()) in finding.what


def test_a_file_of_the_source_that_is_not_there(diagnosed, tmp_path):
    more = f'[[corrections]]\nkind = "dark_flat"\ndark = "{tmp_path}/dark.h5:/data"\n'
    [finding] = diagnosed(more=more)
    assert (finding.name, "dark.h5" in finding.what) == ("input_missing", True)


def test_a_key_that_others_can_read_and_an_output_open_to_all(diagnosed, tmp_path):
    (tmp_path / "a.key_secret").write_text("x")
    (tmp_path / "a.key_secret").chmod(0o644)
    (tmp_path / "clients").mkdir()
    locked = (
        f'[[sinks]]\nkind = "zmq"\naddress = "tcp://127.0.0.1:{free_port()}"\n'
        f'curve_secret_key = "{tmp_path}/a.key_secret"\ncurve_clients = "{tmp_path}/clients"\n'
    )
    [finding] = diagnosed(more=locked)
    assert finding.name == "secret_readable"
    assert f"{tmp_path}/a.key_secret has mode 0644" in finding.what
    assert "chmod 600" in finding.mend
    [finding] = diagnosed(more=f'[[sinks]]\nkind = "zmq"\naddress = "tcp://*:{free_port()}"\n')
    assert finding.name == "open_output"


def test_a_configuration_that_anybody_may_change(diagnosed, tmp_path):
    diagnosed()
    (tmp_path / "config.toml").chmod(0o666)
    [finding] = diagnose(tmp_path / "config.toml")
    assert finding.name == "config_writable"


def test_the_type_of_a_disk_is_that_of_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "my data"
    inner.mkdir()
    shown = str(inner).replace(" ", "\\040")
    mounts.write_text(f"root / ext4 rw 0 0\nserver:/x {shown} nfs4 rw 0 0\n")
    assert filesystem_of(inner, mounts) == "nfs4"
    assert filesystem_of(tmp_path, mounts) == "ext4"


def test_the_command_prints_finding_and_mend_and_ends_with_78(diagnosed, tmp_path, capsys):
    diagnosed(("raw_mib = 4", "raw_mb = 4"))
    assert main(["doctor", "--config", str(tmp_path / "config.toml")]) == 78
    said = capsys.readouterr().out
    assert "configuration:" in said
    assert "mend: " in said
    diagnosed()
    assert main(["doctor", "--config", str(tmp_path / "config.toml")]) == 0
