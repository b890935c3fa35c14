"""Noise that one frame tells of another: no smooth lie, but a plain sentence, everywhere."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.ndimage import gaussian_filter

import quietbeam
from helpers.snapshots import snapshot
from quietbeam import Frame, RunStart
from quietbeam.cli._dashboard import Dashboard
from quietbeam.config import CalibrationConfig
from quietbeam.model.torch_engine import TorchEngine
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.choose import build
from quietbeam.offline.denoise import array_series
from quietbeam.offline.figures import estimated
from quietbeam.pipeline.denoise import RunCleaner
from quietbeam.pipeline.finish import Counts
from quietbeam.service.metrics import FAMILIES
from quietbeam.service.status import noise_account

SHAPE = (64, 64)


def video(afterglow, frames=48):
    """A scene that drifts, 100 to 140 counts, in noise of 5; (t, h, w) float32."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((frames, *SHAPE))
    for i in range(1, frames):
        noise[i] = afterglow * noise[i - 1] + np.sqrt(1 - afterglow**2) * noise[i]
    x = np.arange(SHAPE[1])
    scene = np.stack([120 + 20 * np.sin((x + 0.2 * t) / 8) for t in range(frames)])
    return (scene[:, None] + 5 * noise).astype(np.float32)


def cleaned(frames):
    """The live path of one run; give (what took it back to counts, figures of the last frame)."""
    run = RunStart(run="r", shape=SHAPE, dtype=np.dtype(np.float32))
    engine = TorchEngine(build("kalman")[1], SHAPE)
    cleaner = RunCleaner(
        run, [], CalibrationConfig(frames=8), (engine, "kalman"), lambda _run, _noise: None
    )
    figures, counts = {}, None
    for i, pixels in enumerate(frames):
        frame = Frame(run="r", index=i, time_ns=0, received_ns=0, pixels=pixels)
        for estimate, model in cleaner.push(frame):
            counts = counts or Counts(SHAPE, cleaner.stabilisers[0])
            _, _, figures = counts(estimate, model)
    cleaner.close()
    return counts, figures


def pipeline_snapshot(figures, message):
    return {name.removeprefix("quality."): value for name, value in figures.items()} | {
        "message": message
    }


@pytest.fixture(scope="module")
def white():
    return cleaned(video(0.0))


@pytest.fixture(scope="module")
def glowing():
    return cleaned(video(0.4))


def test_afterglow_takes_the_trust_from_the_live_figure(glowing):
    counts, figures = glowing
    assert figures["quality.trusted"] == 0
    assert figures["quality.correlation_time"] == pytest.approx(0.4, abs=0.1)
    assert counts.notice.startswith("noise is correlated from frame to frame (r1 = 0.")
    assert "not to be trusted" in counts.notice


def test_the_noise_power_is_corrected_for_afterglow(glowing):
    assert glowing[1]["quality.noise_sd"] == pytest.approx(5, rel=0.06)


def test_white_noise_is_trusted_and_nothing_is_said(white):
    counts, figures = white
    assert figures["quality.trusted"] == 1
    assert counts.notice is None
    assert figures["quality.noise_sd"] == pytest.approx(5, rel=0.02)


def test_noise_along_lines_is_told_but_does_not_mislead_frame_blind_denoisers():
    frames = video(0.0)
    frames += 4 * np.random.default_rng(1).standard_normal((len(frames), SHAPE[0], 1))
    counts, figures = cleaned(frames.astype(np.float32))
    assert figures["quality.trusted"] == 1
    assert figures["quality.correlation_line"] == pytest.approx(16 / 41, abs=0.06)
    assert "along rows" in counts.notice


def test_the_status_says_why_the_figure_is_not_trusted(glowing):
    counts, figures = glowing
    account = noise_account(pipeline_snapshot(figures, counts.notice))
    assert account["trusted"] is False
    assert account["correlation"]["time"] == figures["quality.correlation_time"]
    assert "frame to frame" in account["message"]


def test_before_the_first_frame_the_status_knows_nothing_of_the_noise():
    assert noise_account({}) == {"trusted": None, "correlation": {}, "message": None}


