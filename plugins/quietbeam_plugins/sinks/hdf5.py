"""Records raw and cleaned frames as NeXus/HDF5 that can be read while it is written.

Every file the program makes comes from here, online or offline.  A file is
``NAME.h5.part`` until its run is over.  A process that is killed is followed
by another that goes on in the same file; a full disk ends the file before an
error can, and a further one is begun when there is room again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import orjson
import structlog
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator

from quietbeam.core import recording as names
from quietbeam.core.errors import DataError, QuietbeamError, SinkError
from quietbeam.core.events import Frame, RunEnd, RunStart
from quietbeam.core.plugin import SinkPlugin
from quietbeam.core.recording import FinishedFile, Origin, SinkStatus, layout
from quietbeam.core.result import Result
from quietbeam.offline.repair import part_of, repair
from quietbeam.offline.superblock import is_locked, session_is_over
from quietbeam_plugins.sinks.filenames import (
    checked_pattern,
    filled,
    first_segment,
    further_segment,
    session,
    unfinished,
    unused,
)
from quietbeam_plugins.sinks.nexus import Compression, remove_unready
from quietbeam_plugins.sinks.segment import Segment, now_iso
from quietbeam_plugins.sinks.space import FreeBytes, Space, free_bytes


class Hdf5(SinkPlugin):
    """Settings of the recorder."""

    own_process: ClassVar[bool] = True

    directory: Path = Path("recordings")
    """Where files go; made if it is not there."""
    filename: str = "{name}_{run}_{time}.h5"
    """Placeholders: name (of the configuration), run, time and date (UTC); may hold slashes."""
    path: Path | None = None
    """Exactly this file instead, for one run; it must not exist."""
    raw: bool = True
    clean: bool = True
    compression: Compression = "bslz4"
    """bslz4 and bszstd need the hdf5plugin filters to be read; gzip and none need nothing."""
    flush_interval_s: NonNegativeFloat = 0.5
    flush_frames: PositiveInt = 100
    """What was flushed is acknowledged: it survives the death of any process."""
    fsync_interval_s: NonNegativeFloat = 1.0
    """What was synced also survives a power cut."""
    reserve_bytes: NonNegativeInt = Field(default=1 << 30)
    """Recording stops while less than this is free on the disk."""

    @field_validator("filename")
    @classmethod
    def _filename_is_safe(cls, value: str) -> str:
        return checked_pattern(value)

    @contextmanager
    def open(self) -> Iterator[Hdf5Recorder]:
        """Give the recorder; on exit a run that is not over ends as ``lost``."""
        recorder = Hdf5Recorder(self)
        try:
            yield recorder
        finally:
            recorder.close()


class Hdf5Recorder:
    """Takes runs, one at a time, and keeps each in one file or, after trouble, several.

    Used by one thread.  Counts are those of this object's life; a frame that
    was already in the file it went on with counts as written when it comes
    again.
    """

    def __init__(self, settings: Hdf5, free: FreeBytes = free_bytes) -> None:
        self._settings = settings
        self._space = Space(settings.reserve_bytes, free)
        self._log = structlog.get_logger().bind(sink="hdf5")
        self._run: RunStart | None = None
        self._segment: Segment | None = None
        self._stem: Path | None = None
        self._number = 0
        self._known: dict[str, set[int]] = {names.RAW: set(), names.CLEAN: set()}
        self._again = {names.RAW: 0, names.CLEAN: 0}
        self._written = {names.RAW: 0, names.CLEAN: 0}
        self._dropped: dict[str, Counter[str]] = {names.RAW: Counter(), names.CLEAN: Counter()}
        self._past_bytes = self._past_synced = 0
        self._promotion: tuple[int, str, str, str] | None = None
        self._described = ""
        self._finished: list[FinishedFile] = []

    # what a RecordingSink does

    def start(self, run: RunStart) -> None:
        """Begin the file of ``run``, or go on in the one its killed writer left.

        Raises:
            SinkError: No file can be made.
        """
        self._run, self._number = run, 0
        self._space.forget()
        self._stem = self._name(run)
        try:
            self._stem.parent.mkdir(parents=True, exist_ok=True)
            self._look_at_leftovers(run)
            if self._segment is None and self._has_room(0):
                self._begin_segment(run)
        except (OSError, RuntimeError, DataError) as error:
            raise self._failure("begin", error) from error

    def raw(self, frame: Frame) -> None:
        """Write one raw frame.

        Raises:
            SinkError: HDF5 failed; this recorder is of no more use.
        """
        if self._settings.raw and self._takes(names.RAW, frame.index, frame.pixels):
            self._write(names.RAW, frame.pixels.nbytes, lambda segment: segment.add_raw(frame))

    def write(self, result: Result) -> None:
        """Write one cleaned frame.

        Raises:
            SinkError: As for ``raw``.
        """
        if self._settings.clean and self._takes(names.CLEAN, result.index, result.clean):
            size = result.clean.nbytes + result.sd.nbytes
            self._write(names.CLEAN, size, lambda segment: segment.add_clean(result))

    def flush(self) -> None:
        """Return when all that was written survives the death of this process.

        Raises:
            SinkError: HDF5 failed; nothing of this flush is acknowledged.
        """
        self._count_again()
        if self._segment is None:
            return
        pending = self._segment.pending
        try:
            self._segment.commit()
            self._segment.sync_if_due(self._settings.fsync_interval_s)
        except (OSError, RuntimeError) as error:
            raise self._failure("flush", error) from error
        self._count(pending)

    def stop(self, end: RunEnd) -> None:
        """Complete the file and give it its final name.

        Raises:
            SinkError: As for ``raw``.
        """
        self.flush()
        self._end_segment(end.reason, end.account)
        self._run = None
        self._space.forget()

    # what a Recorder does besides

    def note(self, text: str) -> None:
        """Keep a gate decision (JSON) with the recording."""
        self._remember(text)
        if self._segment is not None:
            self._segment.note(text)

    def lost(self, frames: int) -> None:
        """``frames`` raw frames were overwritten before they could be recorded."""
        if self._segment is not None:
            self._segment.overrun += frames

    def status(self) -> SinkStatus:
        """Give the counts."""
        segment = self._segment
        pending = sum(segment.pending) if segment is not None else 0
        idle = "disk_full" if self._space.full else "idle"
        return SinkStatus(
            state="recording" if segment is not None else idle,
            file=str(segment.path) if segment is not None else None,
            raw_written=self._written[names.RAW],
            clean_written=self._written[names.CLEAN],
            synced=self._past_synced + (segment.synced if segment is not None else 0),
            unflushed=pending + sum(self._again.values()),
            bytes=self._past_bytes + (segment.bytes if segment is not None else 0),
            free_bytes=self._space.free(self._where()),
            raw_dropped=dict(self._dropped[names.RAW]),
            clean_dropped=dict(self._dropped[names.CLEAN]),
        )

    def take_finished(self) -> list[FinishedFile]:
        """Give the files completed since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        """End what is still open."""
        if self._run is not None:
            self.stop(RunEnd(run=self._run.run, reason="lost"))

    # frames

    def _takes(self, group: str, index: int, pixels: Any) -> bool:
        """Whether a frame is to be written; otherwise it is accounted for here."""
        run = self._run
        if run is None:
            raise SinkError("a frame came outside a run; call start first")
        if index in self._known[group]:
            self._known[group].discard(index)
            self._again[group] += 1
            return False
        dtype = run.dtype.newbyteorder("=") if group == names.RAW else "float32"
        if pixels.shape != run.shape or pixels.dtype != dtype:
            self._dropped[group]["mismatch"] += 1
            if self._segment is not None and group == names.RAW:
                self._segment.dropped += 1
            return False
        return True

    def _write(self, group: str, size: int, add: Callable[[Segment], None]) -> None:
        try:
            if not self._has_room(size):
                self._suspend()
            elif self._segment is None and self._run is not None:
                self._begin_segment(self._run)
            if self._segment is None:
                self._drop(group)
            else:
                add(self._segment)
        except (OSError, RuntimeError) as error:
            raise self._failure("write", error) from error

    def _drop(self, group: str) -> None:
        self._dropped[group]["disk_full"] += 1

    def _count(self, pending: tuple[int, int]) -> None:
        self._written[names.RAW] += pending[0]
        self._written[names.CLEAN] += pending[1]

    def _count_again(self) -> None:
        self._count((self._again[names.RAW], self._again[names.CLEAN]))
        self._again = dict.fromkeys(self._again, 0)

    def _has_room(self, size: int) -> bool:
        unflushed = 0 if self._segment is None else self._segment.unflushed_bytes
        return self._space.room(self._where(), size + unflushed)

    def _suspend(self) -> None:
        if self._segment is not None:
            self.flush()
            self._end_segment("disk_full")

    def _where(self) -> Path:
        return (self._stem or self._directory() / "_").parent

    # files

    def _directory(self) -> Path:
        settings = self._settings
        return (settings.directory if settings.path is None else settings.path.parent).absolute()

    def _name(self, run: RunStart) -> Path:
        if self._settings.path is not None:
            path = self._settings.path.absolute()
            if path.exists():
                raise SinkError(f"{path}: exists already; choose another name or remove it")
            return path
        return unused(self._directory() / filled(self._settings.filename, run))

    def _begin_segment(self, run: RunStart) -> None:
        assert self._stem is not None  # noqa: S101  start() was called
        self._number += 1
        wanted = self._stem
        if self._number > 1:
            wanted = further_segment(wanted, self._number)
        target = unused(wanted)
        origin = Origin(
            version=version("quietbeam"),
            started=now_iso(),
            host_epoch_ns=time.time_ns() - time.monotonic_ns(),
            session=session(run),
            segment=self._number,
        )
        settings = self._settings
        made = layout(run, origin, raw=settings.raw, clean=settings.clean)
        self._segment = Segment.new(part_of(target), made, settings.compression)
        if self._promotion is not None:
            self._segment.promoted(*self._promotion)
        if self._described:
            self._segment.note(self._described)
        self._log.info("recording_started", file=str(self._segment.path), segment=self._number)

    def _end_segment(self, reason: str, account: Mapping[str, Any] | None = None) -> None:
        segment, self._segment = self._segment, None
        self._known = {group: set() for group in self._known}
        if segment is None:
            return
        size = segment.bytes
        try:
            segment.keep_ledger(account or {})
            finished = segment.finish(reason)
        except (OSError, RuntimeError) as error:
            raise self._failure("finish", error) from error
        if finished is None:
            self._log.info("recording_empty", removed=str(segment.path))
            return
        self._past_bytes += size
        self._past_synced += finished.raw + finished.clean
        self._finished.append(finished)
        self._log.info(
            "recording_finished",
            file=finished.file,
            raw=finished.raw,
            clean=finished.clean,
            missing=finished.missing,
            reason=reason,
        )

    def _look_at_leftovers(self, run: RunStart) -> None:
        """Go on in this run's unfinished file; complete those of daemons that are gone."""
        owner = session(run)
        if not owner or self._stem is None:
            return
        remove_unready(self._stem.parent)
        for path in sorted(self._stem.parent.glob("*.part")):
            theirs = unfinished(path)
            if theirs is None or is_locked(path):
                continue
            if theirs.complete or session_is_over(theirs.session):
                self._complete_leftover(path)
            elif (theirs.run, theirs.session) == (run.run, owner) and self._segment is None:
                self._resume(path)

    def _resume(self, path: Path) -> None:
        self._stem = first_segment(path.with_suffix(""))
        try:
            self._segment = Segment.resume(path)
        except (DataError, OSError, RuntimeError, KeyError) as error:
            self._number = 1  # the next one is called _part2
            self._log.error("recording_not_resumed", file=str(path), error=str(error))
            return
        self._number = self._segment.number
        self._known = {group: self._segment.ids(group) for group in self._known}
        self._log.info("recording_resumed", file=str(path), frames=self._segment.committed)

    def _complete_leftover(self, path: Path) -> None:
        try:
            repaired = repair(path)
        except QuietbeamError as error:
            self._log.warning("leftover_not_repaired", file=str(path), error=str(error))
            return
        found = repaired.found
        counts = {"raw": found.raw, "clean": found.clean, "missing": found.missing}
        self._finished.append(
            FinishedFile(file=repaired.file, reason=repaired.end_reason, **counts)
        )
        self._log.info("leftover_repaired", file=repaired.file, **counts)

    def _remember(self, note: str) -> None:
        """Keep the newest promotion and what was last said of the run, for files begun later."""
        try:
            decision = orjson.loads(note)
        except orjson.JSONDecodeError:
            return
        if isinstance(decision, dict) and "run_metadata" in decision:
            self._described = note
        if not isinstance(decision, dict) or decision.get("action") != "promote":
            return
        weights = (
            int(decision.get("version", 0)),
            str(decision.get("denoiser", "")),
            str(decision.get("sha256", "")),
            now_iso(),
        )
        self._promotion = weights
        if self._segment is not None:
            self._segment.promoted(*weights)

    def _failure(self, what: str, error: Exception) -> SinkError:
        name = self._segment.path if self._segment is not None else self._stem
        self._log.error("recorder_failed", doing=what, file=str(name), error=str(error))
        return SinkError(f"{name}: could not {what}: {error}")
