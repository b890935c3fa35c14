"""The demonstration: ``measure_until`` on clean and on raw frames of the simulated cell.

Also a program: ``python tests/helpers/dose.py PLOT.png`` prints the figures and draws them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

SIDE, REGION, EDGE = 128, 8, 12
CONFIG = """
name = "dose"
[source]
kind = "array"
address = "{detector}"
socket = "pull"
[denoiser]
kind = "{denoiser}"
[[sinks]]
kind = "zmq"
address = "{clean}"
[[sinks]]
kind = "zmq"
what = "raw"
address = "{raw}"
[rings]
raw_mib = 64
clean_mib = 64
[service]
http = "127.0.0.1:0"
runtime_directory = "{directory}/run"
log = "json"
"""


def regions(step=20):
    places = range(EDGE, SIDE - EDGE - REGION, step)
    return [(y, x, y + REGION, x + REGION) for y, x in product(places, places)]


def means(image, places):
    return [float(np.nanmean(image[y:b, x:r])) for y, x, b, r in places]


def demonstrate(denoiser="kalman", *, rate_hz=20, warm_up=150, calibrate_on=150, places=12):
    """Run it; give the figures.

    What is wanted is the s.d. of one clean frame.  Everything the plans use is
    measured on the stream; the truth only judges.
    """
    from helpers.daemons import free_port, started
    from helpers.waiting import until
    from quietbeam.testing.phantoms import Phantom
    from quietbeam_plugins.devices.stream import reading

    frames = 2400  # more than are needed: ended when all is measured
    phantom = Phantom((SIDE, SIDE), frames, 0, frame_time_s=1 / rate_hz)
    with tempfile.TemporaryDirectory() as directory:
        addresses = {k: f"tcp://127.0.0.1:{free_port()}" for k in ("detector", "clean", "raw")}
        text = CONFIG.format(denoiser=denoiser, directory=directory, **addresses)
        with (
            started(Path(directory), text, 0) as daemon,
            reading(addresses["clean"]) as clean,
            reading(addresses["raw"]) as raw,
        ):
            daemon.wait_for(lambda s: s["state"] == "running", 90.0)
            command = [sys.executable, "-m", "quietbeam", "simulate", "phantom", "--json"]
            command += ["--format", "array-1.0", "--rate", str(rate_hz), "--socket", "push"]
            command += ["--bind", addresses["detector"], "--frames", str(frames)]
            simulator = subprocess.Popen([*command, "--size", str(SIDE)], stdout=subprocess.DEVNULL)
            try:
                until(lambda: len(clean.seen) >= warm_up + calibrate_on, 600.0)
                lag = 0 if denoiser == "kalman" else 4
                known = calibrated(clean, raw, calibrate_on, lag)
                wanted = known["clean"].frame_sd
                taken = measured_all(clean, raw, known, wanted, places)
            finally:
                simulator.kill()
                simulator.wait()
    return judged(taken, known, wanted, phantom)


def calibrated(clean, raw, count, lag):
    """What one frame is worth, found on the stream itself and without the truth."""
    from quietbeam_plugins.devices.uncertainty import Calibration, calibrate

    both = sorted({s.index for s in clean.seen} & {s.index for s in raw.seen})[-count:]
    grid = regions()
    tables = []
    for source in (clean, raw):
        images = {seen.index: seen.pixels for seen in source.seen}
        tables.append(np.array([means(images[index], grid) for index in both]))
    raw_sd = float(np.sqrt((np.diff(tables[1], axis=0) ** 2).mean() / 2))
    return {"clean": calibrate(*tables, lag=lag), "raw": Calibration(raw_sd)}


def measured_all(clean, raw, known, wanted, places):
    """Have the plan measure regions on either output until it is sure enough."""
    from bluesky import RunEngine

    from quietbeam_plugins.devices.plans import measure_until
    from quietbeam_plugins.devices.stream import StreamRegion

    engine = RunEngine({}, call_returns_result=True)
    grid = regions()
    chosen = [grid[i] for i in np.linspace(0, len(grid) - 1, places).astype(int)]
    taken = []
    for source, frames in (("clean", clean), ("raw", raw)):
        calibration = known[source]
        for place in chosen:
            ids = []
            device = StreamRegion(frames, place, name=source)
            plan = measure_until(
                device,
                "value",
                wanted * 1.0001,
                frame_sd=calibration.frame_sd,
                correlation=calibration.correlation,
            )
            got = engine(
                plan,
                {"event": [lambda _, doc, ids=ids: ids.append(list(doc["data"].values()))]},
            ).plan_result
            first = [row[1] for row in ids]
            taken.append((source, place, got, first))
    return taken


def judged(taken, known, wanted, phantom):
    """Compare with the truth of the very frames that were measured."""
    told = {"believed_sd": wanted, "frame_sd": {k: c.frame_sd for k, c in known.items()}}
    told["correlation"] = known["clean"].correlation
    for source in ("clean", "raw"):
        mine = [one for one in taken if one[0] == source]
        errors = [
            got.value - np.mean([means(phantom.truth(i), [place])[0] for i in ids])
            for _, place, got, ids in mine
        ]
        told[source] = {
            "frames": float(np.mean([got.frames for _, _, got, _ in mine])),
            "true_rms_error": float(np.sqrt(np.mean(np.square(errors)))),
            "errors": [float(error) for error in errors],
        }
    told["times_fewer"] = told["raw"]["frames"] / told["clean"]["frames"]
    return told


def drawn(told, path):
    """Plot the s.d. that the plan believes over frames, and the true errors."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from quietbeam_plugins.devices.uncertainty import Calibration

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    count = np.arange(1, int(1.5 * told["raw"]["frames"]) + 2)
    colours = {"raw": "tab:grey", "clean": "tab:blue"}
    for source, colour in colours.items():
        correlation = told["correlation"] if source == "clean" else 0.0
        model = Calibration(told["frame_sd"][source], correlation)
        axes.plot(
            count, [model.sd_of_mean(int(n)) for n in count], color=colour, label=f"{source}: s.d."
        )
        axes.plot(
            *(told[source]["frames"], told[source]["true_rms_error"]),
            "o",
            color=colour,
            label=f"{source}: stopped here; true rms error",
        )
    axes.axhline(told["believed_sd"], color="k", lw=0.8, ls="--", label="wanted")
    axes.set(xlabel="frames taken", ylabel=f"mean of {REGION} × {REGION} px (counts)")
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    found = demonstrate(*sys.argv[2:])
    drawn(found, sys.argv[1])
    print(json.dumps(found, indent=1))
