from __future__ import annotations

import json
import tracemalloc

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import quietbeam
from quietbeam import ConfigError, DataError, DenoiserPlugin, SinkError
from quietbeam.cli import main
from quietbeam.model.torch_engine import TorchEngine
from quietbeam.offline import calibrated
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.choose import Choice, build
from quietbeam.offline.denoise import array_series, cleaned
from quietbeam.offline.judge import Judge, measured_counts
from quietbeam.offline.passes import blind_estimates
from quietbeam.offline.patches import TrainingSet
from quietbeam.offline.quality import mse, psnr
from quietbeam.offline.series import Series
from quietbeam.offline.train import Recipe, train
from quietbeam.offline.write import denoise_file


class PairNet(nn.Module):
    """Predicts a frame as a weighted sum of the one before and the one after it."""

    lag, window, blind, trainable = 1, 3, True, True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.01, 0.01]))
        self.broken = False

    def initial_state(self, n, h, w):
        return tuple(torch.zeros(n, 1, h, w) for _ in range(2))

    def forward(self, frame, state):
        mean = 20 * (self.weight[0] * state[0] + self.weight[1] * frame)
        return mean, torch.zeros_like(mean), (state[1], frame)

    def training_loss(self, clip, valid, generator):
        error = clip[:, 1] - 20 * (self.weight[0] * clip[:, 0] + self.weight[1] * clip[:, 2])
        use = valid[:, 1].float()
        loss = (error**2 * use).sum() / use.sum().clamp(min=1)
        return loss * float("nan") if self.broken else loss

    def blind_estimate(self, frames):
        raise NotImplementedError


class Pair(DenoiserPlugin):
    broken: bool = False

    def build(self):
        net = PairNet()
        net.broken = self.broken
        return net


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def flicker(frames=48, size=32, sigma=0.0, seed=0, level=0.0, speed=0.6):
    """Pixels that swing in time, by default faster than any causal filter follows."""
    rng = np.random.default_rng(seed)
    t, y, x = np.indices((frames, size, size))
    truth = level + 40 * np.sin(speed * t + 0.3 * x + 0.2 * y)
    return truth, truth + sigma * rng.standard_normal(truth.shape)


def static(frames=24, size=32, sigma=5.0, seed=0):
    y, x = np.indices((size, size))
    truth = 100 + 40 * np.sin(0.3 * x) * np.cos(0.2 * y) + np.zeros((frames, 1, 1))
    return truth, truth + sigma * np.random.default_rng(seed).standard_normal(truth.shape)


def test_a_network_that_is_better_on_guards_is_used():
    truth, noisy = flicker(sigma=10)
    result = quietbeam.denoise(noisy, Pair(), steps=150, seed=1, fallback=("kalman", "median"))
    report = result.report
    assert report.used == "pair"
    assert report.training_steps == 150
    assert report.advantage > 3 * report.advantage_error > 0
    # Two neighbours of unit noise, weighted 1 / (2 cos 0.6) each; the ends have only one.
    expected = 10 / np.cos(0.6) / np.sqrt(2)
    error = np.sqrt(mse(result.clean[1:-1], truth[1:-1]))
    assert error == pytest.approx(expected, rel=0.15)
    assert error < 0.9 * np.sqrt(mse(noisy, truth))
    assert result.sd.mean() == pytest.approx(expected, rel=0.2)


def test_a_network_that_is_not_better_gives_way_and_the_report_says_so():
    truth, noisy = static()
    result = quietbeam.denoise(noisy, Pair(), steps=60)
    assert result.report.used == "svd"
    assert "pair was not better" in result.report.reason
    assert result.report.weights_sha256 == ""
    assert psnr(result.clean, truth, 80) > psnr(noisy, truth, 80) + 5


def test_without_a_fallback_the_network_is_used_whatever_comes():
    _, noisy = static()
    assert quietbeam.denoise(noisy, Pair(), steps=5, fallback=()).report.used == "pair"


