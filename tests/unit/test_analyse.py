"""``quietbeam analyse``: a recording in, NeXus and a report out, raw beside clean."""

import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from quietbeam import ConfigError, Frame, Result, RunEnd, SinkError
from quietbeam.cli import main
from quietbeam.core.plugin import AnalysisPlugin, SinkPlugin
from quietbeam.offline.analyse import analyse_file
from quietbeam.registry import find
from quietbeam.testing.twins import NeutronTwin, OpticalTwin, StxmTwin, Twin

SD = 8.0


def record(twin: Twin, path: Path) -> Path:
    """A recording whose clean frames are the truth with a little noise."""
    rng = np.random.default_rng(3)
    plugin = find("sinks", "hdf5", SinkPlugin)
    with plugin(path=path, reserve_bytes=0).open() as sink:
        sink.start(twin.start())
        for i in range(twin.frames):
            of = {"run": "twin", "index": i, "time_ns": round(i * twin.frame_time_s * 1e9)}
            of["received_ns"] = time.monotonic_ns()
            truth = twin.expected(i)
            clean = (truth + rng.normal(0, SD / 4, truth.shape)).astype(np.float32)
            sink.raw(Frame(**of, pixels=twin.counts(i)))
            sink.write(
                Result(
                    **of,
                    clean=clean,
                    sd=np.full_like(clean, SD / 4),
                    raw=None,
                    metrics={},
                    denoiser="known",
                    model_version=0,
                    latency_s=0.0,
                )
            )
        sink.stop(RunEnd(run="twin", reason="completed"))
    return path


@pytest.fixture(scope="module")
def neutron(tmp_path_factory) -> Path:
    return record(
        NeutronTwin(size=64, frames=24, spots=0.0), tmp_path_factory.mktemp("n") / "run.h5"
    )


def settings(tmp_path: Path) -> Path:
    twin = NeutronTwin(size=64, frames=24)
    np.save(tmp_path / "dark.npy", twin.dark())
    config = tmp_path / "neutron.toml"
    config.write_text(
        "[[analyses]]\n"
        'kind = "radiography"\n'
        f'dark = "{tmp_path}/dark.npy"\n'
        f'depth = "up"\nbins = 8\nevery = 1\nhalf_cycles = {list(twin.half_cycles)}\n'
        f"beam = {list(twin.beam)}\n"
        f"[analyses.electrodes]\nanode = {list(twin.anode)}\n"
    )
    return config


def test_a_recording_becomes_nexus_and_a_report_raw_beside_clean(neutron, tmp_path, capsys):
    out, report = tmp_path / "out.h5", tmp_path / "report.html"
    words = ["analyse", str(neutron), "-o", str(out), "--workflow", "radiography", "--json"]
    words += ["--config", str(settings(tmp_path)), "--report", str(report)]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == {"raw": 24, "clean": 24}
    raw, clean = (told["summary"][kind]["anode_change"] for kind in ("raw", "clean"))
    assert clean["sd"] < raw["sd"]
    assert clean["mean"] == pytest.approx(raw["mean"], abs=0.02)
    with h5py.File(out) as file:
        assert file["entry"].attrs["NX_class"] == "NXentry"
        assert file["entry/clean"].attrs["NX_class"] == "NXdata"
        assert file["entry/clean/anode_change"].attrs["uncertainty"] == "anode_change_sd"
        change = file["entry/clean/maps/change"]
        assert change["data"].shape[1:] == (64, 64)
        assert len(change["frame_id"]) == len(change["data"])
        assert len(file["entry/process/source_sha256"][()]) == 64
    page = report.read_text()
    assert page.count("data:image/png") >= 4
    assert "http" not in page.replace("http-equiv", "")
    again = tmp_path / "again.html"
    main([*words[:3], str(tmp_path / "again.h5"), *words[4:-1], str(again)])
    assert again.read_bytes() == report.read_bytes()


@pytest.mark.parametrize(
    ("twin", "workflow"),
    [
        (OpticalTwin(size=96, frames=5), "optical"),
        (StxmTwin(size=64, frames=3), "stxm"),
    ],
)
def test_the_other_workflows_draw_their_report_too(tmp_path, twin, workflow):
    source = record(twin, tmp_path / "run.h5")
    plugin = find("analyses", workflow, AnalysisPlugin)(**twin.settings())
    report = tmp_path / "report.html"
    outcome = analyse_file(source, tmp_path / "out.h5", workflow, plugin, report=report)
    assert not outcome.failed
    assert report.read_text().count("data:image/png") >= 2


def test_any_series_is_analysed_raw_and_the_report_says_so(tmp_path):
    np.save(tmp_path / "video.npy", NeutronTwin(size=64, frames=12).video())
    plugin = find("analyses", "statistics", AnalysisPlugin)()
    report = tmp_path / "report.html"
    outcome = analyse_file(
        tmp_path / "video.npy", tmp_path / "out.h5", "statistics", plugin, report=report
    )
    assert outcome.frames == {"raw": 12}
    assert "no clean frames" in report.read_text()


def test_what_cannot_work_is_refused_before_anything_is_written(neutron, tmp_path, capsys):
    out = tmp_path / "out.h5"
    common = ["analyse", str(neutron), "-o", str(out), "--workflow"]
    assert main([*common, "optical"]) == 78
    assert "needs colour" in capsys.readouterr().err
    other = tmp_path / "other.toml"
    other.write_text('[[analyses]]\nkind = "stxm"\n')
    assert main([*common, "radiography", "--config", str(other)]) == 78
    assert "has no [[analyses]] of kind 'radiography'; it has ['stxm']" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
    out.write_text("mine")
    with pytest.raises(SinkError, match="exists already"):
        analyse_file(neutron, out, "statistics", find("analyses", "statistics", AnalysisPlugin)())
    assert out.read_text() == "mine"
    plugin = find("analyses", "statistics", AnalysisPlugin)(regions={"x": (0, 0, 99, 9)})
    with pytest.raises(ConfigError, match="not inside"):
        analyse_file(neutron, tmp_path / "new.h5", "statistics", plugin)
