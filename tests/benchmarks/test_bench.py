"""The command that the README's speed figures come from; and speeds that must not be lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from quietbeam.cli._bench_ingest import COMPRESSIONS, FORMATS, measure_decoding
from quietbeam.cli.bench import Case, measure


def bench(*words):
    return subprocess.run(
        [sys.executable, "-m", "quietbeam", "bench", *words],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip


@pytest.mark.slow
def test_bench_prints_what_a_program_can_read():
    what = ("--denoiser", "kalman", "--size", "64", "--threads", "1")
    done = bench(*what, "--frames", "30", "--seconds", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] == os.cpu_count()
    assert [case["engine"] for case in found["cases"]] == ["openvino", "torch"]
    for case in found["cases"]:
        assert case["frames"] == 30
        assert case["frames_per_s"] > 20
        assert 0 < case["p50_ms"] <= case["p99_ms"]
        assert 30 << 20 < case["peak_bytes"] < 2 << 30
        assert case["precision"] == "f32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--denoiser", "absent"], "--denoiser absent: installed are"),
        (["--size", "8"], "--size 8: expected at least 16"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--frames", "0"], "--frames 0: expected more than 0"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(words, message):
    done = bench(*words)
    assert done.returncode == 78
    assert message in done.stderr


def test_a_slow_case_measures_two_frames_and_says_so():
    row = measure(Case("median", "torch", 64, 1, frames=100, seconds=1e-9))
    assert row["frames"] == 2
    assert row["few_frames"]
    assert row["lag"] == 0
    assert row["weights"] == 0


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_decoding_into_the_ring_is_measured_beside_the_bare_work(form, compression):
    row = measure_decoding(form, compression, 32, frames=15)
    assert (row["format"], row["compression"], row["dropped"]) == (form, compression, 0)
    assert row["frames"] >= 15
    assert row["ratio"] == pytest.approx(row["bare_ms"] / row["path_ms"])
    assert row["pixels_per_s"] == pytest.approx(32 * 32 / row["path_ms"] * 1e3)
    assert row["bytes_per_s"] == 2 * row["pixels_per_s"]


@pytest.mark.slow
def test_bench_ingest_prints_what_a_program_can_read_and_accounts_for_every_frame():
    what = ("--size", "32", "--frames", "15", "--seconds", "0.5", "--rate", "100")
    done = bench("--ingest", *what, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["decoding"]) == len(FORMATS) * len(COMPRESSIONS)
    for row in found["socket"]:
        assert row["sent"] + row["unsent"] == 50
        assert row["missing"] + row["received"] == row["sent"]
        assert row["dropped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("denoiser", "cpu_ms"), [("kalman", 15), ("quiet", 50)])
def test_the_live_path_stays_fast_enough_for_20_frames_per_second(denoiser, cpu_ms):
    row = measure(Case(denoiser, "openvino", 256, 1, frames=60, seconds=5))
    assert row["cpu_ms"] < cpu_ms
