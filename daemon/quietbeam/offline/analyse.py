"""Runs an analysis over a recording: on its clean frames and, for comparison, on its raw ones.

The same plugins, in the same way, as in the live daemon.  Raw frames get the s.d. of the noise
model, so that what both say can be compared with its uncertainty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quietbeam.core.errors import ConfigError, DataError, SinkError
from quietbeam.core.events import RunStart
from quietbeam.core.planes import stacked
from quietbeam.core.plugin import AnalysisPlugin, CorrectionPlugin, Observation
from quietbeam.model.measure import Measure, map_specs, metric_specs
from quietbeam.offline.analyse_results import Results, ResultsWriter
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.recording import Recording
from quietbeam.offline.report import Report
from quietbeam.offline.series import Series, open_series, split_spec

Kind = Literal["raw", "clean"]
Progress = Callable[[str, float], None]


@runtime_checkable
class Reporting(Protocol):
    """An analysis that draws what it found over a whole run."""

    def report(self, report: Report, raw: Results | None, clean: Results | None) -> None:
        """Add sections to ``report``; a kind that was not there is None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        frames: Analysed of each kind.
        messages: What the analysis had to say at the end, by kind; why it was switched off.
        failed: It was switched off, on raw or clean frames.
        summary: By kind and scalar metric: mean over frames, and its mean stated s.d.
    """

    frames: Mapping[Kind, int]
    messages: Mapping[str, str]
    failed: bool
    summary: Mapping[str, Mapping[str, tuple[float, float]]]


def analyse_file(
    source: str | Path,
    output: Path,
    name: str,
    plugin: AnalysisPlugin,
    *,
    applied: Sequence[CorrectionPlugin] = (),
    report: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> Outcome:
    """Analyse ``source`` into ``output`` (NeXus) and ``report`` (HTML).

    Args:
        source: A recording of ours with raw and clean frames; any other series of images is
            analysed raw.
        output: Metrics and maps of both kinds with provenance.
        name: Of the workflow, for provenance.
        plugin: The analysis.
        applied: Corrections of raw frames, as they were applied before denoising.
        report: Where the report goes, if one is wanted.
        overwrite: ``output`` may exist.
        progress: Told what is being done and the share that is done.

    Raises:
        DataError: ``source`` cannot be read.
        ConfigError: The settings do not fit the recording.
        SinkError: ``output`` exists or cannot be written.
    """
    if output.exists() and not overwrite:
        raise SinkError(f"{output}: exists already; choose another name or say --overwrite")
    if output.exists() and output.samefile(split_spec(source)[0]):
        raise SinkError(f"{output}: is the input itself; choose another name")
    _check_settings(name, plugin)
    with ExitStack() as stack:
        frames = stack.enter_context(Frames(source, applied))
        provenance = _provenance(source, name, plugin, applied)
        writer = stack.enter_context(ResultsWriter(output, frames.run, provenance))
        messages: dict[str, str] = {}
        off = False
        counted = dict.fromkeys(frames.kinds, frames.count)
        for kind in counted:
            states = _measured(kind, frames, name, plugin, writer, progress)
            off = off or states["state"] == "off"
            if states["message"]:
                messages[kind] = str(states["message"])
        results = writer.finish()
        summary = {kind: found.summary() for kind, found in results.items()}
        if report is not None:
            progress("drawing", 0.0)
            _draw(name, plugin, results, messages, provenance).write(report)
    return Outcome(
        frames=counted,
        messages=messages,
        failed=off,
        summary=summary,
    )


class Frames:
    """The frames of one file as observations, raw and clean.  A context manager."""

    def __init__(self, source: str | Path, applied: Sequence[CorrectionPlugin] = ()) -> None:
        self._stack = ExitStack()
        try:
            self._open(source, applied)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, source: str | Path, applied: Sequence[CorrectionPlugin]) -> None:
        path, dataset = split_spec(source)
        recording = None if dataset else _ours(path)
        self._recording = None if recording is None else self._stack.enter_context(recording)
        if self._recording is not None and not self._recording.has_raw:
            raise DataError(f"{path}: raw frames were not recorded; there is nothing to compare")
        spec = source if self._recording is None else f"{path}:/entry/raw/data"
        series = self._stack.enter_context(open_series(spec))
        self._channels = [
            self._stack.enter_context(CalibratedSeries(series.channel(name), applied, channel=name))
            for name in series.channels or (None,)
        ]
        self.run = self._run(series)
        self._rows = self._joined(len(series))

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What there is."""
        clean = self._recording is not None and self._recording.has_clean
        return ("raw", "clean") if clean else ("raw",)

    @property
    def count(self) -> int:
        """Frames that can be compared."""
        return len(self._rows)

    def __call__(self, kind: Kind) -> Iterator[Observation]:
        """Give the observations of one kind, in order."""
        for row, clean_row in self._rows:
            yield self._observation(kind, row, clean_row)

    def _run(self, series: Series) -> RunStart:
        if self._recording is not None:
            return self._recording.run_start()
        return RunStart(
            run=series.source,
            shape=series.shape[1:],
            dtype=series.dtype,
            channels=series.channels,
            frame_time_s=series.frame_time_s,
            frames_expected=len(series),
        )

    def _joined(self, total: int) -> list[tuple[int, int]]:
        """Pairs of rows, raw and clean, of the same frame."""
        if self._recording is None or not self._recording.has_clean:
            return [(row, -1) for row in range(total)]
        raw = {int(n): row for row, n in enumerate(self._recording.column("raw/frame_id"))}
        clean = self._recording.column("clean/frame_id")
        return [(raw[int(n)], row) for row, n in enumerate(clean) if int(n) in raw]

    def _observation(self, kind: Kind, row: int, clean_row: int) -> Observation:
        prepared = [channel.prepared(row) for channel in self._channels]
        pixels = stacked([one.pixels for one in prepared])
        valid = stacked([one.valid for one in prepared])
        clean = None
        if self._recording is not None and clean_row >= 0:
            clean = self._recording.clean[clean_row]
        if kind == "clean" and clean is not None and self._recording is not None:
            shown, sd = clean, self._recording.errors[clean_row]
        else:
            shown = np.where(valid, pixels, np.float32(np.nan))
            sd = self._noise(pixels if clean is None else clean)
        index, time_ns = self._when(row)
        return Observation(
            index=index,
            time_ns=time_ns,
            clean=shown,
            sd=sd,
            corrected=pixels,
            valid=valid,
            raw=stacked([one.frame.pixels for one in prepared]),
            denoiser=kind,
        )

    def _noise(self, level: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the s.d. of measured pixels; their clean level tells it without their noise."""
        planes = [level] if level.ndim == 2 else list(level)
        return stacked(
            [
                np.sqrt(channel.noise.variance(plane)).astype(np.float32)
                for channel, plane in zip(self._channels, planes, strict=True)
            ]
        )

    def _when(self, row: int) -> tuple[int, int]:
        if self._recording is None:
            return row, round(row * (self.run.frame_time_s or 0) * 1e9)
        return (
            int(self._recording.column("raw/frame_id")[row]),
            int(self._recording.column("raw/time_ns")[row]),
        )


def _ours(path: Path) -> Recording | None:
    """Open a recording of ours; None where the file is another one."""
    if not path.is_file():
        raise DataError(f"{path}: does not exist")
    try:
        return Recording(path)
    except DataError:
        return None


def _measured(
    kind: Kind,
    frames: Frames,
    name: str,
    plugin: AnalysisPlugin,
    writer: ResultsWriter,
    progress: Progress,
) -> Mapping[str, str | None]:
    """Run the analysis over one kind; give its last state."""
    errors: list[Exception] = []
    measure = Measure([(name, plugin)], lambda _name, error: errors.append(error))
    measure.start(frames.run)
    if errors and isinstance(errors[0], ConfigError):
        raise errors[0]
    channels = frames.run.channels
    specs = metric_specs([(name, plugin)], channels), map_specs([(name, plugin)], channels)
    with writer.kind(kind, *specs) as add:
        for number, seen in enumerate(frames(kind)):
            add(seen.index, seen.time_ns, measure(seen))
            progress(f"analysing {kind}", (number + 1) / frames.count)
    state = measure.states()[name]
    measure.stop()
    return state


def _check_settings(name: str, plugin: AnalysisPlugin) -> None:
    twice = set(plugin.metrics()) & set(plugin.maps())
    if twice:
        raise ConfigError(f"{name}: {sorted(twice)} are both metrics and maps")


def _provenance(
    source: str | Path, name: str, plugin: AnalysisPlugin, applied: Sequence[CorrectionPlugin]
) -> dict[str, Any]:
    path, _ = split_spec(source)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "program": "quietbeam",
        "version": version("quietbeam"),
        "workflow": name,
        "source": Path(source).name,
        "source_sha256": digest,
        "settings": json.dumps(plugin.model_dump(mode="json"), sort_keys=True),
        "corrections": json.dumps(
            {type(one).__name__: one.model_dump(mode="json") for one in applied}
        ),
    }


def _draw(
    name: str,
    plugin: AnalysisPlugin,
    results: Mapping[str, Results],
    messages: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> Report:
    report = Report(f"{name}: {provenance['source']}", provenance)
    for kind, message in messages.items():
        report.warning(f"{kind}: {message}")
    raw, clean = results.get("raw"), results.get("clean")
    if clean is None:
        report.warning(
            "The file holds no clean frames: all numbers are from raw ones. "
            "Clean it first: quietbeam denoise."
        )
    if isinstance(plugin, Reporting):
        plugin.report(report, raw, clean)
    report.heading("All figures")
    report.table(
        _rows(results),
        ("metric", "unit", "raw", "± stated", "clean", "± stated"),
        "Means over all frames, and of the standard deviations stated with them",
    )
    return report


def _rows(results: Mapping[str, Results]) -> list[tuple[Any, ...]]:
    nothing = (float("nan"), float("nan"))
    summaries = {kind: found.summary() for kind, found in results.items()}
    some = next(iter(results.values()))
    return [
        (
            metric,
            some.metric_specs[metric].unit,
            *summaries.get("raw", {}).get(metric, nothing),
            *summaries.get("clean", {}).get(metric, nothing),
        )
        for metric in next(iter(summaries.values()))
    ]
