"""More frames than the denoiser can take: what is given up, in which order, and what never is."""

import json
import os
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
import zmq

from helpers.daemons import config_text, free_port, get, send_frames, started
from helpers.overload import Gather, loaded, numbered, offer_as_plugin
from helpers.recordings import sink_process
from helpers.waiting import until
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.ring import Kind, RingReader
from quietbeam.registry import find

Zmq = find("sinks", "zmq", SinkPlugin)
Hdf5 = find("sinks", "hdf5", SinkPlugin)
ORDER = ["display", "training", "analyses", "denoising"]
FRAME_S = 0.05
"""What the slow denoiser takes: it can do 20 frames a second."""


def assert_raw_is_complete(directory, frames):
    """Every frame is in the recording, bit for bit."""
    [path] = directory.glob("*.h5")
    with h5py.File(path) as file:
        ids = file["entry/raw/frame_id"][:].tolist()
        assert ids == list(range(frames))
        for row in range(0, frames, 7):
            np.testing.assert_array_equal(file["entry/raw/data"][row], numbered(row).pixels)


def overload(tmp_path, factor, seconds, calm=False):
    """Load the denoiser ``factor`` times over; with ``calm``, then hardly until all is normal.

    Gives the states it went through, and how long after the load the last one came.
    """
    rate_hz = factor / FRAME_S
    phases = [(round(rate_hz * seconds), rate_hz), *([(1000, 5.0)] if calm else [])]
    all_of_it, view = Gather(), Gather(policy="newest")
    directory = tmp_path / "recording"
    directory.mkdir()
    settings = {"directory": directory, "reserve_bytes": 0, "flush_interval_s": 0.1}
    with loaded(tmp_path, phases, frame_s=FRAME_S, sinks=[all_of_it, view]) as running:
        rings = (running.rings.raw, running.rings.clean)
        with sink_process(rings, settings) as recorder:
            running.start()
            began_s = time.monotonic()
            if calm:
                until(lambda: running.states()[-1:] == ["normal"], seconds + 30)
                running.pipeline.stop()
            running.join(3 * seconds + 30)
            recorder.wait_for(lambda event: event["type"] == "finished")
            assert recorder.stop() == 0
        running.assert_accounts_are_exact()
    stages = running.pipeline.ledger.stages()
    assert_raw_is_complete(directory, stages["ingest"].received)
    assert_what_was_given_up_adds_up(running.pipeline.ledger, all_of_it, view)
    assert running.states()[:4] == ORDER
    return running.states(), running.changes[-1][1] - (began_s + seconds)


def assert_what_was_given_up_adds_up(ledger, all_of_it, view):
    """Everything that was given up was counted, by reason, and nothing else was."""
    stages = ledger.stages()
    denoise, shown = stages["denoise"], stages["gather.1"]
    assert denoise.received == stages["ingest"].received
    assert denoise.dropped == {"overload": denoise.dropped["overload"]}
    assert denoise.sent == len(all_of_it.indices) == stages["gather.0"].sent
    assert shown.dropped == {"shed": len(all_of_it.indices) - len(view.indices)}
    assert shown.dropped["shed"] > 0
    unanalysed = set(all_of_it.indices) - set(all_of_it.analysed)
    assert ledger.notes("shed") == {"analyses": len(unanalysed)}
    assert unanalysed


def test_under_load_display_training_analyses_and_denoising_are_given_up_in_this_order(tmp_path):
    overload(tmp_path, 10, 0.7)  # twice and five times: below, and in the slow test


def test_ten_seconds_after_the_load_all_is_as_before(tmp_path):
    states, after_s = overload(tmp_path, 5, 0.7, calm=True)
    assert states == [*ORDER, "analyses", "training", "display", "normal"]
    assert after_s < 10


@pytest.mark.slow
def test_denoising_is_given_up_before_a_recorder_that_lags_loses_a_raw_frame(tmp_path):
    (tmp_path / "recording").mkdir()
    recorder, is_quick_again = Hdf5(directory=tmp_path / "recording"), threading.Event()
    load = {
        "frame_s": 0.0,
        "backlog": 1000,
        "shape": (128, 128),
        "ring_mib": 4,  # 127 frames: the first phase takes 90 % of it
        "sinks": [recorder],
        "begins": lambda phase: phase == 0 or is_quick_again.is_set(),
    }
    with loaded(tmp_path, [(115, 400.0), (600, 50.0)], **load) as running:
        reader = RingReader(running.rings.raw.path, "hdf5.0", from_first=True)
        running.start()

        def denoising_is_given_up():
            reader.beat()  # it lives, and its disk is slow
            return "denoising" in running.states()

        until(denoising_is_given_up, 60)
        assert running.states()[:4] == ORDER
        is_quick_again.set()
        read = 0
        while not reader.finished:
            read += getattr(reader.read(0.05), "kind", None) == Kind.FRAME
        running.join()
        denoise = running.pipeline.ledger.stages()["denoise"]
        assert (read, reader.lost) == (715, 0)
        assert denoise.dropped["recorder_behind"] > 0
        assert set(denoise.dropped) == {"recorder_behind"}
        assert denoise.sent > 400  # it was taken up again
        assert running.states()[-1] == "normal"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("factor", [2, 5, 10])
