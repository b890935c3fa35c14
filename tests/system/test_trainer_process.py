"""The trainer as the daemon sees it: a child process, a ring, JSON lines."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from helpers import trainer_toys
from helpers.trainer_toys import CONFIG, ToyNet, offer_as_plugin
from quietbeam import DenoiserPlugin
from quietbeam.core import records, ring
from quietbeam.core.events import Frame, RunStart
from quietbeam.model import checkpoint
from quietbeam.model.torch_engine import load_weights
from quietbeam.registry import find
from quietbeam.testing.phantoms import Phantom

GAIN, OFFSET = 0.0, 9.0
NOISE_SD = 3.0
SHAPE = (64, 64)
TESTS = Path(trainer_toys.__file__).parents[1]


class Scene:
    """Smooth structures that move by two pixels a frame, too fast for a filter without lag."""

    def __init__(self, seed=0):
        picture = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 4, mode="wrap")
        self.picture = 500 + 40 * picture / picture.std()

    def truth(self, index):
        return np.roll(self.picture, 2 * index, axis=1)

    def frame(self, index):
        noise = np.random.default_rng([7, index]).normal(0, NOISE_SD, SHAPE)
        return np.rint(self.truth(index) + noise).astype(np.uint16)


class Child:
    """One trainer process and what it said."""

    def __init__(self, site: Path):
        paths = [str(TESTS), str(site)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quietbeam.trainer.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.events, self.log = queue.SimpleQueue(), []
        self._threads = [
            threading.Thread(target=self._listen),
            threading.Thread(target=self._keep_log),
        ]
        for thread in self._threads:
            thread.start()

    def say(self, kind, **fields):
        self.process.stdin.write(json.dumps({"type": kind, **fields}) + "\n")
        self.process.stdin.flush()

    def newest(self):
        found = []
        while not self.events.empty():
            found.append(self.events.get())
        return found

    def hang_up(self):
        self.process.stdin.close()
        return self.process.wait(20)

    def end(self):
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()

    def _listen(self):
        for line in self.process.stdout:
            self.events.put(json.loads(line))

    def _keep_log(self):
        for line in self.process.stderr:
            self.log.append(line)


class Bench:
    """A ring, a scene on it, and trainers that read it."""

    def __init__(self, tmp_path, cache):
        self.site, self.cache = tmp_path / "site", cache
        offer_as_plugin(self.site)
        self.checkpoints = tmp_path / "checkpoints"
        self.writer = ring.create(tmp_path / "raw.ring", 16 << 20)
        self.children = []
        self.index = 0
        self.run = ""

    def start(self, config=CONFIG):
        child = Child(self.site)
        self.children.append(child)
        child.say(
            "init",
            raw_ring=str(self.writer.path),
            config="bench.toml",
            config_text=config,
            checkpoints=str(self.checkpoints),
            cache=str(self.cache),
        )
        if self.run:
            self.calibrate(child)
        return child

    def begin(self, child, run="first", dtype="u2", noise=(GAIN, OFFSET)):
        self.run, self.index, self.noise = run, 0, noise
        records.put(self.writer, RunStart(run=run, shape=SHAPE, dtype=np.dtype(dtype)))
        self.calibrate(child)

    def calibrate(self, child):
        gain, offset = self.noise
        child.say("calibration", run=self.run, gain=gain, offset_variance=offset, impulsive=False)

    def feed(self, child, frames, until, timeout_s=110.0):
        """Put 100 frames a second until an event is wanted; give all events up to it.

        What is promoted, demoted or chosen is confirmed at once, as the daemon does.
        """
        events, deadline = [], time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pixels = frames(self.index)
            event = Frame(run=self.run, index=self.index, time_ns=0, received_ns=0, pixels=pixels)
            records.put(self.writer, event)
            self.index += 1
            for event in child.newest():
                events.append(event)
                if event["type"] == "decision" and event["action"] != "reject":
                    goes = event["action"] in {"fallback", "demote"}
                    fallback = event["classical" if goes else "fallback"]
                    child.say("live", version=event["version"], fallback=fallback)
                if until(event):
                    return events
            assert child.process.poll() is None, "".join(child.log)
            time.sleep(0.01)
        reasons = [event["reason"] for event in events if event["type"] == "decision"]
        pytest.fail(f"did not come: {events[-1:]} {reasons} {child.log[-3:]}")

    def close(self):
        for child in self.children:
            child.end()
        self.writer.unlink()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path, cache):
    bench = Bench(tmp_path, cache)
    yield bench
    bench.close()


def is_type(kind):
    return lambda event: event["type"] == kind


def promoted(event):
    return event["type"] == "decision" and event["action"] == "promote"


def judged(event):
    """A decision about a network."""
    return event["type"] == "decision" and event["action"] != "fallback"


def after(seconds):
    """True for the first event so much later."""
    deadline = time.monotonic() + seconds
    return lambda _: time.monotonic() > deadline


def blind_error(path, scene):
    """Mean squared error of a checkpoint's blind mean against the truth, in noise variances."""
    network = ToyNet()
    load_weights(network, checkpoint.load(Path(path))[0])
    return error_of(network, scene)


