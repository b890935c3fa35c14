"""c2dataviewer, which operators use, shows an image of the EPICS server (under Xvfb)."""

import importlib.util
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.daemons import detecting
from helpers.ioc import PREFIX, serving
from helpers.waiting import until

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("QUIETBEAM_PRODUCERS", ROOT / ".venv-producers")) / "c2dataviewer"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (HOME / "bin/c2dv").exists(), reason="not installed: make producers"),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="apt install xvfb"),
    pytest.mark.skipif(importlib.util.find_spec("softioc") is None, reason="needs [epics]"),
]

_SHOW = """
import sys, time
from pyqtgraph.Qt import QtCore, QtWidgets
import c2dataviewer.c2dv as c2dv
picture = sys.argv.pop(1)
began = time.monotonic()

def look():
    app = QtWidgets.QApplication.instance()
    window = next((w for w in app.topLevelWidgets() if w.isVisible()), None)
    texts = {} if window is None else {
        one.objectName(): one.text() for one in window.findChildren(QtWidgets.QLabel)
        + window.findChildren(QtWidgets.QLineEdit)
    }
    shown = "32" in str(texts) and "48" in str(texts) and "Connected" in str(texts)
    if shown and time.monotonic() - began > 8 or time.monotonic() - began > 60:
        print(texts, flush=True)
        window.grab().save(picture)
        app.quit()

make = QtWidgets.QApplication.exec_
def run(*args):
    timer = QtCore.QTimer()
    timer.timeout.connect(look)
    timer.start(500)
    return make()
QtWidgets.QApplication.exec_ = run
QtWidgets.QApplication.exec = run
sys.exit(c2dv.main())
"""


@contextmanager
def display(number):
    screen = ["Xvfb", f":{number}", "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    process = subprocess.Popen(screen, stderr=subprocess.DEVNULL)
    try:
        until(lambda: Path(f"/tmp/.X11-unix/X{number}").exists(), 30, "the display")
        yield f":{number}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.timeout(300)
def test_c2dataviewer_connects_and_shows_the_clean_image(tmp_path):
    with (
        serving(tmp_path) as ioc,
        detecting(ioc.daemon.port),
        display(os.getpid() % 9000 + 90) as at,
    ):
        ioc.daemon.wait_for(lambda s: s["pipeline"]["clean_hz"] > 1, 60.0, "clean frames")
        picture = tmp_path / "c2dv.png"
        argv = [HOME / "bin/python", "-W", "ignore", "-c", _SHOW, picture, "--app", "image"]
        done = subprocess.run(
            [str(a) for a in argv] + ["--pv", f"{PREFIX}Pva1:Image"],
            env={**os.environ, **ioc.ports.environment(), "DISPLAY": at},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert picture.exists(), done.stdout[-2000:] + done.stderr[-3000:]
        assert "Connected" in done.stdout, done.stdout
        kept = os.environ.get("QUIETBEAM_PICTURES")
        if kept:
            shutil.copy(picture, Path(kept) / "c2dataviewer.png")
