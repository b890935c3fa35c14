"""A captured stream, played again, gives what the daemon gave on the stream itself, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest
from pydantic import PrivateAttr

from helpers.daemons import started
from helpers.waiting import until
from quietbeam import Frame, RunEnd, RunStart, SinkPlugin
from quietbeam.config import Named, load
from quietbeam.core import ring
from quietbeam.core.ledger import Ledger
from quietbeam.offline.capture import read_capture
from quietbeam.pipeline.pipeline import Pipeline, Rings
from quietbeam_plugins.sinks.zmq import Zmq
from quietbeam_plugins.sources.dectris import Dectris

SHAPE = (32, 48)
FRAMES = 40


def image(number):
    rng = np.random.default_rng(number)
    return rng.poisson(40 + 20 * np.sin(np.arange(SHAPE[1]) / 5), SHAPE).astype(np.uint16)


@contextmanager
def proxy(address):
    """The fan-out of a first quietbeam."""
    with Zmq(address=address, what="raw", format="dectris-v2").open() as sink:
        yield sink


def subscribers(sink):
    sink._welcome()
    return sink.subscribers


def send(sink, frames=FRAMES, rate_hz=100.0):
    """Publish one run through the proxy."""
    dtype = np.dtype(np.uint16)
    sink.start(RunStart(run="7", shape=SHAPE, dtype=dtype, frame_time_s=0.01, exposure_s=0.009))
    for number in range(frames):
        now = time.monotonic_ns()
        pixels = image(number)
        frame = Frame(run="7", index=number, time_ns=number, received_ns=now, pixels=pixels)
        assert sink.raw(frame) is None
        time.sleep(1 / rate_hz)
    sink.stop(RunEnd(run="7", reason="completed"))


CONFIG = """
name = "same"
[source]
{source}
[denoiser]
kind = "kalman"
[calibration]
frames = 8
[trainer]
enabled = false
[rings]
raw_mib = 16
clean_mib = 16
[service]
http = "127.0.0.1:0"
log = "json"
runtime_directory = "{directory}/run"
max_backlog_frames = 4000
"""


class Keep(SinkPlugin):
    """Keeps all results."""

    _results: list = PrivateAttr(default_factory=list)

    @contextmanager
    def open(self):
        yield self

    def start(self, run): ...

    def stop(self, end): ...

    def write(self, result):
        self._results.append(result)


@contextmanager
def cleaning(directory, source):
    """The results of a pipeline; all are there at the end."""
    directory.mkdir()
    path = directory / "config.toml"
    path.write_text(CONFIG.format(source=source, directory=directory))
    config = load(path)
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    keep = Keep()
    fields["sinks"] = (Named("keep", keep),)
    rings = Rings(*(ring.create(directory / name, 16 << 20) for name in ("raw", "clean")))
    pipeline = Pipeline(type(config)(**fields), rings, Ledger())
    threads = [threading.Thread(target=b, name=n) for n, b in pipeline.bodies().items()]
    for thread in threads:
        thread.start()
    try:
        yield keep._results
        until(lambda: len(keep._results) >= FRAMES)
    finally:
        pipeline.stop()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        rings.raw.unlink()
        rings.clean.unlink()


def same(one, other):
    """The science is equal bit for bit; what tells of our clock is not looked at."""
    assert [r.index for r in one] == [r.index for r in other] == list(range(FRAMES))
    for a, b in zip(one, other, strict=True):
        for name in ("raw", "clean", "sd"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_equal(dict(a.metrics), dict(b.metrics))
        assert (a.time_ns, a.denoiser) == (b.time_ns, b.denoiser)


def test_a_replay_gives_the_same_clean_frames_as_the_stream_and_as_another_replay(tmp_path):
    tap = tmp_path / "bug.qbcap"
    with ExitStack() as all_:
        sink = all_.enter_context(proxy(f"ipc://{tmp_path}/proxy"))
        live_source = f'kind = "dectris"\naddress = "{sink.address}"\nsocket = "sub"'
        live = all_.enter_context(cleaning(tmp_path / "live", live_source))
        captured = all_.enter_context(Dectris(address=sink.address, socket="sub", tap=tap).open())
        until(lambda: (next(captured), subscribers(sink) == 2)[1])
        sending = threading.Thread(target=send, args=(sink,))
        sending.start()
        until(lambda: isinstance(next(captured), RunEnd))
        sending.join()
    replays = []
    for number, pace in enumerate(("speed = 1.0", "speed = 3.0", "rate_hz = 60.0")):
        source = f'kind = "replay"\nfile = "{tap}"\n{pace}'
        with cleaning(tmp_path / f"again{number}", source) as results:
            replays.append(results)
    for results in (live, *replays):
        same(results, live)
        assert [bool((r.raw == image(r.index)).all()) for r in results] == [True] * FRAMES


def quietbeam(*arguments):
    command = [sys.executable, "-m", "quietbeam", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def capture_config(directory, sink):
    path = directory / "capture.toml"
    path.write_text(f'[source]\nkind = "dectris"\naddress = "{sink.address}"\nsocket = "sub"\n')
    return path


def test_a_capture_that_is_killed_is_readable_to_its_last_whole_message(tmp_path):
    tap = tmp_path / "x.qbcap"
    with proxy(f"ipc://{tmp_path}/proxy") as sink:
        process = quietbeam("capture", capture_config(tmp_path, sink), "-o", tap)
        until(lambda: subscribers(sink) == 1, 60)
        send(sink)
        until(lambda: tap.stat().st_size > (FRAMES - 1) * 2 * SHAPE[0] * SHAPE[1])
        process.kill()
        process.communicate(timeout=30)
    with read_capture(tap) as capture:
        messages = list(capture.messages())
        assert capture.about["kind"] == "dectris"
        assert capture.about["address"] == f"ipc://{tmp_path}/proxy"
        assert capture.about["version"]
    assert len(messages) >= FRAMES  # the start, and all images but perhaps the last
    shown = quietbeam("replay", tap, "--json")
    summary = json.loads(shown.communicate(timeout=60)[0])
    assert summary["runs"][0]["frames"] >= FRAMES - 1
    assert summary["rejected"] == {}


def recorded(directory):
    """Raw, clean and s.d. of the one recording in a folder."""
    [path] = directory.glob("*.h5")
    with h5py.File(path) as file:
        names = ("raw/data", "raw/frame_id", "clean/data", "clean/data_errors", "clean/frame_id")
        return {name: file[f"entry/{name}"][:] for name in names}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_daemon_records_the_same_from_the_stream_and_from_its_capture(tmp_path):
    tap = tmp_path / "bug.qbcap"

    def config(name, source):
        directory = tmp_path / name
        directory.mkdir()
        text = CONFIG.format(source=source, directory=directory)
        return directory, text + f'[[sinks]]\nkind = "hdf5"\ndirectory = "{directory}/files"\n'

    with proxy(f"ipc://{tmp_path}/proxy") as sink:
        directory, text = config(
            "live", f'kind = "dectris"\naddress = "{sink.address}"\nsocket = "sub"'
        )
        with started(directory, text, 0) as daemon:
            daemon.wait_for(lambda s: s["state"] == "running", 60.0)
            process = quietbeam(
                "capture", capture_config(tmp_path, sink), "-o", tap, "--frames", FRAMES, "--json"
            )
            until(lambda: subscribers(sink) == 2, 60)
            send(sink)
            told = json.loads(process.communicate(timeout=60)[0])
            assert (told["frames"], told["ended_by"]) == (FRAMES, "frames")
            daemon.wait_for(lambda s: s["outputs"]["hdf5.0"]["finished"])
            assert daemon.stop(signal.SIGTERM) == 0, daemon.log()
    live = recorded(directory / "files")
    assert live["clean/frame_id"].tolist() == list(range(FRAMES))
    for name in ("first", "second"):
        directory, text = config(name, f'kind = "replay"\nfile = "{tap}"')
        with started(directory, text, 0, dict(os.environ)) as daemon:
            assert daemon.process.wait(90) == 0, daemon.log()
        again = recorded(directory / "files")
        for key, value in live.items():
            np.testing.assert_array_equal(again[key], value, err_msg=f"{name} {key}")
