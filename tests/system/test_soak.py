"""``quietbeam soak`` over a real daemon: its account, and that a leak is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LEAK_BYTES = 40_000
LEAKS = f"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from quietbeam import AnalysisPlugin, MetricSpec

_kept = []

class Leaks(AnalysisPlugin):
    def metrics(self):
        return {{"kept": MetricSpec("", "frames kept")}}

    @contextmanager
    def open(self, run):
        def measure(clean, sd):
            _kept.append(bytearray(b"x" * {LEAK_BYTES}))
            return {{"kept": float(len(_kept))}}
        yield measure
"""


def soak(*options, environment=None):
    done = subprocess.run(
        [sys.executable, "-m", "quietbeam", "soak", *options, "--json"],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def leaky_site(tmp_path):
    site = tmp_path / "site"
    info = site / "leaky-0.dist-info"
    info.mkdir(parents=True)
    (site / "leaky.py").write_text(LEAKS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[quietbeam.analyses]\nleaks = leaky:Leaks\n")
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.timeout(300)
def test_a_leak_fails_the_soak_though_every_frame_is_accounted_for(tmp_path):
    more = tmp_path / "more.toml"
    more.write_text('[[analyses]]\nkind = "leaks"\n')
    options = ("--frames", "700", "--rate", "150", "--outputs", "hdf5,zmq", "--more", str(more))
    code, report = soak(*options, environment={"PYTHONPATH": leaky_site(tmp_path)})
    assert code == 1
    assert report["verdict"] == "failed"
    assert report["sent"] == report["received"] == report["recorded"] == 700
    assert (report["raw_lost"], report["unaccounted"]) == (0, 0)
    assert set(report["processes"]) == {"daemon", "hdf5.0"}
    for process in report["processes"].values():
        assert process["restarts"] == 0
        assert process["descriptors"] > 0
    assert any(said.startswith("daemon: memory grows by") for said in report["failures"])
    if not report["dropped"].get("denoise"):  # a busy machine gives up analyses first
        assert report["processes"]["daemon"]["slope_bytes_per_frame"] > LEAK_BYTES / 4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_clean_daemon_holds(tmp_path):
    code, report = soak("--frames", "9000", "--rate", "150", "--directory", str(tmp_path / "kept"))
    assert (report["failures"], code) == ([], 0)
    assert Path(tmp_path / "kept" / "daemon.log").exists()


def test_what_it_cannot_do_is_said(tmp_path):
    for wrong in (("--shape", "16"), ("--outputs", "tape")):
        done = subprocess.run(
            [sys.executable, "-m", "quietbeam", "soak", "--frames", "3", *wrong],
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 65
        assert "expected" in done.stderr
