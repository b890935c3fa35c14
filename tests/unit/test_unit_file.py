"""The files of the systemd service: valid, hardened, matching the program; written on request."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from quietbeam.cli import main

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


DROP_INS = sorted(path.name for path in (UNIT.parent / "quietbeam.service.d").glob("*.conf"))
OPTIONS = ["--program", "/opt/quietbeam/bin/quietbeam"]
SITE = ["--network", "172.23.0.0/16", "--data", "/data", "--cpus", "2-7", "--gpu", "--views"]


def analyze(*words):
    return subprocess.run(
        [ANALYZE, *words], capture_output=True, text=True, check=False, timeout=60
    )


def with_drop_in(tmp_path, name):
    path = copy(tmp_path)
    if name:
        there = tmp_path / f"{UNIT.name}.d" / name
        there.parent.mkdir()
        there.write_text((UNIT.parent / f"{UNIT.name}.d" / name).read_text())
    return path


@needs_systemd
@pytest.mark.parametrize("drop_in", ["", *DROP_INS])
def test_systemd_understands_every_line(tmp_path, drop_in):
    done = analyze("verify", "--man=no", str(with_drop_in(tmp_path, drop_in)))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("drop_in", ["", *DROP_INS])
def test_it_is_hardened(tmp_path, drop_in):
    path = with_drop_in(tmp_path, drop_in)
    assert "DeviceAllow=char-nvidia rw" in path.read_text()
    done = analyze("security", "--offline=true", "--threshold=16", str(path))
    assert done.returncode == 0, done.stdout[-300:]


def test_a_configuration_that_never_works_is_not_tried_again():
    assert "RestartPreventExitStatus=78" in UNIT.read_text()
    assert "ExecStartPre" not in [line.split("=")[0] for line in UNIT.read_text().splitlines()]


def test_the_installed_files_are_those_of_deploy_with_the_choices_of_the_site(tmp_path, capsys):
    assert main(["install-service", "--root", str(tmp_path), "--json", *OPTIONS, *SITE]) == 0
    listed = json.loads(capsys.readouterr().out)
    found = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    assert {item["path"] for item in listed} == found
    assert all(item["why"] for item in listed)
    units = tmp_path / "etc/systemd/system"
    assert (units / UNIT.name).read_text() == UNIT.read_text()
    drop_ins = units / f"{UNIT.name}.d"
    assert sorted(path.name for path in drop_ins.iterdir()) == DROP_INS
    assert "IPAddressAllow=172.23.0.0/16\n" in (drop_ins / "network.conf").read_text()
    assert "192.0.2" not in (drop_ins / "network.conf").read_text()
    assert "CPUAffinity=2-7\n" in (drop_ins / "cpus.conf").read_text()
    token = tmp_path / "etc/quietbeam/secrets/web-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text().strip()) >= 40


def test_another_program_and_configuration_stand_in_the_unit(tmp_path):
    words = ["--program", "/srv/qb/bin/quietbeam", "--config", "/srv/qb.toml"]
    assert main(["install-service", "--root", str(tmp_path), *words]) == 0
    text = (tmp_path / "etc/systemd/system" / UNIT.name).read_text()
    assert "ExecStart=/srv/qb/bin/quietbeam run /srv/qb.toml\n" in text


def test_what_the_site_has_changed_is_kept_and_the_unit_renewed(tmp_path, capsys):
    words = ["install-service", "--root", str(tmp_path), *OPTIONS, *SITE]
    main(words)
    unit = tmp_path / "etc/systemd/system" / UNIT.name
    network = unit.parent / f"{UNIT.name}.d/network.conf"
    token = (tmp_path / "etc/quietbeam/secrets/web-token").read_text()
    unit.write_text("old")
    network.write_text("ours")
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert (unit.read_text(), network.read_text()) == (UNIT.read_text(), "ours")
    assert (tmp_path / "etc/quietbeam/secrets/web-token").read_text() == token
    assert "replaced  /etc/systemd/system/quietbeam.service\n" in said
    assert token.strip() not in said


def test_a_dry_run_shows_everything_but_the_secret_and_writes_nothing(tmp_path, capsys):
    assert main(["install-service", "--root", str(tmp_path), "--dry-run", *OPTIONS]) == 0
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert "| RestartPreventExitStatus=78" in said
    assert "shown to nobody" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--program", "/home/me/venv/bin/quietbeam"], "cannot see /home"),
        (["--config", "relative.toml"], "absolute path"),
        (["--network", "172.23.0.1/16"], "host bits"),
        (["--cpus", "all"], "2-15"),
        (["--data", "/data/my files"], "without spaces"),
    ],
)
def test_choices_that_can_never_work_are_refused(tmp_path, capsys, words, named):
    assert main(["install-service", "--root", str(tmp_path), *OPTIONS, *words]) == 78
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