def test_a_minute_of_overload_loses_no_raw_frame_and_leaves_no_trace(tmp_path, factor):
    states, after_s = overload(tmp_path, factor, 60.0, calm=True)
    assert states[-1] == "normal"
    assert after_s < 10


@contextmanager
def subscriber(address, reads=True):
    """Collects the sequence numbers it is sent; or never reads at all, as if it were stopped."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.set(zmq.RCVHWM, 1000 if reads else 8)
    socket.subscribe(b"")
    socket.connect(address)
    numbers, stop = [], threading.Event()

    def collect():
        while not stop.is_set():
            if socket.poll(50):
                numbers.append(json.loads(socket.recv_multipart()[0])["frame"])

    thread = threading.Thread(target=collect)
    if reads:
        thread.start()
    try:
        yield numbers
    finally:
        stop.set()
        if reads:
            thread.join(10)
        context.destroy(linger=0)


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def stalled_subscribers(tmp_path, frames, rate_hz):
    """Publish to four subscribers, two of which never read; give resident memory over time."""
    addresses = {what: f"ipc://{tmp_path}/{what}" for what in ("clean", "raw")}
    queue = {"queue_messages": 64}  # more than a second: a busy machine is nobody's fault
    sinks = [Zmq(address=address, what=what, **queue) for what, address in addresses.items()]
    load = {"frame_s": 0.001, "backlog": 4000, "shape": (128, 128), "ring_mib": 4}
    memory = []
    with ExitStack() as all_:
        running = all_.enter_context(loaded(tmp_path, [(frames, rate_hz)], sinks=sinks, **load))
        got = [all_.enter_context(subscriber(address)) for address in addresses.values()]
        for address in addresses.values():
            all_.enter_context(subscriber(address, reads=False))
        running.start()
        while running.pipeline.snapshot()["source"] != "ended":
            memory.append(resident_mib())
            time.sleep(0.1)
        running.join()
        until(lambda: all(numbers and numbers[-1] == frames - 1 for numbers in got))
        running.assert_accounts_are_exact()
    for numbers in got:
        # what was sent before a subscriber was there is nobody's fault
        assert numbers == list(range(numbers[0], frames))
        assert numbers[0] < frames / 2
    return memory


def test_a_stopped_subscriber_costs_no_memory_and_the_others_get_everything(tmp_path):
    memory = stalled_subscribers(tmp_path, 150, 50)
    settled = memory[len(memory) // 2 :]
    assert max(settled) < 1.05 * settled[0], settled


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stopped_subscriber_costs_no_memory_in_two_minutes(tmp_path):
    memory = stalled_subscribers(tmp_path, 6_000, 50)
    settled = memory[len(memory) // 10 :]
    assert max(settled) < 1.05 * settled[0], (settled[0], max(settled))


class Puller:
    """Pulls only while it is let."""

    def __init__(self, address):
        self.numbers = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, 1)
        self._socket.connect(address)

    def pull(self, done, seconds=30.0):
        def more():
            while self._socket.poll(20):
                self.numbers.append(json.loads(self._socket.recv_multipart()[0])["frame"])
            return done()

        until(more, seconds)

    def close(self):
        self._context.destroy(linger=0)


@pytest.mark.parametrize("what", ["clean", "raw"])
def test_a_lossless_output_waits_for_a_consumer_that_pauses(tmp_path, what):
    address, caught_up = f"ipc://{tmp_path}/push", threading.Event()
    sink = Zmq(address=address, socket="push", policy="lossless", what=what, buffer_frames=400)
    load = {"frame_s": 0.001, "sinks": [sink], "backlog": 4000, "shape": (128, 128)}
    load["begins"] = lambda phase: phase == 0 or caught_up.is_set()
    with (
        loaded(tmp_path, [(100, 100.0), (1, 100.0)], **load) as running,
        closing(Puller(address)) as puller,
    ):
        running.start()
        stages = running.pipeline.ledger.stages
        until(lambda: "ingest" in stages() and stages()["ingest"].sent == 100)  # it slept meanwhile
        puller.pull(lambda: len(puller.numbers) == 100, 60)
        assert running.pipeline.ledger.stages()["zmq.0"].dropped == {}
        caught_up.set()
        running.join()
        running.assert_accounts_are_exact()
    assert puller.numbers == list(range(100))


def test_a_lossless_output_whose_consumer_never_comes_back_counts_what_it_gives_up(tmp_path):
    address = f"ipc://{tmp_path}/push"
    sink = Zmq(address=address, socket="push", policy="lossless", buffer_frames=10)
    load = {"frame_s": 0.001, "sinks": [sink], "backlog": 4000, "shape": (128, 128)}
    with loaded(tmp_path, [(100, 200.0)], **load) as running, closing(Puller(address)):
        running.start()
        running.join()
        running.assert_accounts_are_exact()
    account = running.pipeline.ledger.stages()["zmq.0"]
    assert set(account.dropped) == {"full", "slow"}
    assert account.sent + sum(account.dropped.values()) == 100


def test_raw_frames_go_out_whatever_the_denoiser_gives_up(tmp_path):
    address, caught_up = f"ipc://{tmp_path}/push", threading.Event()
    sinks = [Zmq(address=address, socket="push", policy="lossless", what="raw"), Gather()]
    load = {"frame_s": FRAME_S, "sinks": sinks}
    load["begins"] = lambda phase: phase == 0 or caught_up.is_set()
    with (
        loaded(tmp_path, [(150, 150.0), (1, 100.0)], **load) as running,
        closing(Puller(address)) as puller,
    ):
        running.start()
        puller.pull(lambda: len(puller.numbers) == 150, 60)
        caught_up.set()
        running.join()
    assert puller.numbers == list(range(150))
    assert running.pipeline.ledger.stages()["denoise"].dropped["overload"] > 0


def test_every_nth_frame_goes_to_an_output_that_wants_no_more(tmp_path):
    sinks = []
    with ExitStack() as all_:
        got = []
        for kind in ("clean", "raw"):
            address = f"ipc://{tmp_path}/{kind}"
            sinks.append(Zmq(address=address, what=kind, policy="every-nth", every_nth=5))
            got.append(all_.enter_context(subscriber(address)))
        running = all_.enter_context(
            loaded(tmp_path, [(200, 100.0)], frame_s=0.001, sinks=sinks, backlog=4000)
        )
        running.start().join()
        until(lambda: all(numbers and numbers[-1] == 195 for numbers in got))
        running.assert_accounts_are_exact()
    for label in ("zmq.0", "zmq.1"):
        assert running.pipeline.ledger.stages()[label].dropped["every_nth"] == 160
    for numbers in got:
        assert set(np.diff(numbers)) == {5}


@pytest.mark.slow
def test_a_daemon_tells_what_it_gives_up_and_lets_training_rest(tmp_path):
    offer_as_plugin(tmp_path / "site")
    helpers = Path(__file__).parents[1]
    path = os.pathsep.join((str(tmp_path / "site"), str(helpers), os.environ.get("PYTHONPATH", "")))
    port = free_port()
    text = config_text(tmp_path, port, more="", sinks="").replace("4000", "16")
    text = text.replace("[calibration]", '[fallback]\nkind = "slow"\nframe_s = 0.05\n[calibration]')
    with started(tmp_path, text, port, {"PYTHONPATH": path}) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60.0)
        sending = threading.Thread(target=send_frames, args=(port, 300), kwargs={"rate_hz": 100})
        sending.start()
        status = daemon.wait_for(lambda s: s["degradation"] == "denoising")
        assert list(status["shedding"]["since_unix_s"]) == ORDER
        daemon.wait_for(lambda s: s["trainer"]["frozen_by"] == ["overload"])
        metrics = get(f"{daemon.url}/metrics")[1]
        assert b'quietbeam_degradation_state{state="denoising"} 1.0' in metrics
        assert b'quietbeam_degradation_since_timestamp_seconds{what="display"}' in metrics
        sending.join()
        status = daemon.wait_for(lambda s: s["degradation"] == "normal", 10.0)
        assert status["shedding"]["since_unix_s"] == {}
        daemon.wait_for(lambda s: s["trainer"]["frozen_by"] == [])
        metrics = get(f"{daemon.url}/metrics")[1]
        assert b'quietbeam_degradation_episodes_total{what="denoising"} 1.0' in metrics
        assert b'degradation_since_timestamp_seconds{what="display"}' not in metrics
        assert daemon.stop() == 0, daemon.log()
