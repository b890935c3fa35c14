"""The whole path in one process: a source nobody needs hardware for, real rings, real engines."""

import threading
import time
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from pydantic import PrivateAttr

from quietbeam import Frame, Rejected, RunEnd, RunStart, SinkPlugin, SourcePlugin
from quietbeam.config import Named, load
from quietbeam.core import records, ring
from quietbeam.core.ledger import Ledger
from quietbeam.core.ring import RingReader
from quietbeam.model import checkpoint
from quietbeam.model.clean import Prepared
from quietbeam.pipeline.live import Model, Switch
from quietbeam.pipeline.pipeline import Pipeline, Rings

CONFIG = """
[source]
kind = "array"
address = "tcp://127.0.0.1:1"
[denoiser]
kind = "quiet"
[calibration]
frames = 4
[service]
max_backlog_frames = 1000
"""


def phantom_run(run, frames, shape=(48, 64), dtype=np.uint16, start=0, mean=30.0):
    """A run of so many frames; or, where an event is given, until 10 frames after it is set."""
    rng = np.random.default_rng(0)
    truth = mean * (1 + 0.5 * np.sin(np.arange(shape[1]) / 6))
    yield RunStart(run=run, shape=shape, dtype=np.dtype(dtype), frame_time_s=0.05)
    indices = until(frames) if isinstance(frames, threading.Event) else range(start, start + frames)
    for i in indices:
        pixels = rng.poisson(np.broadcast_to(truth, shape)).astype(dtype)
        now = time.monotonic_ns()
        yield Frame(run=run, index=i, time_ns=i * 50_000_000, received_ns=now, pixels=pixels)
    yield RunEnd(run=run, reason="completed")


def until(done, at_most=3000):
    """Count until 10 after an event is set."""
    left = 10
    for i in range(at_most):
        left -= done.is_set()
        if left < 0:
            return
        yield i


class Script(SourcePlugin):
    """Plays given events, then ends."""

    pause_s: float = 0.0
    _events: list = PrivateAttr(default_factory=list)

    def with_events(self, events):
        self._events = events
        return self

    @contextmanager
    def open(self):
        def play():
            for event in self._events:
                if self.pause_s:
                    time.sleep(self.pause_s)
                yield event

        yield play()


class Collect(SinkPlugin):
    """Keeps what it is given; may be told to fail or to stall."""

    fail_at: int | None = None
    stall: bool = False
    _items: list = PrivateAttr(default_factory=list)
    _go: threading.Event = PrivateAttr(default_factory=threading.Event)

    @contextmanager
    def open(self):
        yield self

    def start(self, run):
        self._items.append(run)

    def write(self, result):
        if self.stall:
            self._go.wait(20)
        if self.fail_at == result.index:
            raise OSError("no route to host")
        self._items.append(result)

    def stop(self, end):
        self._items.append(end)

    @property
    def results(self):
        return [item for item in list(self._items) if hasattr(item, "clean")]

    def wait_for(self, **fields):
        """Wait until a result says so."""
        deadline = time.monotonic() + 60
        while not any(
            all(getattr(result, name) == value for name, value in fields.items())
            for result in self.results
        ):
            assert time.monotonic() < deadline, f"no result with {fields}"
            time.sleep(0.02)


@pytest.fixture
def make(tmp_path):
    made = []

    def build(events, sinks=(), text=CONFIG, pause_s=0.0, ring_bytes=1 << 26):
        path = tmp_path / "c.toml"
        path.write_text(text)
        config = load(path)
        fields = {f: getattr(config, f) for f in config.__dataclass_fields__}
        fields["source"] = Named("script", Script(pause_s=pause_s).with_events(events))
        fields["sinks"] = tuple(Named("collect", sink) for sink in sinks)
        rings = Rings(
            ring.create(tmp_path / "raw", ring_bytes), ring.create(tmp_path / "clean", ring_bytes)
        )
        pipeline = Pipeline(type(config)(**fields), rings, Ledger())
        made.append(rings)
        return pipeline

    yield build
    for rings in made:
        rings.raw.unlink()
        rings.clean.unlink()


