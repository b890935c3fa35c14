"""The recorder as part of a real daemon, fed over a real socket."""

import os
import signal
import threading
from pathlib import Path

import numpy as np

from helpers.daemons import frame_pixels, running, send_frames
from helpers.processes import descendants
from quietbeam.offline.recording import Recording


def recorder_pid(daemon):
    """Process id of the daemon's recorder."""
    for pid in descendants(daemon.process.pid)[1:]:
        if b"sink_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("the daemon has no recorder")


def test_a_daemon_whose_recorder_is_killed_records_every_frame_raw_and_clean(tmp_path):
    directory = tmp_path / "recordings"
    sinks = f'[[sinks]]\nkind = "hdf5"\ndirectory = "{directory}"\nreserve_bytes = 0\n'
    with running(tmp_path, sinks=sinks) as daemon:
        sender = threading.Thread(target=send_frames, args=(daemon.port, 300))
        sender.start()
        (output,) = daemon.wait_for(
            lambda s: any(o["totals"].get("raw_written", 0) > 50 for o in s["outputs"].values()),
            what="recording",
        )["outputs"].values()
        assert output["status"]["state"] == "recording"
        os.kill(recorder_pid(daemon), signal.SIGKILL)
        sender.join()
        status = daemon.wait_for(
            lambda s: (
                any(o["finished"] for o in s["outputs"].values())
                and all(a["in_flight"] == 0 for a in s["output_accounts"].values())
            ),
            30,
            "the end of the run",
        )
        (output,) = status["outputs"].values()
        account = status["output_accounts"]["hdf5.0:raw"]
        assert account == {"received": 300, "sent": 300, "dropped": {}, "in_flight": 0}
        assert daemon.stop() == 0, daemon.log()
    (finished,) = output["finished"]
    assert (finished["raw"], finished["clean"], finished["missing"]) == (300, 300, 0)
    assert [str(path) for path in directory.iterdir()] == [finished["file"]]
    with Recording(finished["file"]) as recording:
        assert recording.column("raw/frame_id").tolist() == list(range(300))
        assert recording.column("clean/frame_id").tolist() == list(range(300))
        for row in range(0, 300, 7):
            np.testing.assert_array_equal(recording.raw[row], frame_pixels(row))
        assert set(recording.denoisers) == {"kalman"}
        assert 'kind = "kalman"' in recording.provenance.config
        assert recording.provenance.counts["written"] == 300
        assert recording.ledger["source", "received"] == 300
        assert recording.ledger["source", "missing"] == 0
        for stage in ("ingest", "denoise", "publish"):
            assert recording.ledger[stage, "sent"] == 300
            assert recording.ledger[stage, "in_flight"] == 0
        assert "quality.psnr_estimated_db" in recording.metrics