def classical_error(scene):
    return error_of(find("denoisers", "kalman", DenoiserPlugin)().build(), scene)


def error_of(network, scene):
    frames = np.stack([scene.frame(i) for i in range(5000, 5012)]).astype(np.float32) / NOISE_SD
    truth = np.stack([scene.truth(i) for i in range(5000, 5012)]) / NOISE_SD
    with torch.no_grad():
        estimate = network.blind_estimate(torch.from_numpy(frames)).numpy()
    return float(np.mean((estimate - truth)[1:-1] ** 2))


def test_a_stream_is_learned_promoted_and_a_killed_trainer_goes_on(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child)
    events = bench.feed(child, scene.frame, promoted)
    assert events[0]["type"] == "ready"
    assert Path(events[0]["onnx"]).stat().st_size > 0
    assert os.sched_getscheduler(child.process.pid) == os.SCHED_IDLE

    decision = events[-1]
    assert (decision["version"], decision["denoiser"]) == (1, "toy")
    assert decision["gain"] > 2 * decision["standard_error"] > 0
    path = Path(decision["checkpoint"])
    assert path == bench.checkpoints / "toy_000001.safetensors"
    assert checkpoint.sha256(path) == decision["sha256"]
    provenance = checkpoint.load(path)[1]
    assert provenance["run"] == "first"
    assert provenance["parent_version"] == "0"
    assert int(provenance["steps"]) >= 50
    assert float(provenance["gate.gain"]) == decision["gain"]
    assert blind_error(path, scene) < classical_error(scene)

    assert bench.feed(child, scene.frame, is_type("progress"))[-1]["steps"] > 0
    saved = bench.feed(child, scene.frame, is_type("saved"))[-1]["steps"]
    child.process.send_signal(signal.SIGKILL)
    child.process.wait()

    child = bench.start()
    child.say("live", version=1)
    events = bench.feed(child, scene.frame, judged)
    progress = [event for event in events if event["type"] == "progress"]
    assert all(event["steps"] >= saved for event in progress)
    # numbers go on behind all that was promoted before, however far it had come
    assert events[-1]["version"] == 0 or events[-1]["version"] >= 2
    assert child.hang_up() == 0


@pytest.mark.slow
def test_the_trainer_names_the_classical_denoiser_that_is_better_on_this_stream(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child)
    chosen = bench.feed(child, lambda i: still(scene, i), lambda e: e.get("action") == "fallback")
    event = chosen[-1]
    assert (event["denoiser"], event["fallback"], event["version"]) == ("svd", "kalman", 0)
    assert event["gain"] > 2 * event["standard_error"] > 0
    assert event["loss_classical"] < event["loss_live"]
    later = bench.feed(child, lambda i: still(scene, i), judged)[-1]
    assert later["classical"] == "svd"


def still(scene, index):
    """A scene that does not move, measured anew."""
    noise = np.random.default_rng([8, index]).normal(0, NOISE_SD, SHAPE)
    return np.rint(scene.truth(0) + noise).astype(np.uint16)


def test_a_configuration_that_cannot_work_ends_with_78(bench):
    child = bench.start(CONFIG.replace("batch = 8", "batch = 0"))
    assert child.process.wait(30) == 78
    assert "batch" in "".join(child.log)


def test_hanging_up_before_anything_was_said_is_no_error(bench):
    child = Child(bench.site)
    bench.children.append(child)
    assert child.hang_up() == 0


