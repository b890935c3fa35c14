"""The trainer misbehaves, the device fails or hangs, weights and engines are damaged."""

import hashlib
import json
import os
import resource
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors.numpy

from helpers import faulty
from helpers.daemons import config_text, free_port, get, running, started
from helpers.faults import (
    Detector,
    acknowledged,
    assert_accounts_are_exact,
    at_rest,
)
from helpers.kills import everything_recorded, recorder_into, wait_until_recorded
from quietbeam.core.errors import EngineError
from quietbeam.model import checkpoint


class Stub:
    """A daemon whose trainer says what the test wants."""

    def __init__(self, daemon, directory, fault):
        self.daemon, self.directory, self.fault = daemon, directory, fault
        self._told = 0

    def tell(self, **event):
        path = self.directory / f"{self._told}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(event))
        new.rename(path)
        self._told += 1

    def promote(self, version, *, weight=1.0, name="weight", shape=(1,), sha256=None):
        """Offer weights as a gate that has proven them."""
        path = self.directory / f"{version}.safetensors"
        weights = {name: np.full(shape, weight, np.float32)}
        metadata = {"denoiser": "faulty"}  # as ``save`` does it, which takes no NaN
        digest = checkpoint._digest(weights, metadata)
        data = safetensors.numpy.save(weights, {**metadata, checkpoint.DIGEST: digest})
        path.write_bytes(data)
        found = hashlib.sha256(data).hexdigest()
        self.tell(
            type="decision", action="promote", version=version, checkpoint=str(path),
            sha256=sha256 or found, denoiser="faulty", reason="a test",
        )  # fmt: skip

    def wait_for_version(self, version):
        return self.daemon.wait_for(
            lambda s: (
                s["model"]["version"] == version and s["pipeline"]["model_version"] == version
            ),
            60,
            f"model {version} live",
        )


@contextmanager
def stub(tmp_path, fallback="kalman"):
    environment = faulty.offer_as_plugin(tmp_path / "site")
    directory = tmp_path / "said"
    directory.mkdir()
    port = free_port()
    more = f'[engine]\nkind = "torch"\n[fallback]\nkind = "{fallback}"\n'
    text = config_text(
        tmp_path, port, sinks=recorder_into(tmp_path / "files"), denoiser="faulty", more=more,
        run_timeout_s="30",
    )  # fmt: skip
    command = ("helpers.stub_daemon", str(directory))
    with started(tmp_path, text, port, environment, module=command) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60, "state running")
        yield Stub(daemon, directory, tmp_path / "site" / "fault")


