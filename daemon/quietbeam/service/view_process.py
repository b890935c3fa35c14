"""One view in its own process: ``python -m quietbeam.service.view_process DIRECTORY NAME``.

It is met at a socket in the daemon's runtime directory (``view_socket``) and
outlives the daemon: the next daemon of that directory takes it over.  It ends
when told to, when a daemon comes with other settings, and when no daemon has
come for ``linger_s``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from quietbeam.core.errors import ConfigError, QuietbeamError
from quietbeam.core.plugin import ViewSink
from quietbeam.registry import find
from quietbeam.service import logs
from quietbeam.service.runtime import token_path
from quietbeam.service.view_link import ViewLink
from quietbeam.service.view_socket import listen, lock, to_json

_FIRST_S = 60.0
_STATUS_S = 0.5
_LEAVE_S = 10.0
_EX_TEMPFAIL = 75

Message = Mapping[str, Any]


def main(argv: list[str]) -> int:
    """Serve until told to stop; give the exit code."""
    directory, name = Path(argv[0]), argv[1]
    os.dup2(2, 1)  # whatever prints: it is a log
    logs.configure("json", stream=sys.stderr)
    held = lock(directory, name)
    if held is None:
        structlog.get_logger().error("view_lives_already", view=name, directory=str(directory))
        return _EX_TEMPFAIL
    server = Server(name, listen(directory, name), token_path(directory))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    try:
        return server.run()
    except QuietbeamError as error:
        structlog.get_logger().critical("view_refused", view=name, reason=str(error))
        return error.exit_code


class Server:
    """Meets daemons, one at a time, and runs the view.

    Args:
        name: Of the view.
        listener: Where daemons connect.
        token: File of the daemon's control token.
    """

    def __init__(self, name: str, listener: socket.socket, token: Path) -> None:
        self._name, self._listener, self._token = name, listener, token
        self._first: Message | None = None
        self._came = threading.Event()
        self._link: ViewLink | None = None
        self._connection: socket.socket | None = None
        self._alone_s = time.monotonic()
        self._linger_s = _FIRST_S
        self._sending = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> int:
        """Wait for the first daemon, then serve clients to the end.

        Raises:
            ConfigError: The settings are wrong.
        """
        threading.Thread(target=self._meet, daemon=True, name="meet").start()
        self._came.wait(_FIRST_S)
        if self._first is None:
            return 0
        plugin = _plugin(self._first)
        link = ViewLink(self._name, plugin.raw_backlog, plugin.clean_backlog, self._token)
        self._linger_s = plugin.linger_s
        link.attached(self._send, self._first["rings"])
        self._link = link
        if self._stopped.is_set():
            return 0
        threading.Thread(target=self._beat, args=(link,), daemon=True, name="beat").start()
        self._send({"type": "ready", "pid": os.getpid()})
        try:
            plugin.serve(link)
        except Exception as error:  # noqa: BLE001 - whatever it is: the daemon starts it afresh
            structlog.get_logger().critical("view_failed", view=self._name, exc_info=error)
            return error.exit_code if isinstance(error, QuietbeamError) else 1
        if not link.stopping:
            structlog.get_logger().error("view_ended_by_itself", view=self._name)
        return 0 if link.stopping else 1

    def stop(self) -> None:
        """Have the view end; one that does not within ten seconds is ended."""
        if not self._stopped.is_set():
            self._stopped.set()
            threading.Thread(target=_end_late, daemon=True).start()
        if self._link is not None:
            self._link.stopping = True
        self._came.set()

    # -- daemons --------------------------------------------------------------------------

    def _meet(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        """Hear one daemon to its end."""
        stream = connection.makefile("rb")
        try:
            for line in stream:
                self._obey(connection, json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            structlog.get_logger().warning("daemon_not_understood", error=repr(error))
        finally:
            if connection is self._connection:
                self._connection, self._alone_s = None, time.monotonic()
                if self._link is not None:
                    self._link.left()
                if not self._stopped.is_set():
                    structlog.get_logger().warning("daemon_gone", view=self._name)
            stream.close()
            connection.close()

    def _obey(self, connection: socket.socket, message: Message) -> None:
        if message["type"] == "init":
            self._take(connection, message)
        elif message["type"] == "stop":
            self.stop()
        elif self._link is not None and connection is self._connection:
            self._link.hear(message)

    def _take(self, connection: socket.socket, init: Message) -> None:
        """Be the view of this daemon, if it wants the one we are."""
        self._connection = connection
        if self._first is None:
            self._first = init
            self._came.set()
        elif init["identity"] != self._first["identity"]:
            structlog.get_logger().info("view_replaced", view=self._name)
            self.stop()
        elif self._link is None:
            self._first = init
        else:
            self._link.attached(self._send, init["rings"])
            self._send({"type": "ready", "pid": os.getpid()})

    def _send(self, message: Message) -> None:
        """Write one line to the daemon of the moment; without one nobody hears it.

        Raises:
            OSError: It has just gone.
        """
        connection = self._connection
        if connection is not None:
            with self._sending:
                connection.sendall(to_json(message) + b"\n")

    def _beat(self, link: ViewLink) -> None:
        """Tell the account twice a second; end when no daemon has come for long."""
        while True:
            time.sleep(_STATUS_S)
            if self._connection is None:
                if time.monotonic() - self._alone_s > self._linger_s:
                    structlog.get_logger().warning("no_daemon_came", waited_s=self._linger_s)
                    self.stop()
                continue
            state = "stopping" if link.stopping else "serving"
            told = {**link.facts, "state": state, "given": link.given, "dropped": link.dropped()}
            try:
                self._send({"type": "status", **told})
            except OSError:
                continue


def _plugin(init: Message) -> ViewSink:
    cls = find("sinks", init["kind"], ViewSink)
    try:
        return cls.model_validate(init["settings"])
    except ValidationError as error:
        raise ConfigError(f"sink {init['kind']!r}: {error}") from error


def _end_late() -> None:
    time.sleep(_LEAVE_S)
    structlog.get_logger().error("view_did_not_end", waited_s=_LEAVE_S)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    CODE = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(CODE)  # libraries of control systems leave threads that would keep it alive
