"""A daemon learns from a RunEngine's documents which run its frames belong to."""

import json
import os
import time

import h5py
import pytest
import zmq

from helpers.daemons import get, running, send_frames
from helpers.documents import document_proxy
from helpers.waiting import until

pytest.importorskip("bluesky", reason="needs the extra [bluesky]")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def beamline(tmp_path_factory):
    """A daemon that records and listens; give it, the publishing address and the folder."""
    directory = tmp_path_factory.mktemp("runs")
    with document_proxy() as (inward, outward):
        sinks = f"""
[[sinks]]
kind = "hdf5"
directory = "{directory / "recordings"}"
[[sinks]]
kind = "bluesky_runs"
address = "{outward}"
journal = "{directory / "joins.jsonl"}"
"""
        with running(directory, sinks=sinks, more="[trainer]\nenabled = false") as daemon:
            daemon.wait_for(lambda s: s["views"]["bluesky_runs.1"]["up"], 60.0, "the input")
            yield daemon, inward, directory


def view(daemon):
    return daemon.status()["views"]["bluesky_runs.1"]["status"]


class Hostile:
    """What Python's usual loader would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture
def publish(beamline):
    """Send documents as a RunEngine's publisher does; wait until the first is heard."""
    from bluesky.callbacks.zmq import Publisher

    daemon, inward, _ = beamline
    publisher = Publisher(inward)
    before = view(daemon).get("heard", 0)

    def is_heard():
        publisher("event", {"uid": "e"})
        time.sleep(0.05)
        return view(daemon).get("heard", 0) > before

    until(is_heard, 60, "the connection")
    yield publisher
    publisher.close()


def test_frames_of_a_plan_carry_its_uid_scan_and_sample_in_status_and_recording(beamline, publish):
    from bluesky import RunEngine
    from bluesky import plan_stubs as bps

    daemon, _, directory = beamline

    def plan():
        uid = yield from bps.open_run({"sample": {"name": "NMC 811"}, "plan_name": "exposure"})
        known = {"heard": view(daemon)["heard"]}
        send_frames(daemon.port, 30)
        daemon.wait_for(lambda s: s["run_metadata"].get("run_uid") == uid, 60.0, "the uid")
        assert known
        yield from bps.close_run()

    engine = RunEngine({"scan_id": 41})
    engine.subscribe(publish)
    (uid,) = engine(plan())
    told = daemon.status()["run_metadata"]
    assert (told["run_uid"], told["scan_id"]) == (uid, 42)
    assert told["sample"] == {"name": "NMC 811"}
    assert told["joined_by"] == "time"
    line = json.loads((directory / "joins.jsonl").read_text().splitlines()[-1])
    assert (line["run_uid"], line["start"]["plan_name"]) == (uid, "exposure")

    def recorded():
        for path in (directory / "recordings").glob("*.h5"):
            with h5py.File(path, "r") as file:
                if uid in noted(file):
                    return True
        return False

    until(recorded, 60, "the uid in a recording")


def noted(file):
    """Give every text in the notes of a recording as one."""
    texts = []
    file.visititems(lambda _, item: texts.append(item))
    return " ".join(
        str(item[()])
        for item in texts
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "OS"
    )


def test_a_poisoned_document_is_refused_and_counted_and_the_stream_goes_on(
    beamline, publish, tmp_path
):
    import importlib

    daemon, inward, _ = beamline
    python = importlib.import_module("pickle")
    refused = dict(view(daemon).get("refused") or {}).get("not_plain_data", 0)
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.connect(inward)
        trap = tmp_path / "trap"

        def is_refused():
            socket.send(b" start " + python.dumps(Hostile(str(trap))))
            time.sleep(0.05)
            return view(daemon)["refused"].get("not_plain_data", 0) > refused

        until(is_refused, 60, "the refusal")
    assert not trap.exists()
    publish("start", {"uid": "after", "time": time.time(), "scan_id": 7})
    until(lambda: view(daemon)["open_runs"] > 0, 60, "the next run")
    metrics = get(f"{daemon.url}/metrics")[1].decode()
    assert 'view_refused_total{reason="not_plain_data",view="bluesky_runs.1"}' in metrics
    send_frames(daemon.port, 10)
    daemon.wait_for(lambda s: s["run_metadata"].get("run_uid") == "after", 60.0, "the next uid")
    publish("stop", {"uid": "s", "run_start": "after", "time": time.time() - 100.0})


def test_a_series_without_a_run_does_not_inherit_the_last_ones(beamline, publish):
    daemon, _, _ = beamline
    publish("start", {"uid": "first", "time": time.time(), "scan_id": 8})
    until(lambda: view(daemon)["open_runs"] > 0, 60, "the run")
    send_frames(daemon.port, 10)
    daemon.wait_for(lambda s: s["run_metadata"].get("run_uid") == "first", 60.0, "the uid")
    publish("stop", {"uid": "s", "run_start": "first", "time": time.time() - 100.0})
    until(lambda: view(daemon)["open_runs"] == 0, 60, "its end")
    send_frames(daemon.port, 10)
    daemon.wait_for(lambda s: s["run_metadata"].get("run_uid") == "", 60.0, "no uid")
    assert daemon.status()["run_metadata"]["sample"] is None