def run_to_end(pipeline, during=None, done=None):
    """Run all threads; a run that lasts until ``done`` ends once ``during`` has."""
    threads = [threading.Thread(target=b, name=n) for n, b in pipeline.bodies().items()]
    for thread in threads:
        thread.start()
    try:
        if during is not None:
            during()
    finally:
        if done is not None:
            done.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), f"{thread.name} did not end"


def balanced(pipeline):
    return all(stage.in_flight == 0 for stage in pipeline.ledger.stages().values())


def test_every_frame_comes_out_once_in_order_with_a_standard_deviation(make):
    sink = Collect()
    pipeline = make(phantom_run("a", 20), [sink])
    run_to_end(pipeline)
    assert [r.index for r in sink.results] == list(range(20))
    assert all(np.isfinite(r.clean).all() and (r.sd > 0).all() for r in sink.results[1:])
    assert sink.results[-1].denoiser == "kalman"
    assert balanced(pipeline)


def test_the_classical_fallback_already_improves_the_frames(make):
    sink = Collect()
    run_to_end(make(phantom_run("a", 40), [sink]))
    truth = np.broadcast_to(30 * (1 + 0.5 * np.sin(np.arange(64) / 6)), (48, 64))
    last = sink.results[-1]
    assert np.mean((last.clean - truth) ** 2) < 0.2 * np.mean((last.raw - truth) ** 2)


def test_runs_of_other_shape_and_dtype_follow_each_other(make):
    sink = Collect()
    events = [*phantom_run("a", 6), *phantom_run("b", 7, (33, 41), np.uint32), *phantom_run("c", 3)]
    pipeline = make(events, [sink])
    run_to_end(pipeline)
    assert [r.run for r in sink.results] == ["a"] * 6 + ["b"] * 7 + ["c"] * 3
    assert sink.results[8].clean.shape == (33, 41)
    assert balanced(pipeline)


def test_missing_frames_and_rejected_messages_are_counted_by_reason(make):
    events = list(phantom_run("a", 20))
    del events[5:8]
    events.insert(4, Rejected(reason="truncated", detail="got 3 bytes, expected 9"))
    pipeline = make(events)
    run_to_end(pipeline)
    assert pipeline.ledger.source().missing == 3
    assert pipeline.ledger.source().rejected == {"truncated": 1}
    assert pipeline.ledger.stages()["ingest"].received == 17


def test_masked_nodata_and_saturated_pixels_never_reach_the_clean_frame(make):
    events = list(phantom_run("a", 12))
    mask = np.zeros((48, 64), bool)
    mask[3, 4] = True
    start = events[0]
    events[0] = RunStart(
        run="a", shape=start.shape, dtype=start.dtype, mask=mask, nodata=65535, saturation=60000
    )
    for frame in events[1:-1]:
        frame.pixels[3, 4], frame.pixels[10, 10] = 40000, 65535
    events[6].pixels[20, 20] = 61000
    sink = Collect()
    run_to_end(make(events, [sink]))
    for result in sink.results:
        assert np.isnan(result.clean[3, 4])
        assert np.isnan(result.clean[10, 10])
        assert np.nanmax(result.clean) < 200


def test_a_stalled_sink_loses_its_own_frames_only_and_the_loss_is_counted(make):
    stalled, healthy = Collect(stall=True), Collect()
    pipeline = make(phantom_run("a", 150), [stalled, healthy])
    timer = threading.Timer(3.0, stalled._go.set)
    timer.start()
    run_to_end(pipeline)
    stages = pipeline.ledger.stages()
    assert len(healthy.results) + sum(stages["collect.1"].dropped.values()) == 150
    assert stages["collect.0"].dropped["full"] > 0
    assert stages["collect.0"].sent == len(stalled.results)
    assert balanced(pipeline)


