"""Frames of several channels through the real daemon: socket, pipeline, trainer, recorder."""

import itertools
import threading

import h5py
import numpy as np
import pytest

from helpers.channels import SHAPE, Camera, counts, send, truth
from helpers.daemons import config_text, free_port, started
from quietbeam.offline.recording import Recording
from quietbeam.testing.simulators import encoder

FRAMES = 60
SETTLED = 40


def one_recorded(directory, kind, *more, denoiser="kalman"):
    """Text of a configuration with a recorder."""
    sinks = f'[[sinks]]\nkind = "hdf5"\ndirectory = "{directory}"\n'
    port = free_port()
    text = config_text(directory, port, sinks=sinks, more="\n".join(more), denoiser=denoiser)
    return text.replace('kind = "array"', f'kind = "{kind}"'), port


def recorded_runs(count):
    """So many recordings are complete."""
    return lambda status: len(status["outputs"]["hdf5.0"]["finished"]) == count


def assert_better_in_every_channel(recorded, sent):
    """Clean is nearer to the truth than raw, and its s.d. tells by how much it is not there."""
    clean, sd = recorded.clean[SETTLED:FRAMES], recorded.errors[SETTLED:FRAMES]
    expected = np.stack([truth(sent.shape[1], n) for n in range(SETTLED, FRAMES)])
    for channel in range(sent.shape[1]):
        error = clean[:, channel] - expected[:, channel]
        noise = sent[SETTLED:FRAMES, channel] - expected[:, channel]
        assert np.mean(error**2) < 0.5 * np.mean(noise**2)
        told = np.mean(sd[:, channel] ** 2)
        assert 0.3 < np.mean(error**2) / told < 3


def assert_balanced(daemon):
    [last] = daemon.events("daemon_stopped")
    assert last["left"] == []
    assert last["stages"]["ingest"]["received"] == last["stages"]["denoise"]["sent"]


def test_a_colour_camera_is_cleaned_and_recorded_colour_by_colour(tmp_path):
    sent = np.stack([counts(3, n) for n in range(FRAMES)])
    analysis = '[[analyses]]\nkind = "statistics"\n'
    text, port = one_recorded(tmp_path, "array", analysis, "[trainer]\nenabled = false")
    with started(tmp_path, text, port) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60)
        assert send(port, Camera(), sent, rate_hz=60) == FRAMES
        status = daemon.wait_for(lambda s: s["pipeline"]["run_frames"] == FRAMES, 30)
        status = daemon.wait_for(lambda s: len(s["pipeline"]["channels"]) == 3, 30)
        assert status["pipeline"]["shape"] == [3, *SHAPE]
        daemon.wait_for(recorded_runs(1), 60, "the end of the recording")
        assert daemon.stop() == 0
        assert_balanced(daemon)
    (file,) = tmp_path.glob("*.h5")
    with Recording(file) as recorded:
        assert recorded.channels == ("red", "green", "blue")
        assert recorded.raw.shape == (FRAMES, 3, *SHAPE)
        np.testing.assert_array_equal(recorded.raw[:], sent)
        assert_better_in_every_channel(recorded, sent)
        metrics = recorded.metrics
        for n, name in enumerate(recorded.channels):
            mean = metrics[f"statistics.frame_mean.{name}"]
            assert np.median(mean) == pytest.approx(truth(3)[n].mean(), rel=0.02)
        of_each = [metrics[f"quality.psnr_estimated_db.{name}"] for name in recorded.channels]
        np.testing.assert_allclose(metrics["quality.psnr_estimated_db"], np.mean(of_each, 0))
        assert recorded.run_start().channels == recorded.channels
    with h5py.File(file) as plain:
        assert list(plain["entry/clean"].attrs["axes"]) == ["time", "channel", ".", "."]
        assert plain["entry/clean/channel"].asstr()[:].tolist() == ["red", "green", "blue"]


def test_two_thresholds_then_one_then_two_are_three_runs(tmp_path):
    text, port = one_recorded(tmp_path, "dectris", "[trainer]\nenabled = false")
    runs = [
        np.stack([counts(2, n) for n in range(FRAMES)]),
        np.stack([counts(1, n)[0] for n in range(20)]),
        np.stack([counts(2, n) for n in range(10)]),
    ]
    with started(tmp_path, text, port) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60)
        for number, sent in enumerate(runs, 1):
            stream = encoder("dectris-v2", "bslz4")
            assert send(port, stream, sent, rate_hz=60) == len(sent)
            daemon.wait_for(recorded_runs(number), 60, "the end of a run")
        assert daemon.stop() == 0
        assert_balanced(daemon)
    files = sorted(tmp_path.glob("*.h5"), key=lambda path: path.stat().st_ctime_ns)
    for file, sent in zip(files, runs, strict=True):
        with Recording(file) as recorded:
            np.testing.assert_array_equal(recorded.raw[:], sent)
            assert recorded.clean.shape == sent.shape
            names = ("threshold_1", "threshold_2") if sent.ndim == 4 else ()
            assert recorded.channels == names
            if len(sent) == FRAMES:
                assert_better_in_every_channel(recorded, sent)


@pytest.mark.slow
def test_a_network_is_trained_on_two_thresholds_and_promoted(tmp_path):
    text, port = one_recorded(tmp_path, "dectris", denoiser="quiet")
    done = threading.Event()
    frames = (counts(2, n, speed=1.5) for n in itertools.count())
    with started(tmp_path, text, port) as daemon:
        daemon.wait_for(lambda s: s["state"] == "running", 60)
        sender = threading.Thread(
            target=send,
            args=(port, encoder("dectris-v2"), frames),
            kwargs={"rate_hz": 20, "stop": done.is_set},
        )
        sender.start()
        try:
            daemon.wait_for(lambda s: s["pipeline"]["model_version"] > 0, 180, "a promotion")
            now = daemon.status()["pipeline"]["run_frames"]
            status = daemon.wait_for(lambda s: s["pipeline"]["run_frames"] > now + 60, 60)
        finally:
            done.set()
            sender.join()
        assert [one["name"] for one in status["pipeline"]["channels"]] == [
            "threshold_1",
            "threshold_2",
        ]
        daemon.wait_for(recorded_runs(1), 60, "the end of the recording")
        assert daemon.stop() == 0
        assert_balanced(daemon)
    (file,) = tmp_path.glob("*.h5")
    with Recording(file) as recorded:
        version, index = recorded.column("clean/model_version"), recorded.column("clean/frame_id")
        network = np.flatnonzero(version > 0)[20:]
        expected = np.stack([truth(2, n, speed=1.5) for n in index[network]])
        raw = np.stack([counts(2, n, speed=1.5) for n in index[network]])
        clean, sd = (np.stack([of[i] for i in network]) for of in (recorded.clean, recorded.errors))
        for channel in range(2):
            error, noise = (x[:, channel] - expected[:, channel] for x in (clean, raw))
            assert np.mean(error**2) < 0.2 * np.mean(noise**2)
            assert 0.3 < np.mean(error**2) / np.mean(sd[:, channel] ** 2) < 3
