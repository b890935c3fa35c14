"""What an inversion takes from a recording, and what it refuses to answer."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from quietbeam import ConfigError, DataError
from quietbeam.cli import main
from quietbeam.core.plugin import InversionPlugin
from quietbeam.offline.inversion.observed import Calibration, arrange, find_given, observe
from quietbeam.registry import find
from quietbeam.testing.separating import Separating, record

CELL = Separating(size_px=16, frames=12, level=0.25, interval=0.012)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("inversion") / "cell.h5"
    record(CELL, path)
    return path


def frames(seed=0, change=0.5):
    rng = np.random.default_rng(seed)
    base = 0.5 + 0.1 * rng.standard_normal((1, 24, 24))
    drift = change * np.linspace(-0.5, 0.5, 20)[:, None, None] * np.sign(base - 0.5)
    return base + drift + 0.05 * rng.standard_normal((20, 24, 24))


def test_a_recording_says_what_an_inversion_has_to_know(recording):
    found = observe(recording)
    assert found.raw.shape == (12, 16, 16)
    assert found.pixel_size_m == pytest.approx(1e-8)
    assert found.interval_s == pytest.approx(0.1)
    assert found.given["kappa_m2"] == pytest.approx(2e-15)
    assert np.abs(found.raw - CELL.truth).std() < 0.1
    # 0.05 is the noise that was put in; second differences of a changing scene see little more.
    assert np.sqrt(found.noise.variance(np.array(0.5))) == pytest.approx(0.05, rel=0.2)


def test_what_the_user_gives_goes_before_what_the_recording_says(recording):
    given = Calibration(low=0.0, high=50_000.0, pixel_size_m=5e-9, frame_time_s=2.0)
    found = observe(recording, given)
    assert (found.pixel_size_m, found.interval_s) == (5e-9, 2.0)
    assert found.raw.max() < 0.6


def test_user_data_are_found_wherever_a_wire_format_puts_them():
    assert find_given({"header": {"user_data": {"inversion": {"a": 1}}}}) == {"a": 1}
    assert find_given({"header": {"x": 1}}) == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"raw": frames()[:5]}, "at least 8 frames"),
        ({"raw": frames()[0]}, r"\(t, h, w\)"),
        ({"times_s": np.zeros(20)}, "do not increase"),
        ({"times_s": np.full(20, np.nan)}, "do not increase"),
        ({"raw": 100 * frames()}, "check --low and --high"),
        ({"raw": frames(change=0.0)}, "no dynamics"),
    ],
)
def test_frames_that_cannot_be_answered_are_refused(change, says):
    arguments = {"raw": frames(), "times_s": np.arange(20.0), "pixel_size_m": 1e-8} | change
    with pytest.raises(DataError, match=says):
        arrange(**arguments)


def test_saturated_frames_are_refused(tmp_path):
    bright = replace(CELL, level=4.0)
    path = tmp_path / "bright.h5"
    record(bright, path)
    with h5py.File(path, "r+") as file:
        file["/entry/instrument/detector/saturation_value"] = 20_000
    with pytest.raises(DataError, match="are saturated"):
        observe(path)


def test_a_recording_without_times_is_refused_unless_they_are_given(recording, tmp_path):
    path = tmp_path / "timeless.h5"
    path.write_bytes(recording.read_bytes())
    with h5py.File(path, "r+") as file:
        file["/entry/raw/time"][:] = 0
        del file["/entry/instrument/detector/frame_time"]
    with pytest.raises(DataError, match="--frame-time"):
        observe(path)
    assert observe(path, Calibration(frame_time_s=3.0)).interval_s == pytest.approx(3.0)


def test_what_is_missing_is_named(recording, tmp_path):
    path = tmp_path / "silent.h5"
    path.write_bytes(recording.read_bytes())
    with h5py.File(path, "r+") as file:
        file["/entry/process/run_metadata"][()] = "{}"
    with pytest.raises(DataError, match=r"--low and --high.*--pixel-size"):
        observe(path)


def test_kappa_is_asked_for_because_images_cannot_tell_it():
    plugin = find("inversions", "cahn-hilliard", InversionPlugin)()
    observed = arrange(frames(), np.arange(20.0), 1e-8)
    with pytest.raises(ConfigError, match="scale together"):
        plugin.model(observed)


def test_a_recording_that_is_none_ends_with_the_code_for_bad_data(tmp_path, capsys):
    wrong = tmp_path / "x.h5"
    wrong.write_bytes(b"no")
    assert main(["invert", str(wrong), "-o", str(tmp_path / "o.h5")]) == 65
    assert "x.h5" in capsys.readouterr().err


def test_an_unknown_setting_of_the_model_is_a_configuration_that_cannot_work(recording, tmp_path):
    words = ["invert", str(recording), "-o", str(tmp_path / "o.h5"), "--set", "nonsense=1"]
    assert main(words) == 78


@pytest.mark.slow
def test_from_simulated_recording_to_report_without_a_manual_step(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    recording, result, page = (tmp_path / name for name in ("r.h5", "o.h5", "o.html"))
    what = ["--size", "32", "--frames", "24", "--level", "0.25"]
    assert main(["simulate", "cahn-hilliard", *what, "--output", str(recording)]) == 0
    capsys.readouterr()
    code = main(["invert", str(recording), "-o", str(result), "--report", str(page), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["converged"]
    assert told["functions"]["mu_h"]["relative error"] < 0.1
    assert told["functions"]["D"]["relative error"] < 0.25
    assert "<img" in page.read_text()
    with h5py.File(result) as file:
        entry = file["entry"]
        assert entry[entry.attrs["default"]].attrs["NX_class"] == "NXdata"
        assert (entry["D/lower"][:] < entry["D/upper"][:]).all()
        assert entry["D/D"].attrs["units"] == "m^2/s"
        made_from = json.loads(entry["process/configuration"][()])
        assert len(made_from["raw_sha256"]) == 64
