"""What the live view tells an operator: freshness, banners, the model card."""

import json
from dataclasses import replace

import pytest

from helpers.web import STATUS, pair, started
from quietbeam_plugins.sinks.web.buffer import Buffer
from quietbeam_plugins.sinks.web.standing import Standing, recorder


def daemon(**changes):
    status = json.loads(json.dumps(STATUS))
    for key, value in changes.items():
        status[key] = status.get(key, {}) | value if isinstance(value, dict) else value
    return status


def watched():
    buffer = Buffer(16 << 20)
    frame, result = pair(0)
    buffer.start(started())
    buffer.raw(frame)
    buffer.clean(result)
    return buffer


def told(status, standing=None, buffer=None, *, connected=True):
    standing = Standing() if standing is None else standing
    buffer = watched() if buffer is None else buffer
    return standing.message(status, buffer, connected=connected, viewers=1)


def ids(message):
    return [banner["id"] for banner in message["banners"]]


def test_a_classical_filter_is_never_passed_off_as_a_model():
    message = told(daemon())
    assert ids(message) == ["classical"]
    assert message["model"]["classical"] is True
    proven = told(daemon(pipeline={"denoiser": "quiet", "model_version": 3}))
    assert (ids(proven), proven["model"]["classical"]) == ([], False)


def test_an_operators_choice_is_told_from_a_missing_proof():
    assert ids(told(daemon(model={"held": True}))) == ["held"]


def test_drops_are_shown_with_their_reason_while_they_are_recent():
    standing, buffer = Standing(), watched()
    dropped = {"denoise": {"dropped": {"overload": 3}, "sent": 0}}
    assert "dropped" not in ids(told(daemon(), standing, buffer))
    [banner, *_] = told(daemon(ledger=dropped), standing, buffer)["banners"]
    assert (banner["id"], banner["level"]) == ("dropped", "alarm")
    assert "3 in denoise: denoising does not keep up" in banner["text"]


def test_what_a_slow_consumer_misses_is_its_own_affair():
    ledger = {"zmq.1": {"dropped": {"no_consumer": 500}}}
    message = told(daemon(ledger=ledger))
    assert message["frames"]["dropped"] == {}
    assert ids(message) == ["classical"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"alarms": {"regular_gaps": {"message": "another client pulls"}}}, "alarm.regular_gaps"),
        ({"run": {"reason": None, "source": {"missing": 4}}}, "missing"),
        ({"degradation": "training"}, "shed"),
        ({"noise": {"trusted": False, "message": None}}, "noise"),
        ({"noise": {"trusted": True, "message": "rows are correlated"}}, "noise"),
        (
            {
                "outputs": {
                    "hdf5.0": {
                        "up": True,
                        "status": {"state": "disk_full"},
                        "totals": {"raw_written": 1},
                    }
                }
            },
            "recorder",
        ),
    ],
)
def test_everything_an_operator_must_know_has_a_banner(changes, expected):
    assert expected in ids(told(daemon(**changes)))


def test_a_picture_that_lags_is_told_from_a_detector_that_rests():
    old = watched()
    entry = old.newest()
    old.newest = lambda: replace(entry, unix_s=entry.unix_s - 9)
    old.started_unix_s -= 20
    [lags, *_] = told(daemon(pipeline={"last_frame_age_s": 0.1}), buffer=old)["banners"]
    assert "behind the detector" in lags["title"]
    [rests, *_] = told(daemon(pipeline={"last_frame_age_s": 9.0}), buffer=old)["banners"]
    assert rests["title"].startswith("No new frames for 9 s")


def test_a_daemon_that_does_not_answer_is_the_only_news():
    message = told(daemon(degradation="training"), connected=False)
    assert ids(message) == ["lost"]
    assert (message["state"], message["freshness"]["state"]) == ("unreachable", "lost")


def test_before_the_first_run_the_page_waits():
    assert told(daemon(), buffer=Buffer(16 << 20))["freshness"]["state"] == "waiting"


def test_a_decision_comes_with_every_number_it_was_made_by():
    given = {"action": "reject", "version": 2, "reason": "no gain", "applied": False}
    given |= {"unix_time_s": 1.0, "gain": -0.1, "standard_error": 0.2, "checkpoint": "/x"}
    [shown] = told(daemon(decisions=[given]))["model"]["decisions"]
    assert shown["numbers"] == {"gain": -0.1, "standard_error": 0.2}
    assert "checkpoint" not in shown


def test_the_loss_curve_begins_anew_with_training():
    standing, buffer = Standing(), watched()
    for steps in (10, 20, 20, 30, 5):
        progress = {"steps": steps, "loss": 1 / steps}
        message = told(daemon(trainer={"up": True, "progress": progress}), standing, buffer)
        if steps == 30:
            assert message["training"]["loss"]["step"] == [10, 20, 30]
    assert message["training"]["loss"] == {"step": [5], "loss": [0.2]}


def test_a_path_of_the_server_is_not_told():
    output = {"up": True, "status": {"state": "recording", "file": "/secret/place/run.h5.part"}}
    shown = recorder({"outputs": {"hdf5.0": output | {"totals": {"raw_written": 1}}}})
    assert shown is not None
    assert shown["file"] == "run.h5"
