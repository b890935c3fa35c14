"""Analyses over a run: whole frames or channels, maps beside metrics, failures kept apart."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import pytest

from quietbeam import (
    AnalysisPlugin,
    MapClass,
    MapSpec,
    Measured,
    MetricSpec,
    Observation,
    RunStart,
)
from quietbeam.model.measure import Measure, map_specs, metric_specs


class Level(AnalysisPlugin):
    """Of the old kind: one channel, clean and s.d."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {
            "mean": MetricSpec("count", "mean", uncertainty="mean_sd"),
            "mean_sd": MetricSpec("count", "its s.d."),
        }

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., Measured]]:
        yield lambda clean, sd: {"mean": float(clean.mean()), "mean_sd": float(sd.mean())}


class Ratio(AnalysisPlugin):
    """Of whole frames, with a map."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "frame"
    dtype: str = "float32"

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {"index": MetricSpec("", "number of the frame"), "raw": MetricSpec("", "raw sum")}

    def maps(self) -> Mapping[str, MapSpec]:
        return {"over": MapSpec("", "first channel over the second")}

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., Measured]]:
        def measure(seen: Observation) -> Measured:
            over = seen.clean[0] / seen.clean[1]
            return {
                "index": seen.index,
                "raw": float(seen.raw.sum()),
                "over": over.astype(self.dtype),
            }

        yield measure


class Noise(AnalysisPlugin):
    """Of the measured frame, channel by channel."""

    sees: ClassVar[Literal["clean", "channel", "frame"]] = "channel"

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {"raw": MetricSpec("count", "raw mean")}

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., Measured]]:
        yield lambda seen: {"raw": float(seen.raw.mean())}


class Broken(AnalysisPlugin):
    """Measures once, then never again."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {"value": MetricSpec("", "1")}

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., Measured]]:
        seen = []

        def measure(clean: np.ndarray, sd: np.ndarray) -> Measured:
            seen.append(1)
            if len(seen) > 2:
                raise ArithmeticError("the third time")
            return {"value": 1.0}

        yield measure


class Talker(AnalysisPlugin):
    """Has something to say."""

    def metrics(self) -> Mapping[str, MetricSpec]:
        return {}

    @contextmanager
    def open(self, run: RunStart) -> Iterator[Callable[..., Measured]]:
        class Running:
            message: str | None = None

            def __call__(self, clean: np.ndarray, sd: np.ndarray) -> Measured:
                self.message = "no open beam"
                return {}

        yield Running()


RUN = RunStart(run="r", shape=(2, 4, 5), dtype=np.dtype("u2"), channels=("low", "high"))


def observation(index: int = 3) -> Observation:
    raw = np.ones((2, 4, 5), np.uint16) * np.array([6, 3], np.uint16)[:, None, None]
    clean = raw.astype(np.float32)
    return Observation(
        index=index,
        time_ns=0,
        clean=clean,
        sd=clean / 10,
        corrected=clean,
        valid=clean > 0,
        raw=raw,
    )


def measuring(*plugins: tuple[str, AnalysisPlugin]) -> tuple[Measure, list[str]]:
    failed: list[str] = []
    measure = Measure(plugins, lambda name, error: failed.append(f"{name}: {error}"))
    measure.start(RUN)
    return measure, failed


def test_one_kind_sees_each_channel_and_the_other_whole_frames_with_their_number():
    measure, failed = measuring(("level", Level()), ("ratio", Ratio()))
    found = measure(observation(7))
    assert found.metrics == {
        "level.mean.low": 6.0,
        "level.mean_sd.low": pytest.approx(0.6),
        "level.mean.high": 3.0,
        "level.mean_sd.high": pytest.approx(0.3),
        "ratio.index": 7,
        "ratio.raw": 180.0,
    }
    assert list(found.maps) == ["ratio.over"]
    np.testing.assert_array_equal(found.maps["ratio.over"], np.full((4, 5), 2, np.float32))
    assert failed == []


def test_an_analysis_may_see_the_measured_frame_of_each_channel():
    measure, _ = measuring(("noise", Noise()))
    assert measure(observation()).metrics == {"noise.raw.low": 6.0, "noise.raw.high": 3.0}
    assert set(metric_specs([("noise", Noise())], RUN.channels)) == {
        "noise.raw.low",
        "noise.raw.high",
    }


def test_names_of_uncertainties_are_whole_names():
    plugins = [("level", Level()), ("ratio", Ratio())]
    specs = metric_specs(plugins, RUN.channels)
    assert specs["level.mean.low"].uncertainty == "level.mean_sd.low"
    assert metric_specs(plugins)["level.mean"].uncertainty == "level.mean_sd"
    assert specs["level.mean_sd.low"].uncertainty == ""
    assert set(map_specs(plugins, RUN.channels)) == {"ratio.over"}


def test_a_failing_analysis_is_off_for_the_run_with_a_reason_and_the_others_go_on():
    measure, failed = measuring(("broken", Broken()), ("level", Level()))
    assert "broken.value.low" in measure(observation()).metrics
    for _ in range(3):
        found = measure(observation()).metrics
    assert not any(name.startswith("broken") for name in found)
    assert found["level.mean.low"] == 6.0
    assert failed == ["broken: the third time"]
    off = "switched off for this run: the third time"
    assert measure.states()["broken"] == {"state": "off", "message": off}
    assert measure.states()["level"] == {"state": "on", "message": None}
    measure.stop()
    measure.start(RUN)
    assert "broken.value.low" in measure(observation()).metrics


def test_a_map_that_is_not_what_was_declared_switches_its_analysis_off():
    measure, failed = measuring(("ratio", Ratio(dtype="float64")))
    assert measure(observation()).maps == {}
    assert failed == ["ratio: map over is float64 (4, 5), declared as float32 (4, 5)"]


def test_what_a_running_analysis_says_is_told():
    measure, _ = measuring(("talker", Talker()))
    measure(observation())
    assert measure.states()["talker"] == {"state": "on", "message": "high: no open beam"}


def test_classes_have_names_and_colours():
    spec = MapSpec("", "phases", "uint8", (MapClass("gold", (212, 175, 55)),))
    assert spec.classes[0].colour == (212, 175, 55)
