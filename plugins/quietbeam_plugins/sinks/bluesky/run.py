"""One published run: from its start to the moment its recording is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from quietbeam.core.errors import DataError
from quietbeam.core.events import RunEnd, RunStart
from quietbeam.core.result import Result
from quietbeam_plugins.sinks.bluesky.documents import STREAMS, RunDocuments
from quietbeam_plugins.sinks.bluesky.publisher import Sidecar
from quietbeam_plugins.sinks.bluesky.recording import FollowedFile, RecorderFiles, recorder_files

_LOOK_S = 0.1  # between two looks at the recording
_NO_FILE_S = 3.0  # after the end of a run, for a recorder that has not named a file
_TABLES = {"primary": "clean", "raw": "raw"}


class PublishedRun:
    """Publishes one run.

    Args:
        start: Of the run.
        send: Takes each (name, document).
        recorder: Name of the output whose files are pointed at; None: the first.
        folder: For the sidecar and the lasting names; None: ``bluesky`` beside the recording.
        events_hz: Events at most; 0: none.
        settle_s: Longest wait for the recording after the end.
    """

    def __init__(
        self,
        start: RunStart,
        send: Callable[[str, Mapping[str, Any]], None],
        *,
        recorder: str | None = None,
        folder: Path | None = None,
        events_hz: float = 10.0,
        settle_s: float = 30.0,
    ) -> None:
        self.name = start.run
        self.over = False
        self._send, self._recorder, self._folder = send, recorder, folder
        self._events_hz, self._settle_s = events_hz, settle_s
        self._others: set[Path] = set()  # complete files of other runs
        self._files: list[FollowedFile] = []
        self._sidecar: Sidecar | None = None
        self._unkept: list[tuple[str, Mapping[str, Any]]] = []
        self._end: RunEnd | None = None
        self._ended_s = self._looked_s = 0.0
        self._event_s = -1e9
        self._log = structlog.get_logger().bind(sink="bluesky", run=start.run)
        self._documents = RunDocuments(start, self._emit)
        if folder is not None:
            self._keep_in(folder)

    def result(self, result: Result) -> None:
        """Tell the metrics of a frame, if it is time."""
        now = time.monotonic()
        if self._events_hz and now - self._event_s >= 1 / self._events_hz:
            self._event_s = now
            self._documents.event(result)

    def end(self, end: RunEnd) -> None:
        """The run is over; its recording may not be."""
        if self._end is None:
            self._end, self._ended_s = end, time.monotonic()

    def look(self, status: Mapping[str, Any]) -> None:
        """See how far the recording is; say that the run is over once all of it is told."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_S:
            return
        self._looked_s = now
        files = recorder_files(status, self._recorder)
        self._find(files)
        complete = bool(self._files) and self._files[-1].complete  # before its last rows are told
        self._tell_rows()
        if self._end is None:
            return
        waited_s = now - self._ended_s
        nothing = not self._files and (not files.is_configured or waited_s > _NO_FILE_S)
        if complete or nothing or waited_s > self._settle_s:
            self._finish(self._end)

    def close(self) -> None:
        """Let go of everything; a run that is cut off here says so."""
        if not self.over:
            self._tell_rows()
            self._finish(self._end or RunEnd(run=self.name, reason="lost"))
        for file in self._files:
            file.close()
        if self._sidecar is not None:
            self._sidecar.close()

    def _finish(self, end: RunEnd) -> None:
        self._documents.stop(end)
        self.over = True
        self._log.info("run_published", uid=self._documents.uid, rows=self._documents.rows)

    def _find(self, files: RecorderFiles) -> None:
        """Follow files of this run that are not followed yet."""
        for path in (*files.finished, *files.current):
            if path in self._others:
                continue
            try:
                file = FollowedFile(path)
            except (OSError, DataError, KeyError):
                continue  # not there yet, or not any more: the next status tells
            if file.run != self.name and path in files.finished:
                self._others.add(path)
            known = any(file.is_same(other) for other in self._files)
            if known or file.run != self.name or not self._follow(path, file):
                file.close()

    def _follow(self, path: Path, file: FollowedFile) -> bool:
        """Point at ``file``; False if it has just been renamed."""
        self._tell_rows()
        folder = self._folder or path.parent / "bluesky"
        target = folder.absolute() / f"{self._documents.uid}_{len(self._files) + 1}.h5"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
        except FileNotFoundError:
            return False
        except OSError as error:  # no hard links here: readable once it is complete
            target = path.with_suffix("") if path.suffix == ".part" else path
            self._log.warning("no_lasting_name", file=str(target), error=str(error))
        self._keep_in(folder)
        for stream in STREAMS:
            self._documents.resource(stream, target, file.chunks)
        self._files.append(file)
        return True

    def _tell_rows(self) -> None:
        if not self._files:
            return
        with suppress(OSError):
            rows = self._files[-1].committed
            for stream, table in _TABLES.items():
                self._documents.committed(stream, rows[table])

    def _keep_in(self, folder: Path) -> None:
        if self._sidecar is not None:
            return
        self._sidecar = Sidecar(folder / f"{self._documents.uid}.jsonl")
        for name, document in self._unkept:
            self._sidecar.write(name, document)
        self._unkept.clear()

    def _emit(self, name: str, document: Mapping[str, Any]) -> None:
        if self._sidecar is not None:
            self._sidecar.write(name, document)
        else:
            self._unkept.append((name, document))
        self._send(name, document)
