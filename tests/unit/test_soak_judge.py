"""The verdict of a soak: planted leaks are found, what is steady is not."""

import numpy as np
import pytest

from quietbeam.cli._soak_judge import Sample, describe, failures, growth, unaccounted


def samples(leak=0.0, noise=20_000, threads=4, descriptors=lambda frames: 9, restart=False):
    rng = np.random.default_rng(0)
    frames = range(0, 100_000, 500)
    warm_up = [40e6 * (1 - np.exp(-n / 5000)) for n in frames]
    return [
        Sample(n, 7 + (restart and n > 50_000), round(60e6 + w + leak * n + noise * rng.normal()),
               descriptors(n), threads)
        for n, w in zip(frames, warm_up, strict=True)
    ]  # fmt: skip


def report(**changes):
    held = {"sent": 10, "received": 10, "raw_lost": 0, "unaccounted": 0, "shared_memory_grew": 0}
    return held | {"processes": {"daemon": describe(samples())}} | changes


def test_what_fills_at_first_and_then_stays_is_no_leak():
    assert abs(describe(samples())["slope_bytes_per_frame"]) < 1
    assert failures(report(), 50) == []


@pytest.mark.parametrize("leak", [100, 1000])
def test_a_leak_is_measured_in_bytes_a_frame(leak):
    found = describe(samples(leak))
    assert found["slope_bytes_per_frame"] == pytest.approx(leak, rel=0.02)
    [said] = failures(report(processes={"trainer": found}), 50)
    assert said.startswith("trainer: memory grows by")


def test_single_peaks_do_not_make_a_slope():
    peaked = samples()
    peaked[-1] = Sample(peaked[-1].frames, 7, 10**10, 9, 4)
    assert abs(describe(peaked)["slope_bytes_per_frame"]) < 1


def test_descriptors_that_pile_up_are_told_and_ones_that_come_and_go_are_not():
    piling = describe(samples(descriptors=lambda frames: 9 + frames // 10_000))
    assert piling["descriptors_grew"] > 3
    assert "descriptors more" in failures(report(processes={"web": piling}), 50)[0]
    assert describe(samples(descriptors=lambda n: 9 + n % 1000 // 500))["descriptors_grew"] == 0


def test_a_process_that_was_started_again_and_one_hardly_seen_are_told():
    again = describe(samples(restart=True))
    assert failures(report(processes={"web": again}), 50) == ["web: was started again 1 times"]
    hardly = describe(samples()[:3])
    assert "too few samples" in failures(report(processes={"web": hardly}), 50)[0]
    assert describe([])["slope_bytes_per_frame"] is None


def test_frames_that_are_lost_or_not_accounted_for_are_told():
    accounts = {
        "a": {"received": 5, "sent": 3, "dropped": {"overload": 2}},
        "b": {"received": 5, "sent": 3, "dropped": {"overload": 1}},
    }
    assert unaccounted(accounts) == 1
    said = failures(report(received=9, raw_lost=2, unaccounted=1, shared_memory_grew=1), 50)
    assert len(said) == 4


def test_growth_compares_the_least_of_the_middle_with_that_of_the_end():
    assert growth([1, 1, 3, 3, 3, 3]) == 0
    assert growth([2, 2, 2, 2, 4, 5]) == 2
    assert growth([1]) == 0
