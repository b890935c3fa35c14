"""The systemd unit: valid, hardened, and matching what the program does."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "quietbeam.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def copy(tmp_path):
    """Give a copy whose program exists everywhere."""
    text = UNIT.read_text()
    assert "ExecStart=/opt/quietbeam/bin/quietbeam run /etc/quietbeam/quietbeam.toml" in text
    path = tmp_path / UNIT.name
    path.write_text(text.replace("ExecStart=/opt/quietbeam/bin/quietbeam", "ExecStart=/bin/true"))
    return path


@needs_systemd
def test_systemd_understands_every_line(tmp_path):
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", str(copy(tmp_path))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_it_is_hardened(tmp_path):
    done = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--threshold=20", str(copy(tmp_path))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


def test_a_configuration_that_never_works_is_not_tried_again():
    assert "RestartPreventExitStatus=78" in UNIT.read_text()
    assert "ExecStartPre" not in [line.split("=")[0] for line in UNIT.read_text().splitlines()]