def test_training_that_diverges_falls_back_and_says_so():
    _, noisy = static()
    report = quietbeam.denoise(noisy, Pair(broken=True), steps=30).report
    assert report.used == "svd"
    assert "diverged" in report.reason
    with pytest.raises(quietbeam.EngineError, match="diverged"):
        quietbeam.denoise(noisy, Pair(broken=True), steps=30, fallback=())


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    _, noisy = flicker(sigma=10, size=20, frames=12)
    one, again, other = (
        quietbeam.denoise(noisy, "quiet", steps=2, seed=seed, fallback=()) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.clean, again.clean)
    assert one.report.weights_sha256 == again.report.weights_sha256
    assert not np.array_equal(one.clean, other.clean)


@pytest.mark.parametrize("frames", [2, 3, 5, 6])
def test_a_recording_shorter_than_the_window_gets_a_filter_and_a_reason(frames):
    truth, noisy = static(frames=frames)
    result = quietbeam.denoise(noisy, "quiet", steps=3)
    assert result.report.used in {"kalman", "median", "svd"}
    assert f"{frames} frames are fewer than the 7" in result.report.reason
    assert np.isfinite(result.clean).all()
    assert psnr(result.clean, truth, 80) > psnr(noisy, truth, 80)


@pytest.mark.parametrize("frames", [2, 4, 7, 9])
def test_short_recordings_can_be_forced_through_the_network(frames):
    _, noisy = static(frames=frames, size=20)
    result = quietbeam.denoise(noisy, "quiet", steps=2, fallback=())
    assert np.isfinite(result.clean).all()
    assert result.clean.shape == noisy.shape


def test_one_image_needs_n2v():
    _, noisy = static(frames=1)
    with pytest.raises(DataError, match="use the denoiser n2v"):
        quietbeam.denoise(noisy, "quiet", steps=2)
    result = quietbeam.denoise(noisy, "n2v", steps=3, fallback=())
    assert np.isfinite(result.clean).all()


def test_constant_frames_come_back_as_they_are():
    result = quietbeam.denoise(np.full((6, 20, 20), 7, np.uint16), steps=2)
    assert np.array_equal(result.clean, np.full((6, 20, 20), 7, np.float32))
    assert not result.sd.any()
    assert result.report.reason == "no noise was found"


def test_bad_pixels_are_nan_only_where_nothing_was_ever_measured():
    truth, noisy = static(sigma=3)
    noisy[:, 4, 5] = np.nan
    noisy[10, 8, 8] = np.nan
    mask = np.zeros((32, 32), np.bool_)
    mask[20, 20] = True
    result = quietbeam.denoise(noisy.astype(np.float32), "kalman", mask=mask)
    assert np.isnan(result.clean[:, 4, 5]).all()
    assert np.isnan(result.clean[:, 20, 20]).all()
    assert result.clean[10, 8, 8] == pytest.approx(truth[10, 8, 8], abs=6)
    assert np.isfinite(result.clean).sum() == result.clean.size - 2 * len(noisy)
    assert np.isfinite(result.report.figures.local_sd_ratio)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, np.float64, ">u2"])
def test_every_real_dtype_is_taken(dtype):
    _, noisy = static(frames=8, size=20)
    result = quietbeam.denoise(noisy.astype(dtype), "kalman")
    assert result.clean.dtype == result.sd.dtype == np.float32
    assert result.clean.mean() == pytest.approx(noisy.mean(), rel=0.02)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 20, 20, 3)), "one channel at a time"),
        (np.zeros((50, 60, 3)), "one channel at a time"),
        (np.zeros(5), r"expected \(frames, height, width\)"),
        (np.zeros((0, 20, 20)), r"expected \(frames, height, width\)"),
        (np.zeros((5, 20, 20), complex), "expected integers or floats"),
        (np.array([["a"]]), "expected integers or floats"),
    ],
)
def test_what_is_no_image_series_is_refused(array, message):
    with pytest.raises(DataError, match=message):
        quietbeam.denoise(array)


def test_an_unknown_denoiser_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"installed: .*quiet"):
        quietbeam.denoise(static()[1], "nosuch")