def test_a_failing_sink_is_opened_again_and_gets_the_run_start_again(make):
    sink = Collect(fail_at=3)
    pipeline = make(phantom_run("a", 10), [sink], pause_s=0.1)
    run_to_end(pipeline)
    assert [r.index for r in sink.results] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sum(isinstance(item, RunStart) for item in sink._items) == 2
    assert pipeline.ledger.stages()["collect.0"].dropped == {"failed": 1}


def test_an_overloaded_denoiser_gives_up_the_oldest_and_accounts_for_them(make):
    text = CONFIG.replace("1000", "8")
    sink = Collect()
    pipeline = make(phantom_run("a", 300, (16, 16)), [sink], text)
    run_to_end(pipeline)
    stage = pipeline.ledger.stages()["denoise"]
    assert stage.received == 300
    assert stage.sent == 300 - sum(stage.dropped.values())
    assert balanced(pipeline)


def test_the_clean_ring_carries_runs_and_results_for_other_processes(make, tmp_path):
    pipeline = make(phantom_run("a", 9))
    reader = RingReader(tmp_path / "clean", "test")
    run_to_end(pipeline)
    items = []
    runs = records.RunReader(reader)
    while not reader.finished:
        items += runs.poll(0)
    assert isinstance(items[0], RunStart)
    assert isinstance(items[-1], RunEnd)
    results = [records.result(item) for item in items[1:-1]]
    assert [r.index for r in results] == list(range(9))
    assert set(items[0].metadata["quietbeam"]["metrics"]) <= set(results[-1].metrics)


def save_weights(pipeline, path: Path, without=None):
    module = pipeline.config.denoiser.plugin.build()
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    weights.pop(without, None)
    checkpoint.save(path, weights, {"denoiser": "quiet"})
    return path


def test_a_promoted_network_takes_over_without_losing_or_repeating_a_frame(make, tmp_path):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def promote_then_demote():
        sink.wait_for(index=5)
        pipeline.offer(None, path, 1).result(90)
        sink.wait_for(model_version=1)
        pipeline.demote()

    run_to_end(pipeline, promote_then_demote, done)
    frames = len(sink.results)
    assert frames == pipeline.ledger.stages()["ingest"].received
    assert [r.index for r in sink.results] == list(range(frames))
    versions = [r.model_version for r in sink.results]
    assert set(versions) == {0, 1}
    assert versions == sorted(versions[: versions.index(1)]) + [1] * versions.count(1) + [0] * (
        frames - versions.index(1) - versions.count(1)
    )


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(make, tmp_path):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)
    good = save_weights(pipeline, tmp_path / "g.safetensors")
    bad = save_weights(pipeline, tmp_path / "b.safetensors", without="gather.bias")

    def offer_both():
        sink.wait_for(index=5)
        pipeline.offer(None, good, 1).result(90)
        with pytest.raises(Exception, match="gather"):
            pipeline.offer(None, bad, 2).result(90)
        sink.wait_for(model_version=1)

    run_to_end(pipeline, offer_both, done)
    assert {r.model_version for r in sink.results} == {0, 1}
    assert sink.results[-1].model_version == 1


def test_a_denoiser_too_slow_for_the_frame_rate_is_refused_and_says_so(make, tmp_path):
    def fast_run():
        events = list(phantom_run("a", 60, (256, 256)))
        start = events[0]
        events[0] = RunStart(run="a", shape=start.shape, dtype=start.dtype, frame_time_s=1e-4)
        return events

    sink = Collect()
    pipeline = make(fast_run(), [sink], pause_s=0.05)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def offer():
        time.sleep(0.5)
        with pytest.raises(Exception, match="per frame"):
            pipeline.offer(None, path, 1).result(90)
        assert "staying with kalman" in pipeline.snapshot()["message"]

    run_to_end(pipeline, offer)
    assert {r.model_version for r in sink.results} == {0}


def test_the_fallback_changes_between_two_frames_and_every_result_names_its_own(make):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)

    def change():
        sink.wait_for(index=9)
        pipeline.use_fallback("svd").result(90)
        assert pipeline.snapshot()["fallback"] == "svd"

    run_to_end(pipeline, change, done)
    assert [r.index for r in sink.results] == list(range(len(sink.results)))
    names = [r.denoiser for r in sink.results]
    assert names == ["kalman"] * names.count("kalman") + ["svd"] * names.count("svd")
    assert min(names.count("kalman"), names.count("svd")) > 5
    assert {r.model_version for r in sink.results} == {0}
    assert balanced(pipeline)


