"""From a file to a file: the same layout as a live recording, whatever the size."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from quietbeam.core.errors import SinkError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.planes import stacked
from quietbeam.core.plugin import CorrectionPlugin, SinkPlugin
from quietbeam.core.recording import Recorder
from quietbeam.core.result import MetricSpec, Result
from quietbeam.model import checkpoint
from quietbeam.model.channels import joined_figures, specs_for
from quietbeam.model.torch_engine import weights_of
from quietbeam.offline.calibrated import CalibratedSeries
from quietbeam.offline.choose import Choice, Progress, choose
from quietbeam.offline.denoise import FALLBACK, CleanFrame, Report, cleaned, make_report
from quietbeam.offline.figures import Figures, Sample, estimated
from quietbeam.offline.repair import part_of
from quietbeam.offline.series import Series, open_series, split_spec
from quietbeam.offline.train import Recipe
from quietbeam.registry import find

_METRICS = {
    "quality.psnr_estimated_db": MetricSpec(
        "dB",
        "Estimated PSNR of the clean frames, of all together",
        uncertainty="quality.psnr_error_db",
    ),
    "quality.psnr_error_db": MetricSpec("dB", "Standard error of the estimated PSNR"),
    "quality.psnr_raw_db": MetricSpec("dB", "Estimated PSNR of the raw frames, of all together"),
    "quality.peak": MetricSpec("count", "Signal range that the PSNR figures refer to"),
    "quality.trusted": MetricSpec(
        "", "1 where the noise is zero-mean and independent in time: the figures hold"
    ),
}


def corrections(
    dark: str | None = None, flat: str | None = None, mask: str | None = None
) -> list[CorrectionPlugin]:
    """Give the built-in correction plugins for these files, as the live daemon has them."""
    made: list[CorrectionPlugin] = []
    if dark is not None or flat is not None:
        dark_flat: type[Any] = find("corrections", "dark_flat", CorrectionPlugin)
        made.append(dark_flat(dark=dark, flat=flat))
    if mask is not None:
        bad_pixels: type[Any] = find("corrections", "bad_pixels", CorrectionPlugin)
        made.append(bad_pixels(mask=mask))
    return made


def denoise_file(
    source: str | Path,
    output: Path,
    denoiser: str = "quiet",
    recipe: Recipe | None = None,
    *,
    fallback: Sequence[str] = FALLBACK,
    applied: Sequence[CorrectionPlugin] = (),
    images: bool = False,
    weights: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> tuple[Report, ...]:
    """Clean ``source`` into ``output``, frame by frame: it may be larger than memory.

    Every channel is a recording of its own: calibrated, trained on and judged
    alone, in its share of the time.

    Args:
        source: ``file`` or ``file:/dataset``: HDF5, NeXus, TIFF or .npy.
        output: NeXus/HDF5, raw and clean and s.d. with provenance.
        denoiser: Name of a denoiser.
        recipe: Of the training.
        fallback: Classical denoisers the network has to beat to be used.
        applied: Correction plugins, in order.
        images: The frames are unrelated images, not a video.
        weights: The trained network is saved there, or in NAME-channel beside it.
        overwrite: ``output`` may exist.
        progress: Told what is being done and the share that is done.

    Returns:
        One report for each channel.

    Raises:
        DataError: ``source`` cannot be read as an image series.
        SinkError: ``output`` exists or cannot be written completely.
    """
    recipe = recipe or Recipe()
    target = _checked_target(source, output, overwrite=overwrite)
    began = time.monotonic()
    with open_series(source) as series, ExitStack() as stack:
        recordings = _recordings(series, applied, stack, images=images)
        recipe = replace(recipe, minutes=recipe.minutes / len(recordings))
        settings = _settings(series, denoiser, recipe, fallback, applied, images=images)
        parts = [
            _Part(recording, choose(recording, denoiser, recipe, fallback, progress))
            for recording in recordings
        ]
        if weights is not None:
            _save_weights(weights, parts, settings)
        reports = _write(
            parts,
            _Writer(parts, settings, target),
            lambda part, figures: make_report(
                part.recording, part.choice, figures, denoiser, recipe, began
            ),
            progress,
        )
    target.replace(output)
    return reports


def _settings(
    series: Series,
    denoiser: str,
    recipe: Recipe,
    fallback: Sequence[str],
    applied: Sequence[CorrectionPlugin],
    *,
    images: bool,
) -> dict[str, Any]:
    """Say what the recording is made with."""
    return {
        "source": series.source,
        "denoiser": denoiser,
        "recipe": asdict(recipe),
        "fallback": list(fallback),
        "corrections": {type(one).__name__: one.model_dump(mode="json") for one in applied},
        "images": images,
    }


def _recordings(
    series: Series, applied: Sequence[CorrectionPlugin], stack: ExitStack, *, images: bool
) -> list[CalibratedSeries]:
    """Open every channel as a recording."""
    return [
        stack.enter_context(
            CalibratedSeries(series.channel(name), applied, images=images, channel=name)
        )
        for name in series.channels or (None,)
    ]


@dataclass(frozen=True, slots=True)
class _Part:
    """One channel and what it is cleaned with."""

    recording: CalibratedSeries
    choice: Choice

    @property
    def channel(self) -> str:
        return str(self.recording.run.metadata.get("channel", ""))

    @property
    def figures(self) -> dict[str, float]:
        known = estimated(self.recording.noise, self.choice.verdict, self.recording.correlation)
        return {
            "quality.psnr_estimated_db": known["psnr_clean_db"],
            "quality.psnr_error_db": known["psnr_error_db"],
            "quality.psnr_raw_db": known["psnr_raw_db"],
            "quality.peak": known["peak"],
            "quality.trusted": float(known["trusted"]),
        }


def _write(
    parts: Sequence[_Part],
    writer: _Writer,
    report: Callable[[_Part, Figures], Report],
    progress: Progress,
) -> tuple[Report, ...]:
    """Clean and write every frame, then the reports."""
    samples = [Sample(part.recording) for part in parts]
    streams = [cleaned(part.recording, part.choice, progress) for part in parts]
    with writer:
        for frames in zip(*streams, strict=True):
            writer.write(frames)
            for sample, frame in zip(samples, frames, strict=True):
                sample.add(frame.estimate, frame.clean)
        reports = tuple(
            report(part, sample.figures(part.choice.verdict))
            for part, sample in zip(parts, samples, strict=True)
        )
        writer.finish(reports)
    return reports


def _checked_target(source: str | Path, output: Path, *, overwrite: bool) -> Path:
    """Fail now rather than after the training; give the file to write, ``output`` if it is new."""
    if output.exists() and not overwrite:
        raise SinkError(f"{output}: exists already; choose another name or say --overwrite")
    if output.exists() and output.samefile(split_spec(source)[0]):
        raise SinkError(f"{output}: is the input itself; choose another name")
    target = output.with_name(f"{output.stem}.new{output.suffix}") if output.exists() else output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
        for leftover in {target, part_of(target)} - {output}:
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise SinkError(f"{output}: cannot be written: {error.strerror}") from error
    return target


def _save_weights(path: Path, parts: Sequence[_Part], settings: Mapping[str, Any]) -> None:
    for part in parts:
        choice = part.choice
        if not choice.version or choice.module is None:
            continue
        provenance = {
            "denoiser": choice.name,
            "settings": json.dumps(settings, default=str),
            "version": str(choice.version),
            "steps": str(choice.training.steps if choice.training else 0),
        }
        own = path.with_stem(f"{path.stem}-{part.channel}") if part.channel else path
        checkpoint.save(own, weights_of(choice.module), provenance)


class _Writer:
    """The sink that live recordings go to, fed with one run."""

    def __init__(self, parts: Sequence[_Part], settings: Mapping[str, Any], path: Path) -> None:
        self._parts, self._path = parts, path
        self._frames = len(parts[0].recording)
        self._run = _run_start(parts, settings)
        self._figures = joined_figures([part.figures for part in parts], self._run.channels)
        self._denoiser = "+".join(dict.fromkeys(part.choice.name for part in parts))
        self._stack = ExitStack()
        self._done = False

    def __enter__(self) -> _Writer:
        plugin: type[Any] = find("sinks", "hdf5", SinkPlugin)
        sink = self._stack.enter_context(plugin(path=self._path).open())
        if not isinstance(sink, Recorder):
            raise SinkError(f"the hdf5 sink gives a {type(sink).__name__}, expected a recorder")
        self._sink: Recorder = sink
        try:
            sink.start(self._run)
            for part in self._parts:
                sink.note(_json(_decision(part)))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if not self._done:  # nothing half-finished is left behind
            for path in (self._path, part_of(self._path)):
                path.unlink(missing_ok=True)

    def write(self, frames: Sequence[CleanFrame]) -> None:
        """Write one frame; ``frames`` are its channels."""
        measured = [frame.estimate.prepared.frame for frame in frames]
        of = {
            "run": self._run.run,
            "index": measured[0].index,
            "time_ns": measured[0].time_ns,
            "received_ns": time.monotonic_ns(),
        }
        self._sink.raw(Frame(**of, pixels=stacked([raw.pixels for raw in measured])))
        self._sink.write(
            Result(
                **of,
                clean=stacked([frame.clean for frame in frames]),
                sd=stacked([frame.sd for frame in frames]),
                raw=None,
                metrics=self._figures,
                denoiser=self._denoiser,
                model_version=max(part.choice.version for part in self._parts),
                latency_s=0.0,
            )
        )

    def finish(self, reports: Sequence[Report]) -> None:
        """Complete the file.

        Raises:
            SinkError: Frames are missing in it: the disk is full.
        """
        for report in reports:
            self._sink.note(_json({"type": "report", **report.as_dict()}))
        self._sink.stop(RunEnd(run=self._run.run, reason="completed"))
        finished = self._sink.take_finished()
        written = sum(file.clean for file in finished)
        if len(finished) != 1 or written != self._frames:
            raise SinkError(
                f"{self._path}: only {written} of {self._frames} frames were written; "
                "is the disk full?"
            )
        self._done = True


def _run_start(parts: Sequence[_Part], settings: Mapping[str, Any]) -> RunStart:
    text = json.dumps(settings, indent=2, default=str)
    run, channels = parts[0].recording.run, tuple(filter(None, (part.channel for part in parts)))
    ours = {
        "version": version("quietbeam"),
        "config": text,
        "config_sha256": sha256(text.encode()).hexdigest(),
        "name": "denoise",
        "metrics": {
            name: {
                "unit": spec.unit,
                "description": spec.description,
                "shape": [],
                "uncertainty": spec.uncertainty,
            }
            for name, spec in (_METRICS | specs_for(_METRICS, channels)).items()
        },
    }
    shape = (len(channels), *run.shape) if channels else run.shape
    source = str(settings["source"])
    return replace(run, run=source, shape=shape, channels=channels, metadata={"quietbeam": ours})


def _json(value: Any) -> str:
    """JSON that any reader takes: numbers that are not finite are null, and short ones."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, float):
            return float(f"{item:.6g}") if math.isfinite(item) else None
        return item

    return json.dumps(plain(value), default=str)


def _decision(part: _Part) -> dict[str, Any]:
    """Say it as the live gate does; the recorder takes the weights' hash from it."""
    choice = part.choice
    return {
        "type": "decision",
        "action": "promote" if choice.version else "reject",
        "version": choice.version,
        "sha256": choice.weights_sha256,
        "denoiser": choice.name,
        "reason": choice.reason,
        "gain": choice.gain,
        "standard_error": choice.gain_error,
        **({"channel": part.channel} if part.channel else {}),
    }