def wait_denoised(daemon, more=20):
    before = daemon.status()["ledger"]["denoise"]["sent"]
    return daemon.wait_for(lambda s: s["ledger"]["denoise"]["sent"] >= before + more, 60)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F13",
    how="every call of the live network raises 'CUDA error', from one frame to the next",
    criterion="the classical denoiser takes over, no frame lost; then the model comes back",
)
def test_a_device_that_fails_costs_no_frame_and_the_model_comes_back(tmp_path, measured):
    with stub(tmp_path) as it, Detector(it.daemon.port, 50) as detector:
        it.daemon.wait_for(lambda s: acknowledged(s) > 0, 60)
        it.promote(1)
        it.wait_for_version(1)
        began = time.monotonic()
        it.fault.write_text("fail")
        status = it.daemon.wait_for(lambda s: s["pipeline"]["model_version"] == 0, 60)
        measured.recovered_s = time.monotonic() - began
        assert "engine_lost" in status["alarms"]
        it.fault.unlink()
        it.wait_for_version(1)
        it.daemon.wait_for(lambda s: "engine_lost" not in s["alarms"], 60)
        sent = detector.stop()
        wait_until_recorded(it.daemon, sent, 60)
        status = it.daemon.wait_for(
            lambda s: s["ledger"]["denoise"]["received"] == sent and s["pipeline"]["backlog"] == 0
        )
        assert status["ledger"]["denoise"]["dropped"] == {}
        assert it.daemon.stop() == 0, it.daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.fault(
    "F13",
    how="every call of the classical denoiser raises as well",
    criterion="the daemon lives, every raw frame is recorded, what was not cleaned is counted",
)
def test_where_nothing_can_be_denoised_raw_frames_are_recorded_all_the_same(tmp_path, measured):
    with stub(tmp_path, "faulty_filter") as it, Detector(it.daemon.port, 50) as detector:
        wait_for_first = 10
        it.daemon.wait_for(
            lambda s: s["ledger"].get("denoise", {}).get("sent", 0) > wait_for_first, 60
        )
        it.fault.write_text("fail")
        it.daemon.wait_for(lambda s: s["ledger"]["denoise"]["dropped"].get("failed", 0) >= 3, 60)
        sent = detector.stop()
        wait_until_recorded(it.daemon, sent, 60)
        it.fault.unlink()
        assert it.daemon.stop() == 0, it.daemon.log()
        [last] = it.daemon.events("daemon_stopped")
        assert last["stages"]["denoise"]["in_flight"] == 0
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F13",
    how="the live network does not return for as long as it takes to be noticed",
    criterion="raw recording 100 %; /healthz fails, so that the watchdog is fed no more",
)
def test_a_device_that_hangs_stops_no_recording_and_is_told(tmp_path, measured):
    with stub(tmp_path) as it, Detector(it.daemon.port, 50) as detector:
        it.daemon.wait_for(lambda s: acknowledged(s) > 0, 60)
        it.promote(1)
        it.wait_for_version(1)
        began = time.monotonic()
        it.fault.write_text("hang")
        it.daemon.wait_for(lambda _s: get(f"{it.daemon.url}/healthz")[0] == 503, 120, "a 503")
        measured.recovered_s = time.monotonic() - began
        sent = detector.stop()
        wait_until_recorded(it.daemon, sent, 60)
        it.fault.unlink()
        it.daemon.wait_for(lambda _s: get(f"{it.daemon.url}/healthz")[0] == 200, 120, "a 200")
        assert it.daemon.stop() == 0, it.daemon.log()
    measured.note = "recovery: until it is told"
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.fault(
    "F11",
    how="weights of NaN, another name, another shape, another sha256, cut off; garbled events",
    criterion="each refused; the version in use stays; frames go on",
)
def test_garbage_from_the_trainer_never_reaches_the_stream(tmp_path, measured):
    with stub(tmp_path) as it, Detector(it.daemon.port, 50) as detector:
        it.daemon.wait_for(lambda s: acknowledged(s) > 0, 60)
        it.promote(1)
        it.wait_for_version(1)
        it.promote(2, weight=np.nan)
        it.promote(3, name="bias")
        it.promote(4, shape=(2,))
        it.promote(5, sha256="0" * 64)
        it.tell(type="decision", action="promote", version=6, checkpoint="/nowhere", reason="")
        it.daemon.wait_for(lambda s: s["model"]["swaps"]["refused"] == 5, 60)
        it.tell(type="decision")
        it.tell(nonsense=[1, 2])
        it.daemon.wait_for(lambda s: s["children"]["trainer"]["garbled"] >= 1, 30)
        assert wait_denoised(it.daemon)["model"]["version"] == 1
        it.promote(7)
        it.wait_for_version(7)
        sent = detector.stop()
        wait_until_recorded(it.daemon, sent, 60)
        assert it.daemon.stop() == 0, it.daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.fault(
    "F11",
    how="the real trainer: SIGSEGV, SIGSTOP for 5 s, no memory left (RLIMIT_AS), NaN frames",
    criterion="started again with its reason; no model changes by it; no frame lost or uncleaned",
)
def test_a_trainer_that_dies_hangs_or_starves_costs_no_frame(tmp_path, measured):
    sinks = recorder_into(tmp_path / "files")
    with (
        running(tmp_path, sinks=sinks, denoiser="quiet", run_timeout_s="30") as daemon,
        Detector(daemon.port, 20) as detector,
    ):

        def trainer(status):
            return status["children"]["trainer"]

        daemon.wait_for(lambda s: trainer(s)["state"] == "running", 90, "trainer running")
        os.kill(trainer(daemon.status())["pid"], signal.SIGSEGV)
        daemon.wait_for(lambda s: trainer(s)["restarts"]["signal"] == 1)
        status = daemon.wait_for(lambda s: trainer(s)["state"] == "running", 90)
        pid = trainer(status)["pid"]
        os.kill(pid, signal.SIGSTOP)
        wait_denoised(daemon, 100)
        os.kill(pid, signal.SIGCONT)
        resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
        daemon.wait_for(lambda s: sum(trainer(s)["restarts"].values()) >= 2, 120, "out of memory")
        daemon.wait_for(lambda s: trainer(s)["state"] == "running", 120)
        sent = detector.stop()
        status = wait_until_recorded(daemon, sent, 60)
        assert status["model"]["swaps"]["promoted"] == status["model"]["actions"]["promote"]
        measured.note = f"restarts {trainer(status)['restarts']}"
        assert daemon.stop() == 0, daemon.log()
        [last] = daemon.events("daemon_stopped")
    assert last["stages"]["denoise"]["dropped"] == {}
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.fault(
    "F14",
    how="a checkpoint with one bit turned at 100 places, and cut off at 100",
    criterion="never used: refused by its checksum, or by its reader; the live weights stay",
)
def test_damaged_weights_are_never_used(tmp_path, measured):
    with stub(tmp_path) as it, Detector(it.daemon.port, 50) as detector:
        it.daemon.wait_for(lambda s: acknowledged(s) > 0, 60)
        it.promote(1)
        it.wait_for_version(1)
        good = (it.directory / "1.safetensors").read_bytes()
        sha256 = hashlib.sha256(good).hexdigest()
        rng = np.random.default_rng(0)
        unreadable = 0
        for number in range(200):
            damaged = bytearray(good)
            at = int(rng.integers(len(good)))
            if number % 2:
                damaged[at] ^= 1 << int(rng.integers(8))
            else:
                del damaged[at:]
            path = it.directory / f"damaged{number}.safetensors"
            path.write_bytes(damaged)
            try:
                checkpoint.load(path)
            except EngineError:
                unreadable += 1
            it.tell(
                type="decision", action="promote", version=2 + number, checkpoint=str(path),
                sha256=sha256, denoiser="faulty", reason="damaged",
            )  # fmt: skip
        status = it.daemon.wait_for(lambda s: s["model"]["swaps"]["refused"] == 200, 90)
        assert status["model"]["version"] == 1
        assert unreadable >= 100
        measured.note = f"{unreadable} of 200 unreadable as well"
        sent = detector.stop()
        wait_until_recorded(it.daemon, sent, 60)
        assert it.daemon.stop() == 0, it.daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "F14",
    how="every file of the cache of compiled networks replaced by rubbish between two starts",
    criterion="the start is not held up: frames are cleaned by the classical denoiser meanwhile",
)
def test_a_damaged_engine_cache_holds_nothing_up(tmp_path, measured):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    options = {"denoiser": "quiet", "sinks": recorder_into(tmp_path / "files")}
    with running(tmp_path, environment, **options) as daemon:
        daemon.wait_for(lambda s: s["children"]["trainer"]["state"] == "running", 120)
        assert daemon.stop() == 0
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached
    for path in cached:
        path.write_bytes(b"rubbish" * 100)
    began = time.monotonic()
    with running(tmp_path, environment, **options) as daemon:
        measured.recovered_s = time.monotonic() - began
        with Detector(daemon.port, 50, frames=100) as detector:
            sent = detector.finish()
            status = wait_until_recorded(daemon, sent, 60)
            status = daemon.wait_for(lambda s: at_rest(s) and s["run"] is None, 60)
        assert status["ledger"]["denoise"]["sent"] == sent
        assert_accounts_are_exact(status)
        measured.note = f"{len(cached)} files; recovery is the start"
        assert daemon.stop() == 0, daemon.log()
    everything_recorded(measured, tmp_path / "files", sent)