def test_metrics_have_one_correlation_for_each_axis(glowing):
    counts, figures = glowing
    pipeline = pipeline_snapshot(figures, counts.notice)
    status = snapshot(pipeline=pipeline, noise=noise_account(pipeline))
    read = {family.name: family.read for family in FAMILIES}
    axes = {labels[0] for labels, _ in read["noise_correlation"](status)}
    assert axes == {"rows", "columns", "line", "column_line", "time", "fixed"}
    assert list(read["psnr_trusted"](status)) == [((), 0.0)]
    assert next(iter(read["psnr_error_decibels"](status)))[1] > 0
    assert list(read["noise_correlation"](snapshot())) == []


@pytest.mark.parametrize("run", ["white", "glowing"])
def test_the_dashboard_shows_a_figure_only_where_it_holds(run, request):
    counts, figures = request.getfixturevalue(run)
    pipeline = pipeline_snapshot(figures, counts.notice)
    console = Console(file=io.StringIO(), width=200)
    status = {"pipeline": pipeline, "noise": noise_account(pipeline)}
    console.print(Dashboard("demo", 10).draw(status, 1))
    text = console.file.getvalue()
    assert ("not trusted" in text) == (run == "glowing")
    assert ("noise is correlated" in text) == (run == "glowing")
    assert ("±" in text) == (run == "white")


def test_the_offline_report_gives_no_psnr_where_it_would_be_a_lie():
    glowing = quietbeam.denoise(video(0.4), "kalman").report.figures
    assert not glowing.trusted
    assert np.isnan(glowing.psnr_clean_db)
    assert "frame to frame" in glowing.notes[0]
    assert glowing.noise_correlation["time"] == pytest.approx(0.4, abs=0.1)
    plain = quietbeam.denoise(video(0.0), "kalman").report.figures
    assert plain.trusted
    assert plain.notes == ()


def test_of_unrelated_images_correlation_in_time_is_not_asked():
    with CalibratedSeries(array_series(video(0.4)), images=True) as recording:
        assert not recording.correlation.in_time
        assert np.isnan(recording.correlation.time[0])
        assert estimated(recording.noise, None, recording.correlation)["trusted"]


@pytest.mark.parametrize(
    ("noise", "reach"), [("white", (0, 0)), ("rows", (0, 3)), ("columns", (3, 0)), ("both", (1, 1))]
)
@pytest.mark.parametrize("textured", [False, True])
def test_n2v_hides_as_far_as_noise_is_shared(noise, reach, textured):
    rng = np.random.default_rng(2)
    frames = rng.standard_normal((6, 64, 64))
    if noise == "both":
        frames = gaussian_filter(frames, (0, 0.6, 0.6)) / 0.5
    elif noise != "white":
        swapped = np.moveaxis(frames, {"rows": 2, "columns": 1}[noise], 0)
        for i in range(1, 64):
            swapped[i] = 0.5 * swapped[i - 1] + np.sqrt(0.75) * swapped[i]
    if textured:
        frames += 20 * gaussian_filter(rng.standard_normal((64, 64)), 2.5)
    valid = torch.rand(6, 1, 64, 64) > 0.01
    values = torch.from_numpy(np.where(valid[:, 0], frames, 1e4).astype(np.float32))[:, None]
    net = build("n2v")[1]
    assert np.abs(np.subtract(net.reach(values, valid), reach)).max() <= 1
    assert [r > 0 for r in net.reach(values, valid)] == [r > 0 for r in reach]


def test_n2v_with_an_area_hidden_learns_and_judges_without_it():
    rng = np.random.default_rng(3)
    frames = gaussian_filter(rng.standard_normal((1, 32, 32)), (0, 1.0, 1.0)).astype(np.float32)
    net, clip = build("n2v")[1], torch.from_numpy(frames)[None]
    assert net.reach(clip) == (2, 2)
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(net.training_loss(clip, torch.ones_like(clip, dtype=bool), generator))
    asked = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    asked[0, 0, 15, 16] = True
    changed = torch.nonzero(net.hide(clip, asked)[0, 0] != clip[0, 0])
    assert changed.min(0).values.tolist() == [13, 14]
    assert changed.max(0).values.tolist() == [17, 18]