@pytest.mark.slow
def test_freeze_resume_reset_and_nonsense_do_what_they_say(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child)
    bench.feed(child, scene.frame, lambda e: e.get("steps", 0) > 20)
    child.process.stdin.write('not json\n{"type": 3}\n[1]\n')
    child.say("calibration", run="x")
    child.say("unheard_of")
    child.say("freeze")
    frozen = bench.feed(child, scene.frame, lambda e: e.get("frozen"))[-1]["steps"]
    later = bench.feed(child, scene.frame, after(3))
    assert all(e["steps"] == frozen for e in later if e["type"] == "progress")
    child.say("checkpoint")
    path = bench.feed(child, scene.frame, is_type("saved"))[-1]["checkpoint"]
    assert checkpoint.load(Path(path))[1]["steps"] == str(frozen)
    child.say("reset")
    bench.feed(child, scene.frame, lambda e: e.get("steps") == 0)
    assert not Path(path).exists()
    child.say("resume")
    bench.feed(child, scene.frame, lambda e: e["type"] == "progress" and e["steps"] > 0)
    log = "".join(child.log)
    assert log.count("bad_command") == 3
    assert log.count("unknown_command") == 2
    child.say("stop")
    assert child.process.wait(20) == 0


@pytest.mark.slow
def test_frames_of_nothing_but_nan_neither_stop_training_nor_spoil_it(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child, dtype="f4")

    def frames(index):
        if index % 50 > 40:
            return np.full(SHAPE, np.nan, np.float32)
        return scene.frame(index).astype(np.float32)

    decision = bench.feed(child, frames, promoted)[-1]
    assert blind_error(decision["checkpoint"], scene) < classical_error(scene)
    progress = bench.feed(child, frames, is_type("progress"))[-1]
    assert progress["bad_steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["shuffled", "another scene", "constant", "saturated"])
def test_poisoned_data_never_promote_a_model_that_is_worse(bench, poison):
    scene, other = Scene(), Scene(seed=5)
    rng = np.random.default_rng(0)

    def poisoned(index):
        match poison:
            case "shuffled":
                return rng.permuted(scene.frame(int(rng.integers(10_000))).reshape(-1)).reshape(
                    SHAPE
                )
            case "another scene":
                return other.frame(3 * index)
            case "constant":
                return np.full(SHAPE, 500, np.uint16)
            case _:
                return np.full(SHAPE, 65535, np.uint16)

    child = bench.start()
    bench.begin(child)
    learned = bench.feed(child, scene.frame, promoted)
    learned += bench.feed(child, scene.frame, after(10))  # and guard frames for the older set
    good = blind_error(list(filter(promoted, learned))[-1]["checkpoint"], scene)
    events = bench.feed(child, poisoned, after(15))
    for event in filter(promoted, events):
        assert blind_error(event["checkpoint"], scene) < 1.1 * good, event
    progress = [e for e in events if e["type"] == "progress"]
    assert progress[-1]["steps"] > progress[0]["steps"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_and_an_older_one_used(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child)
    first = bench.feed(child, scene.frame, promoted)[-1]
    assert child.hang_up() == 0
    state = bench.checkpoints / "toy_training.safetensors"
    state.write_bytes(state.read_bytes()[:-7])
    steps = int(checkpoint.load(Path(first["checkpoint"]))[1]["steps"])
    child = bench.start()
    child.say("live", version=1)
    progress = bench.feed(child, scene.frame, is_type("progress"))[-1]
    assert progress["steps"] >= steps
    assert "checkpoint_refused" in "".join(child.log)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_leave_a_trainer_that_works(bench):
    scene = Scene()
    child = bench.start()
    bench.begin(child)
    for kill in range(20):
        bench.feed(child, scene.frame, after(0.1 * (kill % 5)))
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
        child = bench.start()
    decision = bench.feed(child, scene.frame, promoted)[-1]
    assert blind_error(decision["checkpoint"], scene) < classical_error(scene)
    count = next(c for c in bench.writer.readers() if c.name == "trainer")
    written = bench.writer.frames
    assert count.read + count.lost + count.skipped + count.in_flight <= written


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_default_network_is_promoted_on_the_phantom(bench):
    phantom = Phantom(SHAPE, 4000, photons=(20.0, 80.0))
    child = bench.start('[source]\nkind = "silent"\n[trainer]\nhistory_mib = 64\n')
    bench.begin(child, noise=phantom.noise)
    decision = bench.feed(child, lambda i: phantom.frame(i % 3900), promoted, 250)[-1]
    assert decision["denoiser"] == "quiet"
    assert decision["loss_candidate"] < decision["loss_classical"]
