"""The live view of a running daemon: control, recordings, twenty viewers, the demo's pictures."""

import contextlib
import json
import os
import socket as sockets
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from websockets.sync.client import connect

from helpers.browser import needs_chromium, page
from helpers.daemons import free_port, running, send_frames
from helpers.waiting import until
from helpers.web import Client, FakeLink, Served, handshake, values

SINKS = """
[[sinks]]
kind = "hdf5"
directory = "{directory}"
reserve_bytes = 0
[[sinks]]
kind = "web"
address = "127.0.0.1:{port}"
recordings = "{directory}"
buffer_mib = 64
linger_s = 3
"""


@contextlib.contextmanager
def live(tmp_path):
    """Run a daemon with a recorder and a live view."""
    port = free_port()
    sinks = SINKS.format(directory=tmp_path / "runs", port=port)
    with running(tmp_path, sinks=sinks) as daemon:
        served = Served(FakeLink(), port, threading.current_thread())
        until(lambda: answers(served), 60, "the live view")
        yield daemon, served


def answers(served):
    try:
        return served.get("/api/v1/status").json["connected"]
    except OSError:
        return False


def test_a_running_daemon_is_seen_controlled_and_its_run_shown_again(tmp_path):
    with live(tmp_path) as (daemon, served):
        with served.viewer() as viewer:
            viewer.text("hello")
            send_frames(daemon.port, 40, rate_hz=40)
            header, pieces = viewer.frame()
            while len(header["planes"]) < 2 or header["index"] < 30:
                header, pieces = viewer.frame()
            assert values(header, pieces, "raw")[0, 0] == header["index"]
            viewer.text("status", where=lambda t: t["freshness"]["state"] == "idle")
        bearer = {"Authorization": f"Bearer {daemon.token}"}
        commands = served.get("/api/v1/control").json["commands"]
        assert commands["use"]["argument"]["choices"] == ["classical", "live"]
        assert served.ask("POST", "/api/v1/control/train_freeze", {}).status == 401
        assert served.ask("POST", "/api/v1/control/train_freeze", {}, **bearer).status == 200
        daemon.wait_for(lambda s: s["trainer"]["frozen_by"] == ["operator"])
        until(lambda: _verdicts(served) == ["complete"], 60, "the recording")
        [name] = [one["name"] for one in served.get("/api/v1/recordings").json["recordings"]]
        with served.viewer(f"/ws/recording?name={name}") as viewer:
            header, pieces = viewer.frame()
            assert values(header, pieces, "raw")[0, 0] == 0


def _verdicts(served):
    return [one["verdict"] for one in served.get("/api/v1/recordings").json["recordings"]]


def _watch(served, seen, going):
    with connect(f"ws://127.0.0.1:{served.port}/ws/live", max_size=None) as socket:
        viewer = Client(socket)
        while going():
            with contextlib.suppress(AssertionError):
                seen.append(viewer.frame(1)[0]["id"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_viewers_two_of_them_stalled_cost_the_stream_no_frame(tmp_path):
    frames, state = 600, {"going": True}
    with live(tmp_path) as (daemon, served), contextlib.ExitStack() as stack:
        for _ in range(2):
            stalled = stack.enter_context(sockets.create_connection(("127.0.0.1", served.port)))
            stalled.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
            stalled.sendall(handshake(served.port))
        seen = [[] for _ in range(18)]
        threads = [
            threading.Thread(target=_watch, args=(served, one, lambda: state["going"]))
            for one in seen
        ]
        for thread in threads:
            thread.start()
        until(lambda: served.get("/api/v1/status").json["viewers"] >= 18)
        pid = daemon.status()["children"]["web.1"]["pid"]
        sending = threading.Thread(
            target=send_frames,
            args=(daemon.port, frames),
            kwargs={"rate_hz": 20, "shape": (256, 256)},
        )
        sending.start()
        daemon.wait_for(lambda s: s["pipeline"]["run_frames"] > 200, 120)
        before = _resident(pid)
        sending.join()
        until(lambda: _verdicts(served) == ["complete"], 60, "the recording")
        grown = _resident(pid) - before
        state["going"] = False
        for thread in threads:
            thread.join()
        [run] = served.get("/api/v1/recordings").json["recordings"]
        assert (run["frames_raw"], run["missing_frames"]) == (frames, 0)
        assert grown < 64 << 20
        assert all(len(one) > 20 and one == sorted(one) for one in seen)


def _resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@needs_chromium
@pytest.mark.timeout(300)
def test_the_demo_opens_the_page_and_looks_well(tmp_path):
    """The README's pictures, 10 and 60 s after the first frame, go to QUIETBEAM_SCREENSHOTS."""
    kept = Path(os.environ.get("QUIETBEAM_SCREENSHOTS", tmp_path))
    port = free_port()
    command = [sys.executable, "-m", "quietbeam", "demo", "--json", "--web-port", str(port)]
    rate = os.environ.get("QUIETBEAM_SCREENSHOTS_RATE", "10")
    command += ["--seconds", "90", "--rate", rate, "--output", str(tmp_path / "demo")]
    with (
        page(scheme="dark") as tab,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo,
    ):
        began = time.monotonic()
        served = Served(FakeLink(), port, threading.current_thread())
        until(lambda: answers(served), 60, "the live view")
        tab.goto(f"http://127.0.0.1:{port}/")
        until(lambda: _has_picture(tab), 60, "the first picture")
        print(f"first picture {time.monotonic() - began:.1f} s after the command")
        began = time.monotonic()
        for seconds in (10, 60):
            tab.wait_for_timeout(max(0.0, 1000 * (began + seconds - time.monotonic())))
            _keep(tab, kept / f"demo-{seconds}s.png")
        out, told = demo.communicate(timeout=120)
        assert demo.returncode == 0, told
        assert f"live page: http://127.0.0.1:{port}/" in told.decode()
        recorded = Path(json.loads(out)["recording"]).parent
    _keep_recordings(recorded, kept / "recordings.png", tmp_path)


def _has_picture(tab):
    return tab.get_by_test_id("read-frame").inner_text()[:1].isdigit()


def _keep_recordings(directory, path, tmp_path):
    from helpers.web import serving

    with serving(tmp_path, recordings=directory) as served, page(scheme="dark") as tab:
        tab.goto(f"http://127.0.0.1:{served.port}/#recordings")
        tab.wait_for_selector("img")
        tab.wait_for_timeout(1500)
        _keep(tab, path)


def _keep(tab, path):
    """Keep what is on the screen, with 256 colours: pictures of noise are large."""
    tab.screenshot(path=path)
    image = Image.open(path).convert("RGB")
    assert len(set(image.resize((64, 64)).get_flattened_data())) > 20
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
    assert path.stat().st_size < 300_000
