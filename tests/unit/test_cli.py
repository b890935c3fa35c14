"""The command line: light, documented, and honest in its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quietbeam.cli import COMMANDS, main

NAMES = [name for name, _ in COMMANDS]
HERE = {
    path.stem for path in (Path(__file__).parents[2] / "daemon/quietbeam/cli").glob("[a-z]*.py")
}
HEAVY = ("torch", "zmq", "h5py", "openvino", "onnx", "scipy", "starlette", "rich")
SOURCE = '[source]\nkind = "array"\naddress = "tcp://127.0.0.1:1"\n'


def quietbeam(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "quietbeam", *words],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def imported_by(*words):
    code = f"""
import sys
from quietbeam.cli import main
try: main({list(words)!r})
except SystemExit: pass
print("imported", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()[-1]


def test_every_command_has_a_module():
    assert [name for name in NAMES if name.replace("-", "_") not in HERE] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"quietbeam {name}" in capsys.readouterr().out.split("example", 1)[1]


def test_the_help_names_every_command_and_imports_nothing_heavy():
    assert imported_by("--help") == "imported []"
    text = quietbeam("--help").stdout
    assert [name for name in NAMES if name not in text.split()] == []


def test_listing_plugins_imports_none_of_them():
    light = imported_by("plugins")
    assert "torch" not in light
    assert "zmq" not in light
    assert "h5py" not in light


def test_plugins_are_listed_by_kind(capsys):
    assert main(["plugins", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["array"] == {"object": "quietbeam_plugins.sources.array:Array"}
    assert "kalman" in found["denoisers"]


def test_plugins_in_long_show_their_settings(capsys):
    assert main(["plugins", "--long", "--json"]) == 0
    array = json.loads(capsys.readouterr().out)["sources"]["array"]
    address = next(key for key in array["settings"] if key["key"] == "address")
    assert address["default"] == "must be given"
    assert array["summary"]


def test_check_of_a_good_file_is_ok(tmp_path, capsys):
    path = tmp_path / "good.toml"
    path.write_text(
        SOURCE + f'[service]\nhttp = "127.0.0.1:0"\nruntime_directory = "{tmp_path}/r"\n'
    )
    assert main(["check", str(path), "--json"]) == 0, capsys.readouterr().out
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["findings"] == []
    assert not (tmp_path / "r").exists()  # nothing was started, nothing left


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[trainer]\nbath = 1\n", "[trainer] bath"),
        ('[[sinks]]\nkind = "hdf5"\ndirectory = "/proc/nowhere"\n', "directory: /proc/nowhere"),
        ("[rings]\nraw_mib = 90000000\n", "[rings]"),
        ('[service]\nhttp = "192.0.2.1:80"\n', "192.0.2.1:80"),
        ('[[corrections]]\nkind = "dark_flat"\ndark = "/nowhere.npy"\n', "/nowhere.npy"),
        ('[service]\nruntime_directory = "/proc/x"\n', "runtime_directory"),
    ],
)
def test_check_names_what_will_not_work(tmp_path, capsys, more, words):
    path = tmp_path / "bad.toml"
    path.write_text(SOURCE + more)
    assert main(["check", str(path)]) == 78
    printed = capsys.readouterr().out
    assert words in printed
    assert str(path) in printed
    assert "Traceback" not in printed


def test_check_without_the_environment_looks_at_the_file_only(tmp_path, capsys):
    path = tmp_path / "elsewhere.toml"
    path.write_text(SOURCE + '[[sinks]]\nkind = "hdf5"\ndirectory = "/proc/nowhere"\n')
    assert main(["check", str(path), "--no-environment"]) == 0
    assert "ok" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr_with_its_exit_code(tmp_path):
    done = quietbeam("run", str(tmp_path / "nowhere.toml"))
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.startswith("quietbeam: ")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_words_end_with_2():
    assert quietbeam("fly").returncode == 2
    assert quietbeam().returncode == 2
    assert quietbeam("control", "explode").returncode == 2


def test_control_without_a_daemon_says_so(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text(SOURCE + f'[service]\nruntime_directory = "{tmp_path}/r"\n')
    assert main(["control", "status", "--config", str(path)]) == 78
    assert "no daemon is running" in capsys.readouterr().err
    assert main(["control", "status"]) == 78
    assert "--token-file" in capsys.readouterr().err


def test_control_checks_the_value_before_it_asks_anybody(capsys):
    assert main(["control", "rollback", "three", "--url", "http://127.0.0.1:1"]) == 1
    assert "not a number" in capsys.readouterr().err
    assert main(["control", "reset", "now", "--url", "http://127.0.0.1:1"]) == 1
    assert "takes no value" in capsys.readouterr().err


def test_control_tells_when_nobody_answers(monkeypatch, capsys):
    monkeypatch.setenv("QUIETBEAM_TOKEN", "x")
    assert main(["control", "status", "--url", "http://127.0.0.1:1"]) == 1
    assert "no daemon answers" in capsys.readouterr().err


def test_the_doctor_reports_every_part(tmp_path, capsys):
    assert main(["doctor", "--directory", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["processor"]["cores"] >= 1
    assert report["disk"]["write_bytes_per_s"] > 0
    assert "FP32" in report["engines"]["openvino_precisions"]
    assert list(tmp_path.iterdir()) == []
    assert set(report["warnings"]) <= set(report)


def test_a_reader_that_has_seen_enough_is_no_error():
    words = f"{sys.executable} -m quietbeam plugins --json | head -1"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
