"""Metrics: names, values, and that what is known beforehand is there from the start."""

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from helpers.snapshots import snapshot
from quietbeam.core.ledger import Ledger
from quietbeam.service.accounts import stages_account
from quietbeam.service.metrics import FAMILIES
from quietbeam.service.status import is_balanced, left_over
from quietbeam.service.telemetry import END_TO_END, PREFIX, Telemetry


def scraped(status):
    telemetry = Telemetry(lambda: status)
    text = generate_latest(telemetry.registry).decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return values


def value(values, name, **labels):
    return values[PREFIX + name, tuple(sorted(labels.items()))]


def test_the_snapshot_is_what_a_scrape_shows():
    values = scraped(snapshot())
    assert value(values, "frames_received_total", source="array") == 5
    assert value(values, "frames_rejected_total", source="array", reason="truncated") == 2
    assert value(values, "stage_frames_dropped_total", stage="denoise", reason="overload") == 1
    assert value(values, "recorder_frames_written_total", output="hdf5.0") == 5
    assert value(values, "recorder_state", output="hdf5.0", state="recording") == 1
    assert value(values, "recorder_state", output="hdf5.0", state="failed") == 0
    assert value(values, "published_frames_total", output="zmq.1") == 4
    assert value(values, "trainer_restarts_total", reason="signal") == 1
    assert value(values, "model_generation") == 2
    assert value(values, "auth_failures_total", endpoint="control", reason="wrong") == 3
    assert value(values, "config_reloads_total", result="failed") == 1
    assert value(values, "config_last_reload_successful") == 0


def test_every_way_a_frame_can_go_is_a_metric():
    values = scraped(snapshot())
    for name, number in {"late": 2, "missing": 1, "duplicate": 1, "foreign": 0}.items():
        assert value(values, f"frames_{name}_total") == number
    assert value(values, "stage_frames_in_total", stage="hdf5.0:raw") == 5
    assert value(values, "stage_frames_dropped_total", stage="hdf5.0:raw", reason="disk_full") == 0
    assert value(values, "alarm_active", alarm="joined_late") == 1
    assert value(values, "alarm_active", alarm="regular_gaps") == 0
    assert value(values, "alarms_raised_total", alarm="joined_late") == 3
    assert value(values, "alarms_raised_total", alarm="end_missing") == 0


def test_what_alerts_count_is_there_before_the_first_event():
    values = scraped(snapshot(ledger={}, frames={}, alarms={}, alarms_raised={}))
    assert value(values, "stage_frames_in_total", stage="ingest") == 0
    assert value(values, "stage_frames_dropped_total", stage="denoise", reason="ring_overrun") == 0
    assert value(values, "frames_rejected_total", source="array", reason="oversized") == 0
    assert value(values, "auth_failures_total", endpoint="control", reason="origin") == 0


def test_a_number_that_is_none_is_left_out_and_never_nan():
    values = scraped(snapshot())
    assert (PREFIX + "psnr_estimated_decibels", ()) not in values
    assert value(values, "psnr_raw_decibels") == 20.0
    assert all(number == number for number in values.values())


def test_durations_fill_the_histograms():
    status = snapshot()
    telemetry = Telemetry(lambda: status)
    telemetry.observe(END_TO_END, 0.03)
    telemetry.observe("denoise", 0.003)
    text = generate_latest(telemetry.registry).decode()
    assert f'{PREFIX}end_to_end_latency_seconds_bucket{{le="0.05"}} 1.0' in text
    assert f'{PREFIX}stage_duration_seconds_bucket{{le="0.005",stage="denoise"}} 1.0' in text
    assert "_created" not in text


def test_names_follow_prometheus_and_are_unique():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not family.name.endswith(("_s", "_ms", "_mib", "_count"))
        assert family.help.endswith(".")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_sample_has_the_labels_of_its_family(family):
    for labels, number in family.read(snapshot()):
        assert len(labels) == len(family.labels)
        assert isinstance(number, float)


def test_the_accounts_of_a_ledger_balance_and_what_is_left_is_named():
    ledger = Ledger()
    ledger.received("denoise", 10)
    ledger.sent("denoise", 7)
    ledger.dropped("denoise", "overload", 2)
    stages = stages_account(ledger)
    assert stages["denoise"]["in_flight"] == 1
    rings = {"raw": {"readers": [{"name": "hdf5.0", "in_flight": 3}]}}
    assert is_balanced(stages, rings)
    assert left_over(stages, rings, ["hdf5.0"]) == [
        "1 frames in stage denoise",
        "3 frames of the raw ring not read by hdf5.0",
    ]
    ledger.sent("denoise", 2)
    assert not is_balanced(stages_account(ledger), rings)
