"""Runs analyses over one run: each by itself, whole frames or channel by channel.

The live pipeline and ``quietbeam analyse`` measure with this, so they give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.events import RunStart
from quietbeam.core.planes import planes
from quietbeam.core.plugin import AnalysisPlugin, Measured, Observation
from quietbeam.core.result import MapSpec, MetricSpec
from quietbeam.model.channels import Spec, named_for, specs_for


@dataclass(slots=True)
class Measurements:
    """What all analyses say of one frame, by ``analysis.name`` (with ``.channel``)."""

    metrics: dict[str, float | NDArray[Any]] = field(default_factory=dict)
    maps: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Running:
    measure: Callable[..., Measured]
    plugin: AnalysisPlugin
    name: str
    channel: str = ""
    plane: int | None = None  # None: it takes whole frames

    def __call__(self, seen: Observation) -> Measured:
        if self.plane is None:
            return self.measure(seen)
        if self.plugin.sees == "channel":
            return self.measure(seen.plane(self.plane))
        return self.measure(planes(seen.clean)[self.plane], planes(seen.sd)[self.plane])


class Measure:
    """All analyses over one run after the other; one that fails is switched off for the run.

    Args:
        plugins: By name, in order.
        failed: Told of (name, error) when one is switched off.
    """

    def __init__(
        self,
        plugins: Sequence[tuple[str, AnalysisPlugin]],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._plugins, self._failed = tuple(plugins), failed
        self._stack = ExitStack()
        self._running: list[_Running] = []
        self._off: dict[str, str] = {}

    def start(self, run: RunStart) -> None:
        """Open every analysis."""
        self._off = {}
        for name, plugin in self._plugins:
            try:
                self._running += list(self._opened(name, plugin, run))
            except Exception as error:  # noqa: BLE001 - a plugin's fault must not stop the beam
                self._fail(name, error)

    def _opened(self, name: str, plugin: AnalysisPlugin, run: RunStart) -> Iterator[_Running]:
        if plugin.sees == "frame":
            yield _Running(self._stack.enter_context(plugin.open(run)), plugin, name)
            return
        for number, plane in enumerate(run.planes()):
            channel = run.channels[number] if run.channels else ""
            measure = self._stack.enter_context(plugin.open(plane))
            yield _Running(measure, plugin, name, channel, number)

    def __call__(self, seen: Observation) -> Measurements:
        """Measure one frame."""
        found = Measurements()
        for one in self._running:
            if one.name in self._off:
                continue
            try:
                self._sort(one, one(seen), seen.clean.shape[-2:], found)
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(one.name, error)
        return found

    def stop(self) -> None:
        """The run is over."""
        self._running.clear()
        stack, self._stack = self._stack, ExitStack()
        try:
            stack.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._failed("", error)

    def states(self) -> dict[str, dict[str, str | None]]:
        """Say of each analysis by name whether it is "on" or "off", and what it has to tell."""
        told: dict[str, dict[str, str | None]] = {
            name: {"state": "on", "message": None} for name, _ in self._plugins
        }
        for one in list(self._running):
            message = getattr(one.measure, "message", None)
            if message:
                of = f"{one.channel}: " if one.channel else ""
                told[one.name] = {"state": "on", "message": f"{of}{message}"}
        for name, why in list(self._off.items()):
            told[name] = {"state": "off", "message": why}
        return told

    def _sort(
        self, one: _Running, measured: Measured, shape: tuple[int, ...], found: Measurements
    ) -> None:
        """Tell maps from metrics, under their whole names.

        Raises:
            ValueError: A map has not the shape and dtype it must have.
        """
        maps = one.plugin.maps()
        for name, value in measured.items():
            whole = named_for(f"{one.name}.{name}", one.channel)
            if name in maps:
                found.maps[whole] = _checked(name, maps[name], np.asarray(value), shape)
            else:
                found.metrics[whole] = value

    def _fail(self, name: str, error: Exception) -> None:
        self._off[name] = f"switched off for this run: {error or repr(error)}"
        self._failed(name, error)


def metric_specs(
    plugins: Sequence[tuple[str, AnalysisPlugin]], channels: Sequence[str] = ()
) -> dict[str, MetricSpec]:
    """Every metric, as ``analysis.name``, or ``analysis.name.channel`` of each channel."""
    return _whole(plugins, channels, lambda plugin: plugin.metrics())


def map_specs(
    plugins: Sequence[tuple[str, AnalysisPlugin]], channels: Sequence[str] = ()
) -> dict[str, MapSpec]:
    """Every map, named as metrics are."""
    return _whole(plugins, channels, lambda plugin: plugin.maps())


def _whole(
    plugins: Sequence[tuple[str, AnalysisPlugin]],
    channels: Sequence[str],
    of: Callable[[AnalysisPlugin], Mapping[str, Spec]],
) -> dict[str, Spec]:
    made: dict[str, Spec] = {}
    for name, plugin in plugins:
        specs = {
            f"{name}.{key}": replace(
                spec, uncertainty=spec.uncertainty and f"{name}.{spec.uncertainty}"
            )
            for key, spec in of(plugin).items()
        }
        made |= specs_for(specs, channels) if channels and plugin.sees != "frame" else specs
    return made


def _checked(name: str, spec: MapSpec, image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if image.shape != shape or image.dtype != np.dtype(spec.dtype):
        raise ValueError(
            f"map {name} is {image.dtype} {image.shape}, declared as {spec.dtype} {shape}"
        )
    return np.ascontiguousarray(image)