def test_the_fallback_changes_under_a_live_network_and_takes_over_from_it(make, tmp_path):
    sink, done = Collect(), threading.Event()
    pipeline = make(phantom_run("a", done), [sink], pause_s=0.03)
    path = save_weights(pipeline, tmp_path / "w.safetensors")

    def change_all():
        sink.wait_for(index=5)
        pipeline.offer(None, path, 1).result(90)
        sink.wait_for(denoiser="quiet")
        pipeline.use_fallback("median").result(90)
        pipeline.demote()
        sink.wait_for(denoiser="median")

    run_to_end(pipeline, change_all, done)
    assert [r.index for r in sink.results] == list(range(len(sink.results)))
    seen = list(dict.fromkeys((r.denoiser, r.model_version) for r in sink.results))
    assert seen == [("kalman", 0), ("quiet", 1), ("median", 0)]


def test_the_chosen_fallback_is_used_in_the_next_run_too(make):
    sink, done = Collect(), threading.Event()
    runs = chain(phantom_run("a", done), phantom_run("b", 8, (33, 41)))
    pipeline = make(runs, [sink], pause_s=0.03)

    def change():
        sink.wait_for(index=5)
        pipeline.use_fallback("svd").result(90)

    run_to_end(pipeline, change, done)
    assert {r.denoiser for r in sink.results if r.run == "b"} == {"svd"}


def test_a_fallback_that_is_too_slow_or_unknown_is_refused_with_a_reason(make):
    events = list(phantom_run("a", 40, (256, 256)))
    start = events[0]
    events[0] = RunStart(run="a", shape=start.shape, dtype=start.dtype, frame_time_s=1e-5)
    sink = Collect()
    pipeline = make(events, [sink], pause_s=0.05)

    def change():
        time.sleep(0.5)
        with pytest.raises(Exception, match="svd needs"):
            pipeline.use_fallback("svd").result(90)
        assert "staying with kalman" in pipeline.snapshot()["message"]
        with pytest.raises(Exception, match="none of the classical"):
            pipeline.use_fallback("quiet").result(90)

    run_to_end(pipeline, change)
    assert {r.denoiser for r in sink.results} == {"kalman"}
    assert pipeline.snapshot()["fallback"] == "kalman"


class Late:
    """An engine that waits ``lag`` frames and gives each frame back."""

    blind = True

    def __init__(self, lag):
        self.lag = lag
        self.reset()

    def reset(self):
        self.frames = []

    def __call__(self, frame):
        self.frames.append(frame)
        found = self.frames[-1 - min(self.lag, len(self.frames) - 1)]
        return found, np.ones_like(found)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (2, 2)])
@pytest.mark.parametrize("under", [None, 5])
def test_a_fallback_that_waits_longer_or_shorter_loses_and_repeats_nothing(before, after, under):
    """Switched at any time, with or without a network that waits as well."""
    for at in (1, 3, 9):
        switch = Switch(Late(before), "old")
        out = []
        for i in range(20):
            frame = Frame(run="a", index=i, time_ns=0, received_ns=0, pixels=np.zeros((2, 2)))
            pixels = np.full((2, 2), i, np.float32)
            out += switch.push(Prepared(i, frame, pixels, np.ones((2, 2), bool), pixels))
            if i == 0 and under is not None:
                switch.promote(switch.warm(Late(under)), Model("network", 1))
            if i == at:
                switch.change_fallback(switch.warm(Late(after)), "new")
            if i == 12:
                switch.demote()
        out += switch.flush()
        assert [estimate.prepared.position for estimate, _ in out] == list(range(20))
        assert all((estimate.blind == estimate.prepared.z).all() for estimate, _ in out)
        assert out[-1][1] == Model("new", 0)
