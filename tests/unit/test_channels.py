"""Each channel of a frame is a stream of its own, in every part of the program."""

import json
import shutil

import cbor2
import h5py
import numpy as np
import pytest
import zmq

from helpers.channels import SHAPE, counts, truth
from quietbeam import Frame, MetricSpec, Result, RunEnd, RunStart
from quietbeam.config import EngineConfig
from quietbeam.core import records, ring
from quietbeam.core.errors import ConfigError, DataError
from quietbeam.core.plugin import CorrectionPlugin, DenoiserPlugin, SinkPlugin, SourcePlugin
from quietbeam.model.channels import each_channel, joined_figures, joined_notices, specs_for
from quietbeam.model.correct import Corrections, fill_invalid
from quietbeam.model.engines import build_engine
from quietbeam.model.stabilise import NoiseModel, Stabiliser
from quietbeam.offline.recording import Recording
from quietbeam.offline.repair import repair
from quietbeam.offline.series import open_series
from quietbeam.offline.train import Recipe
from quietbeam.offline.write import denoise_file
from quietbeam.registry import find
from quietbeam.trainer.guard import GuardSet
from quietbeam.trainer.history import GUARD_PERIOD, History, is_guard
from quietbeam.trainer.sampler import Sampler

NAMES = ("low", "high")
FRAMES = 24
Hdf5 = find("sinks", "hdf5", SinkPlugin)


def run_start(**more):
    metrics = {"quality.psnr_estimated_db": {"unit": "dB"}}
    settings = {"run": "r", "shape": (2, *SHAPE), "dtype": np.dtype("u2"), "channels": NAMES}
    return RunStart(**(settings | {"metadata": {"quietbeam": {"metrics": metrics}}} | more))


def frame(index, pixels=None):
    pixels = counts(2, index) if pixels is None else pixels
    return Frame(run="r", index=index, time_ns=index, received_ns=index, pixels=pixels)


