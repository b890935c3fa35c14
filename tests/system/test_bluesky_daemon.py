"""A real daemon publishes its runs: encrypted, to a dispatcher of bluesky."""

import json

import h5py
import pytest
import zmq.auth

from helpers.daemons import free_port, running, send_frames
from helpers.documents import Received
from helpers.waiting import until

pytest.importorskip("event_model", reason="needs the extra [bluesky]")
pytest.importorskip("bluesky", reason="needs the extra [bluesky]")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    (folder / "clients").mkdir(parents=True)
    for name in ("daemon", "viewer"):
        zmq.auth.create_certificates(folder, name)
        (folder / f"{name}.key_secret").chmod(0o600)
    (folder / "viewer.key").rename(folder / "clients" / "viewer.key")
    return folder


def test_runs_of_a_daemon_arrive_encrypted_with_all_their_rows(tmp_path, keys):
    from bluesky.callbacks.zmq import ClientCurve

    address = f"tcp://127.0.0.1:{free_port()}"
    sinks = f"""
[[sinks]]
kind = "hdf5"
directory = "{tmp_path / "recordings"}"
flush_interval_s = 0.1

[[sinks]]
kind = "bluesky"
address = "{address}"
bind = true
connect_s = 60
curve_secret_key = "{keys / "daemon.key_secret"}"
curve_clients = "{keys / "clients"}"
"""
    curve = ClientCurve(keys / "viewer.key_secret", keys / "daemon.key")
    with (
        Received(address, prefix=b"quietbeam", curve_config=curve) as received,
        running(tmp_path, sinks=sinks) as daemon,
    ):
        send_frames(daemon.port, 40)
        stop = received.wait_for("stop", 1, 60)[0]
        assert stop["num_events"]["primary"] == stop["num_events"]["raw"] == 40
        start = received.named("start")[0]
        assert (start["plan_name"], stop["run_start"]) == ("quietbeam", start["uid"])
        assert received.named("event")
        until(lambda: daemon.status()["outputs"])
        assert daemon.stop() == 0
    sidecar = tmp_path / "recordings" / "bluesky" / f"{start['uid']}.jsonl"
    kept = [json.loads(line) for line in sidecar.read_text().splitlines()]
    heard = json.loads(json.dumps([[name, doc] for name, doc in received.documents]))
    assert kept == heard
    with h5py.File(sidecar.with_name(f"{start['uid']}_1.h5"), "r") as file:
        assert len(file["entry/clean/data"]) == 40