@pytest.mark.parametrize("frames", [7, 12, 45])
@pytest.mark.parametrize("name", ["quiet", "pair"])
def test_no_frame_reaches_its_own_blind_estimate_not_even_at_the_ends(frames, name):
    torch.manual_seed(0)
    module = PairNet() if name == "pair" else build(name)[1]
    if name == "quiet":  # fresh weights ignore most of what they see
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    _, noisy = flicker(frames=frames, size=16, sigma=5)
    engine = TorchEngine(module, (16, 16))

    def estimates(video):
        with CalibratedSeries(array_series(video)) as recording:
            recording.noise = first.noise
            recording.stabiliser = first.stabiliser
            return [mean for _, mean, _ in blind_estimates(engine, recording)]

    first = CalibratedSeries(array_series(noisy))
    before = estimates(noisy)
    assert len(before) == frames
    for i in {0, 1, 2, 3, 4, frames // 2, frames - 5, frames - 3, frames - 2, frames - 1} - {-1}:
        changed = noisy.copy()
        changed[i] += 30 * np.random.default_rng(i).standard_normal((16, 16))
        after = estimates(changed)
        assert np.array_equal(before[i], after[i]), i
        assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_judge_estimates_the_true_error_without_the_truth():
    rng = np.random.default_rng(5)
    truth, _ = flicker(frames=64, size=96, level=100, speed=0.05)
    noisy = rng.poisson(truth).astype(np.float32)
    with CalibratedSeries(array_series(noisy)) as recording:
        data = TrainingSet(recording, 1 << 30)
        judge = Judge(data, recording.stabiliser)
        verdict = judge(build("kalman")[1])
    clean = quietbeam.denoise(noisy, "kalman").clean
    assert [place.target for place in judge.places if place.target > 20]
    for place, estimated in zip(judge.places, verdict.mse, strict=True):
        if place.target > 20:  # before, the filter still learns how fast the scene changes
            assert estimated == pytest.approx(
                mse(clean[place.target], truth[place.target]), rel=0.1
            )
    assert verdict.noise.mean() == pytest.approx(truth.mean(), rel=0.05)


def test_measured_counts_undo_the_stabilisation_exactly():
    noisy = np.random.default_rng(0).poisson(20, (20, 20, 20)).astype(np.float32)
    with CalibratedSeries(array_series(noisy)) as recording:
        prepared = recording.prepared(3)
        counts = measured_counts(prepared.z, recording.stabiliser)
    assert np.allclose(counts, noisy[3], atol=1e-3)


def test_training_keeps_the_weights_that_did_best_on_guards():
    _, noisy = flicker(sigma=10)
    with CalibratedSeries(array_series(noisy)) as recording:
        data = TrainingSet(recording, 1 << 30)
        module = PairNet()
        training = train(module, data, Recipe(steps=120))
    assert len(training.losses) == 12
    assert training.best_step in {10 * n for n in range(1, 13)}
    assert min(training.losses) < training.losses[0]
    assert not module.training
    # Least squares with noise s^2 = 100 and signal power 40^2 / 2, by hand.
    signal, noise, c = 800.0, 100.0, np.cos(0.6)
    a, b = signal + noise, signal * np.cos(1.2)
    assert 20 * module.weight.detach().numpy() == pytest.approx(signal * c / (a + b), rel=0.1)


def test_memory_does_not_grow_with_the_recording(monkeypatch):
    monkeypatch.setattr(calibrated, "_KEPT_BYTES", 1 << 20)
    frames = 1500

    def read(i):
        return np.random.default_rng(i).poisson(50, (32, 32)).astype(np.uint16)

    series = Series("made up", (frames, 32, 32), np.dtype(np.uint16), None, read)
    tracemalloc.start()
    with CalibratedSeries(series) as recording:
        data = TrainingSet(recording, 1 << 20)
        chosen = Choice(name="none", module=None, version=0, reason="")
        count = sum(1 for _ in cleaned(recording, chosen, lambda *_: None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == frames
    assert data.places(4, 32, np.random.default_rng(0), guards=True)
    assert peak < 12 << 20 < frames * 32 * 32 * 12  # all prepared frames at once


@pytest.fixture
def recording_path(tmp_path):
    path = tmp_path / "in.npy"
    np.save(path, np.rint(static()[1]).astype(np.uint16))
    return path


def test_a_file_gives_what_the_array_gives_and_keeps_its_provenance(tmp_path, recording_path):
    out = tmp_path / "out.h5"
    (report,) = denoise_file(recording_path, out, "quiet", Recipe(steps=3, seed=2), fallback=())
    array = np.load(recording_path)
    expected = quietbeam.denoise(array, "quiet", steps=3, seed=2, fallback=())
    with h5py.File(out) as file:
        assert np.array_equal(file["/entry/raw/data"][:], array)
        assert np.array_equal(file["/entry/clean/data"][:], expected.clean)
        assert np.array_equal(file["/entry/clean/data_errors"][:], expected.sd)
        assert list(file["/entry/clean/frame_id"]) == list(range(24))
        assert (file["/entry/clean/model_version"][:] == 1).all()
        assert file["/entry/process/weights/sha256"][0].decode() == report.weights_sha256
        notes = [json.loads(note) for note in file["/entry/process/decisions"][:]]
    assert [note["type"] for note in notes] == ["decision", "report"]
    assert notes[1]["used"] == "quiet"
    assert report.weights_sha256 == expected.report.weights_sha256
    assert list(tmp_path.glob("*.part")) == []


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path, recording_path):
    out = tmp_path / "out.h5"
    out.write_text("precious")
    with pytest.raises(SinkError, match="exists already"):
        denoise_file(recording_path, out, "kalman")
    assert out.read_text() == "precious"
    denoise_file(recording_path, out, "kalman", overwrite=True)
    assert h5py.is_hdf5(out)
    with pytest.raises(SinkError, match="is the input itself"):
        denoise_file(f"{out}:/entry/raw/data", out, "kalman", overwrite=True)


def test_a_failure_leaves_no_file_behind(tmp_path):
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros((30, 20, 20), np.float32) + np.random.default_rng(0).random(
            (30, 20, 20)
        )
    with pytest.raises(DataError, match="does not exist"):
        denoise_file(tmp_path / "missing.h5", tmp_path / "out.h5", "kalman")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        denoise_file(path, tmp_path / "out.h5", "kalman")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5"]


def test_the_command_prints_one_json_document(tmp_path, recording_path, capsys):
    out = tmp_path / "out.h5"
    words = ["denoise", str(recording_path), "-o", str(out), "--denoiser", "kalman", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["used"] == "kalman"
    assert report["figures"]["psnr_clean_db"] > report["figures"]["psnr_raw_db"]
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["denoise", "nosuch.h5", "-o", str(tmp_path / "o.h5")]) == 65
    assert main([*words, "--minutes", "0"]) == 78


def test_dark_flat_and_mask_files_are_applied(tmp_path):
    truth, noisy = static(sigma=2)
    flat = np.linspace(0.5, 1.5, 32)[None, :] * np.ones((32, 1))
    np.save(tmp_path / "in.npy", (noisy * flat + 10).astype(np.float32))
    np.save(tmp_path / "dark.npy", np.full((2, 32, 32), 10, np.float32))
    np.save(tmp_path / "flat.npy", (flat * 1000 + 10).astype(np.float32))
    mask = np.zeros((32, 32), np.uint8)
    mask[3, 3] = 1
    np.save(tmp_path / "mask.npy", mask)
    files = [f"--{n}={tmp_path / n}.npy" for n in ("dark", "flat", "mask")]
    out = tmp_path / "out.h5"
    words = ["denoise", str(tmp_path / "in.npy"), "-o", str(out), "--denoiser", "kalman"]
    assert main([*words, *files]) == 0
    with h5py.File(out) as file:
        clean = file["/entry/clean/data"][:]
    assert np.isnan(clean[:, 3, 3]).all()
    scale = np.nanmedian(clean[-1]) / np.median(truth[-1])
    assert np.nanmax(np.abs(clean[-1] / scale - truth[-1])) < 5