def result(index):
    clean = truth(2, index).astype(np.float32)
    return Result(
        run="r",
        index=index,
        time_ns=index,
        received_ns=index,
        clean=clean,
        sd=np.sqrt(clean),
        raw=counts(2, index),
        metrics={"quality.psnr_estimated_db": 20.0},
        denoiser="kalman",
        model_version=0,
        latency_s=0.0,
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A recording of two channels, as the daemon writes it."""
    path = tmp_path_factory.mktemp("channels") / "two.h5"
    with Hdf5(path=path, reserve_bytes=0).open() as sink:
        sink.start(run_start(mask=np.eye(*SHAPE, dtype=bool)))
        for index in range(FRAMES):
            sink.raw(frame(index))
            sink.write(result(index))
        sink.stop(RunEnd(run="r", reason="completed"))
    return path


def test_channels_cross_a_ring(tmp_path):
    mask = np.random.default_rng(0).random((2, *SHAPE)) < 0.1
    writer = ring.create(tmp_path / "ring", 1 << 22)
    reader = records.RunReader(ring.RingReader(writer.path, "test"))
    for item in (run_start(mask=mask), frame(3), result(3)):
        records.put(writer, item)
    (start,), (raw,), (clean,) = (list(reader.poll()) for _ in range(3))
    assert (start.shape, start.channels) == ((2, *SHAPE), NAMES)
    np.testing.assert_array_equal(start.mask, mask)
    np.testing.assert_array_equal(records.frame(raw).pixels, counts(2, 3))
    np.testing.assert_array_equal(records.result(clean).sd, result(3).sd)
    writer.unlink()


def test_a_mask_of_one_image_is_for_all_channels_and_one_of_each_for_its_own():
    pixels = counts(2, 0)
    for mask in (np.eye(*SHAPE, dtype=bool), np.stack([np.eye(*SHAPE), np.zeros(SHAPE)]) > 0):
        with Corrections(run_start(mask=mask, nodata=65535), []) as correct:
            corrected, valid = correct(pixels)
        np.testing.assert_array_equal(valid, np.broadcast_to(~mask, pixels.shape))
        np.testing.assert_array_equal(corrected[valid], pixels[valid])


def test_holes_are_filled_from_their_own_channel():
    pixels, valid = truth(2).astype(np.float32), np.ones((2, *SHAPE), bool)
    valid[1, 10:14, 10:14] = False
    filled = fill_invalid(np.where(valid, pixels, 9e9).astype(np.float32), valid)
    np.testing.assert_array_equal(filled[0], pixels[0])
    np.testing.assert_array_equal(filled[1], fill_invalid(filled[1], valid[1]))
    assert np.abs(filled[1] - pixels[1]).max() < 20


def test_a_dark_image_of_every_channel_is_taken_by_its_name(tmp_path):
    path = tmp_path / "dark.h5"
    dark = np.stack([np.full(SHAPE, 3.0), np.full(SHAPE, 5.0)])
    with h5py.File(path, "w") as file:
        group = file.create_group("dark")
        group["data"], group["channel"] = dark[None], np.array([b"high", b"low"])
        group.attrs["axes"] = ["time", "channel", ".", "."]
    dark_flat = find("corrections", "dark_flat", CorrectionPlugin)
    with Corrections(run_start(), [dark_flat(dark=f"{path}:/dark/data")]) as correct:
        corrected, _ = correct(counts(2, 0))
    np.testing.assert_array_equal(corrected, counts(2, 0) - np.float32([[[5]], [[3]]]))
    with pytest.raises((ConfigError, DataError), match="expected channel 'blue'"):
        Corrections(run_start(channels=("low", "blue")), [dark_flat(dark=f"{path}:/dark/data")])


@pytest.mark.parametrize("kind", ["torch", "openvino"])
@pytest.mark.parametrize("name", ["quiet", "kalman"])
def test_an_engine_gives_each_channel_what_it_would_get_alone(kind, name):
    module = find("denoisers", name, DenoiserPlugin)().build()
    config = EngineConfig(kind=kind, precision="f32")
    together = build_engine(module, (2, 32, 48), config)
    alone = [build_engine(module, (32, 48), config) for _ in range(2)]
    rng = np.random.default_rng(0)
    for _ in range(2):  # and the same after a reset
        for _ in range(2 * module.window):
            frames = rng.normal([[[20]], [[70]]], 1, (2, 32, 48)).astype(np.float32)
            mean, variance = together(frames)
            for channel, engine in enumerate(alone):
                one = engine(frames[channel])
                np.testing.assert_allclose(mean[channel], one[0], atol=2e-3)
                np.testing.assert_allclose(variance[channel], one[1], atol=2e-3)
        for engine in (together, *alone):
            engine.reset()


def test_the_figure_of_all_is_the_mean_and_the_worst_is_what_warns():
    one = {"quality.psnr_estimated_db": 20.0, "quality.psnr_error_db": 0.3, "quality.trusted": 1.0}
    two = {"quality.psnr_estimated_db": 30.0, "quality.psnr_error_db": 0.4, "quality.trusted": 0.0}
    figures = joined_figures([one, two], NAMES)
    assert figures["quality.psnr_estimated_db"] == 25.0
    assert figures["quality.psnr_error_db"] == pytest.approx(0.25)
    assert figures["quality.trusted"] == 0.0
    assert figures["quality.psnr_estimated_db.high"] == 30.0
    assert joined_figures([one], ()) == one
    assert joined_notices([None, "not white"], NAMES) == "high: not white"
    assert [row["psnr_estimated_db"] for row in each_channel(figures, NAMES)] == [20.0, 30.0]
    specs = specs_for({"a.b": MetricSpec("px", "Size")}, NAMES)
    assert specs["a.b.low"].description == "Size, low"


@pytest.mark.parametrize("form", ["array-1.0", "dectris-v2"])
@pytest.mark.parametrize("compression", ["none", "bslz4"])
def test_what_the_zmq_sink_sends_our_own_source_reads(form, compression):
    kind = "array" if form == "array-1.0" else "dectris"
    decoder = find("sources", kind, SourcePlugin)(address="tcp://127.0.0.1:1").decoder()
    settings = {"address": "tcp://127.0.0.1:*", "socket": "push", "format": form}
    sink = find("sinks", "zmq", SinkPlugin)(**settings, compression=compression)
    with sink.open() as out, zmq.Context() as context, context.socket(zmq.PULL) as consumer:
        consumer.connect(out.address)
        out.start(run_start(mask=np.eye(*SHAPE, dtype=bool)))
        while not out.sent:  # until the consumer is there
            out.write(result(1))
        events = []
        while len(events) < 2:
            assert consumer.poll(3000)
            message = consumer.recv_multipart()
            for number, part in enumerate(message):
                events += decoder.feed(part, 0, starts_message=number == 0)
    begun, received = events
    assert (begun.shape, begun.channels) == ((2, *SHAPE), NAMES)
    np.testing.assert_array_equal(received.pixels, result(1).clean)
    if form == "array-1.0":
        assert json.loads(message[0])["shape"] == [2, *SHAPE]
    else:
        assert list(cbor2.loads(message[0]).get("data", NAMES)) == list(NAMES)
        assert begun.mask.shape == (2, *SHAPE)


def test_a_recording_is_played_again_with_its_channels(recording):
    replay = find("sources", "replay", SourcePlugin)
    with replay(file=f"{recording}:/entry/raw/data", rate_hz=1e6).open() as events:
        begun, *frames = (event for event in events if isinstance(event, RunStart | Frame))
    assert (begun.shape, begun.channels, len(frames)) == ((2, *SHAPE), NAMES, FRAMES)
    np.testing.assert_array_equal(frames[5].pixels, counts(2, 5))


def test_a_recording_opens_in_plain_hdf5_with_its_axes_named(recording):
    with h5py.File(recording) as file:
        for group in (file["entry/raw"], file["entry/clean"]):
            assert group["data"].shape == (FRAMES, 2, *SHAPE)
            assert list(group.attrs["axes"]) == ["time", "channel", ".", "."]
            assert group["channel"].asstr()[:].tolist() == list(NAMES)
    with Recording(recording) as read:
        start = read.run_start()
        assert (start.shape, start.channels) == ((2, *SHAPE), NAMES)
        assert [plane.mask.sum() for plane in start.planes()] == [min(SHAPE)] * 2


def test_a_recording_that_was_cut_off_is_repaired(tmp_path):
    path, copy = tmp_path / "x.h5", tmp_path / "y.h5.part"
    with Hdf5(path=path, reserve_bytes=0).open() as sink:
        sink.start(run_start())
        for index in range(3):
            sink.raw(frame(index))
        sink.flush()
        sink.raw(frame(3))
        shutil.copy(f"{path}.part", copy)  # as a killed writer leaves it
    repaired = repair(copy)
    assert repaired.found.raw >= 3
    with Recording(repaired.file) as read:
        np.testing.assert_array_equal(read.raw[:3], [counts(2, n) for n in range(3)])


def test_every_channel_of_a_recording_is_cleaned_by_itself(recording, tmp_path):
    out = tmp_path / "clean.h5"
    reports = denoise_file(f"{recording}:/entry/raw/data", out, "kalman", Recipe(steps=1))
    assert [report.source.rpartition("[")[2] for report in reports] == ["low]", "high]"]
    with Recording(out) as cleaned:
        assert cleaned.channels == NAMES
        np.testing.assert_array_equal(cleaned.raw[:], [counts(2, n) for n in range(FRAMES)])
        error = cleaned.clean[8:] - truth(2)
        noise = cleaned.raw[8:] - truth(2)
        assert (np.mean(error**2, (0, 2, 3)) < 0.5 * np.mean(noise**2, (0, 2, 3))).all()
        metrics = cleaned.metrics
        for name, report in zip(NAMES, reports, strict=True):
            known = metrics[f"quality.psnr_estimated_db.{name}"][0]
            assert known == pytest.approx(report.figures.psnr_clean_db)
    with open_series(f"{out}:/entry/clean/data") as series:
        assert series.channel("high")[3].shape == SHAPE
        with pytest.raises(DataError, match="expected one image"):
            series.channel(None)


def trained_on(channels, frames=80):
    """A history and guard frames: the value of a pixel is 1000 * channel + the frame's number."""
    shape = (channels, 64, 64) if channels > 1 else (64, 64)
    history = History(shape, window=3, target=1, clip_px=48, budget_bytes=16 << 20)
    guards = GuardSet(shape, window=3, after=1, budget_bytes=16 << 20)
    history.start("f4")
    offset = np.arange(channels, dtype=np.float32)[:, None, None] * 1000
    for index in range(frames):
        pixels = np.broadcast_to(offset + index, (channels, 64, 64)).reshape(shape)
        valid = np.ones(shape, bool)
        valid[..., 0, :] = False  # so that masks are kept
        history.append("r", index, pixels, valid)
        guards.look(history.recent)
    return history, guards


def test_a_training_clip_is_of_one_channel_in_its_own_units_and_all_channels_come():
    history, _ = trained_on(3)
    scales = [Stabiliser(NoiseModel(0.0, sd**2)) for sd in (1.0, 2.0, 3.0)]
    sampler = Sampler(history, {"r": tuple(scales)}, batch=8, patch_px=32)
    seen = set()
    for _ in range(12):
        values, _ = sampler.draw()
        for clip in values:
            assert np.ptp(clip, (1, 2)).max() == 0
            counts_of = [np.rint(clip[:, 0, 0] * sd - 1000 * n) for n, sd in enumerate((1, 2, 3))]
            channel = next(n for n, index in enumerate(counts_of) if 0 <= index[0] < 100)
            assert np.diff(counts_of[channel]).tolist() == [1, 1]
            assert not any(is_guard(int(index)) for index in counts_of[channel])
            seen.add(channel)
    assert seen == {0, 1, 2}


def test_a_guard_frame_holds_every_channel():
    _, guards = trained_on(3)
    assert len(guards.recent) == 80 // GUARD_PERIOD - 1  # the last one waits for its successor
    for guard in guards.recent:
        values = [crop.clip.pixels[crop.guard].max() for crop in guard.crops]
        assert [crop.clip.channel for crop in guard.crops] == [0, 1, 2]
        assert np.diff(values).tolist() == [1000, 1000]
        assert is_guard(round(float(values[0])))
