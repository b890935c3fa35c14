"""Real recordings, live: a simulated detector sends them, the daemon cleans and records them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.daemons import running
from quietbeam.offline.quality import local_sd_ratio
from quietbeam.offline.recording import Recording
from quietbeam.offline.series import open_series

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUIETBEAM_REALDATA", ROOT.parent / "shared" / "realdata"))

RECORDINGS = [
    # file, frames sent, local 3 x 3 x 3 s.d. of clean over raw stays below
    ("optical_muDIC_tensile.h5", 43, 0.95),
    ("stxm_ALS_FeL_71214078.h5", 60, 1.0),
    ("neutron_stepwedge_exposure_ladder_left.h5", 19, 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames", "ratio"), RECORDINGS)
def test_a_real_recording_passes_through_the_live_daemon(name, frames, ratio, tmp_path):
    source = DATA / name
    if not source.exists():
        pytest.skip(f"{name} is not here")
    sinks = f'[[sinks]]\nkind = "hdf5"\ndirectory = "{tmp_path}"\n'
    trainer = "[trainer]\nenabled = false\n"
    with running(tmp_path, sinks=sinks, more=trainer) as daemon:
        command = [sys.executable, "-m", "quietbeam", "simulate", str(source), "--json"]
        command += ["--format", "array-1.0", "--rate", "5", "--frames", str(frames)]
        command += ["--connect", f"tcp://127.0.0.1:{daemon.port}", "--socket", "push"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
        assert json.loads(done.stdout)["sent"] == frames
        daemon.wait_for(
            lambda s: (
                s["outputs"]["hdf5.0"]["status"]["state"] == "idle"
                and s["ledger"].get("denoise", {}).get("sent") == frames
            ),
            60,
            "the end of the recording",
        )
        assert daemon.stop() == 0
    (file,) = tmp_path.glob("*.h5")
    with Recording(file) as recorded, open_series(str(source)) as series:
        sent = np.stack([series[i] for i in range(frames)])
        np.testing.assert_array_equal(recorded.raw[:], sent)
        clean = recorded.clean[:]
        assert len(clean) == frames
        assert np.isfinite(clean).mean() > 0.95
        half = slice(frames // 2, None)  # the filter has settled
        filled = np.nan_to_num(clean[half], nan=float(np.nanmean(clean)))
        assert local_sd_ratio(filled, sent[half].astype(np.float32)) < ratio
