"""A view that writes down what it is given, found like any installed plugin."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from quietbeam import Frame, Link, QuietbeamError, Result, RunEnd, RunStart, ViewSink

_ENTRY = "[quietbeam.sinks]\nnotebook = helpers.view_toys:Notebook\n"


def installed(directory: Path) -> dict[str, str]:
    """Give the environment in which the toy is an installed plugin."""
    home = directory / "toys"
    info = home / "view_toys-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: view_toys\nVersion: 1\n")
    (info / "entry_points.txt").write_text(_ENTRY)
    tests = Path(__file__).parent.parent
    return {"PYTHONPATH": os.pathsep.join([str(home), str(tests)])}


class Notebook(ViewSink):
    """Appends JSON lines to ``page``; gives the commands it finds in ``page``.todo."""

    pause_s: ClassVar[float] = 0.05
    page: Path
    slow_s: float = 0.0
    crash_on: int | None = None
    """The first process of all ends in an error at the first frame from here on."""

    def serve(self, link: Link) -> None:
        told: dict[str, Any] = {}
        crash_on = None if self.page.exists() else self.crash_on
        with self.page.open("a", buffering=1) as page:
            write = lambda **line: page.write(json.dumps({"pid": os.getpid(), **line}) + "\n")  # noqa: E731
            write(serving=True)
            while not link.stopping:
                for item in link.poll(self.pause_s):
                    write(**_line(item))
                    if crash_on is not None and isinstance(item, Frame) and item.index >= crash_on:
                        raise RuntimeError("as it was told to")
                    time.sleep(self.slow_s)
                now = {
                    "connected": link.connected,
                    "generation": link.status().get("generation", {}).get("number"),
                }
                if now != told:
                    write(at=time.time(), **now)
                    told = now
                self._do(link, write)
            write(ended=True)

    def _do(self, link: Link, write: Any) -> None:
        todo = self.page.with_suffix(".todo")
        if not todo.exists():
            return
        name, arguments = json.loads(todo.read_text())
        todo.unlink()
        link.account(asked=1)
        try:
            write(answer=dict(link.command(name, arguments)))
        except QuietbeamError as error:
            write(refused=str(error))


def _line(item: RunStart | RunEnd | Frame | Result) -> dict[str, Any]:
    index = {"index": item.index} if isinstance(item, Frame | Result) else {}
    return {"item": type(item).__name__, "run": item.run, **index}
