"""A whole run, with training and a recording, in which every way to unpickle raises."""

import os
import subprocess
import sys

import pytest

from helpers.daemons import running, send_frames

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAP = """
import builtins, pickle, sys


def refuse(*_, **__):
    with open({told!r}, "a") as file:
        import traceback
        file.write("".join(traceback.format_stack()))
    raise RuntimeError("nothing is ever unpickled")


pickle.load = pickle.loads = pickle._Unpickler.load = refuse
sys.addaudithook(lambda event, _: refuse() if event == "pickle.find_class" else None)
plain_import = builtins.__import__


def watched_import(*arguments, **options):
    module = plain_import(*arguments, **options)
    torch = sys.modules.get("torch")
    if getattr(torch, "load", refuse) is not refuse:  # torch has just come
        torch.load = sys.modules["torch.serialization"].load = refuse
    return module


builtins.__import__ = watched_import


print("trap", file=sys.stderr)
"""
SINKS = """
[[sinks]]
kind = "hdf5"
directory = "{directory}"
reserve_bytes = 0
flush_interval_s = 0.2
[trainer]
candidate_every_s = 1.0
patch_px = 16
batch = 2
"""


@pytest.fixture
def trapped(tmp_path):
    """An environment whose every Python has the trap."""
    told = tmp_path / "unpickled"
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap/sitecustomize.py").write_text(TRAP.format(told=str(told)))
    path = os.pathsep.join(filter(None, [str(tmp_path / "trap"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path}, told


def test_the_trap_closes(trapped):
    environment, told = trapped
    code = "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict()))"
    inner = "import _pickle, collections as c; _pickle.loads(_pickle.dumps(c.OrderedDict()))"
    tensor = "import torch; torch.load('weights.pt', weights_only=True)"
    for number, text in enumerate((code, inner, tensor), 1):
        done = subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, **environment},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "nothing is ever unpickled" in done.stderr
        assert told.read_text().count("in refuse") >= number


def test_nothing_is_unpickled_from_the_first_frame_to_the_end_of_training(tmp_path, trapped):
    environment, told = trapped
    sinks = SINKS.format(directory=tmp_path / "files")
    with running(tmp_path, environment, sinks=sinks, denoiser="quiet") as daemon:

        def trained():
            return (daemon.status()["trainer"]["progress"] or {}).get("steps", 0) > 5

        sent = send_frames(daemon.port, 3000, rate_hz=20.0, shape=(48, 48), stop=trained)
        assert sent < 3000, daemon.log()
        daemon.wait_for(
            lambda s: s["outputs"]["hdf5.0"]["totals"]["raw_written"] == sent, 60, "a recording"
        )
        assert daemon.stop() == 0
        assert "trap" in daemon.log_path.read_text()
    assert not told.exists(), told.read_text()
