"""One viewer: what it wants to see, the one frame that is on its way, and its place in time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, assert_never

import orjson
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from quietbeam_plugins.sinks.web.entries import Entry, Pictures
from quietbeam_plugins.sinks.web.hub import Hub
from quietbeam_plugins.sinks.web.messages import (
    INBOUND,
    Ack,
    Inbound,
    Live,
    Pause,
    Region,
    Regions,
    Seek,
    Strips,
    Value,
    View,
)
from quietbeam_plugins.sinks.web.regions import measured
from quietbeam_plugins.sinks.web.render import exact, message
from quietbeam_plugins.sinks.web.series import SeriesFeed

_SEND_S = 5.0
_ACK_S = 20.0
_TICK_S = 0.25
_STATUS_S = 0.5
_MESSAGES_PER_S = 60
_PENDING = 64
_STALLED, _POLICY = 1013, 1008


class _Left(Exception):  # noqa: N818 - how a connection ends, not a fault
    """The viewer is to be closed, or has gone."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Viewer:
    """Serves one WebSocket to its end.

    At most one frame is on its way; while it is, newer ones replace each other
    in the buffer, so that a slow viewer costs the memory of one message.
    """

    def __init__(
        self, socket: WebSocket, hub: Hub, pictures: Pictures, session: Mapping[str, Any]
    ) -> None:
        self._socket, self._hub, self._pictures = socket, hub, pictures
        self._session = session
        self._view = View(type="view")
        self._regions: tuple[Region, ...] = ()
        self._series = SeriesFeed(pictures)
        self._strips: tuple[str, ...] | None = None
        self._strips_seen = 0
        self._paused = not pictures.live
        self._shown: Entry | None = None
        self._wanted: int | None = None if pictures.live else 0
        self._dirty = False
        self._seq = self._acked = 0
        self._sent_s = 0.0
        self._asked: Value | None = None
        self._texts: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(_PENDING)
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        self._times: deque[float] = deque(maxlen=_MESSAGES_PER_S)
        self._overflown = False

    async def serve(self) -> None:
        """Accept, serve, and close; whatever the viewer does, nobody else notices."""
        await self._socket.accept()
        self._hub.viewers.add(self)
        tasks: list[asyncio.Task[None]] = []
        left = _Left(1011, "it failed")
        try:
            await self._send_text({**self._hub.hello(self._pictures), **self._session})
            work = (self._hear(), self._show(), self._tick(), self._speak())
            tasks = [asyncio.create_task(part) for part in work]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except _Left as why:
            left = why
        except (WebSocketDisconnect, RuntimeError, OSError):  # it went away under our hands
            left = _Left(1006, "gone")
        finally:
            self._hub.viewers.discard(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._close(left)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a text message soon."""
        try:
            self._texts.put_nowait(message)
        except asyncio.QueueFull:
            self._overflown = True

    # -- what comes in --------------------------------------------------------------------

    async def _hear(self) -> None:
        while True:
            try:
                text = await self._socket.receive_text()
            except (KeyError, TypeError) as error:
                raise _Left(1003, "only text messages are read") from error
            now = time.monotonic()
            if len(self._times) == _MESSAGES_PER_S and now - self._times[0] < 1.0:
                raise _Left(_POLICY, f"more than {_MESSAGES_PER_S} messages a second")
            self._times.append(now)
            try:
                self._obey(INBOUND.validate_json(text))
            except ValidationError as error:
                self.tell({"type": "error", "error": _explained(error), "request": None})

    def _obey(self, said: Inbound) -> None:
        match said:
            case View():
                self._view, self._dirty = said, True
                self._series.channel = said.channel
            case Ack():
                self._acked = max(self._acked, min(said.seq, self._seq))
            case Pause():
                self._paused = True
            case Seek():
                self._paused, self._wanted = True, said.id
            case Live():
                self._paused, self._wanted = not self._pictures.live, None
            case Value():
                self._asked = said
            case Regions():
                self._regions, self._dirty = said.regions, True
                self._series.follow(said.regions)
            case Strips():
                self._strips, self._strips_seen = said.names, 0
            case _:
                assert_never(said)
        self._changed.set()

    # -- frames ---------------------------------------------------------------------------

    async def _show(self) -> None:
        while True:
            entry = self._due()
            if entry is None:
                await self._wait()
                continue
            await self._send_frame(entry)

    def _due(self) -> Entry | None:
        """Give the frame to send now, if there is one and the last one was acknowledged."""
        if self._acked < self._seq:
            if time.monotonic() - self._sent_s > _ACK_S:
                raise _Left(_STALLED, "stalled: nothing was acknowledged")
            return None
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            return self._pictures.get(wanted)
        if self._dirty and self._shown is not None and self._paused:
            return self._shown
        if self._paused and not (self._shown is None and self._dirty):
            return None
        newest = self._pictures.newest()
        if newest is None or self._too_early(newest):
            return None
        return newest

    def _too_early(self, newest: Entry) -> bool:
        if self._dirty or self._shown is None:
            return False
        pause_s = 1 / self._view.max_fps
        return newest is self._shown or time.monotonic() - self._sent_s < 0.95 * pause_s

    async def _wait(self) -> None:
        """Wait until something may have to be sent."""
        pulse = asyncio.create_task(self._hub.pulse.wait(_TICK_S))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({pulse, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pulse.cancel()
            changed.cancel()
        self._changed.clear()
        behind_s = 1 / self._view.max_fps - (time.monotonic() - self._sent_s)
        if self._acked >= self._seq and not self._dirty and 0 < behind_s < _TICK_S:
            await asyncio.sleep(behind_s)

    async def _send_frame(self, entry: Entry) -> None:
        view, regions = self._view, self._regions
        self._dirty = False
        frame = await self._hub.shared.get(self._pictures.name, entry, view)
        found = await asyncio.to_thread(_measured, entry, regions, view.channel)
        newest = self._pictures.newest()
        personal = {
            "seq": self._seq + 1,
            "age_s": max(0.0, time.time() - entry.unix_s),
            "live": self._pictures.live and not self._paused and newest is not None,
            "regions": found,
        }
        self._seq += 1
        self._shown, self._sent_s = entry, time.monotonic()
        await self._send(message(frame, personal))

    # -- text -----------------------------------------------------------------------------

    async def _speak(self) -> None:
        while True:
            await self._send_text(await self._texts.get())

    async def _tick(self) -> None:
        """Everything that is sent by the clock: series, strips, standing, exact values."""
        status_s = 0.0
        while True:
            if self._overflown:
                raise _Left(_STALLED, "stalled: messages are not taken")
            await self._answer_value()
            for series in await asyncio.to_thread(self._series.new):
                await self._send_text(series)
            await self._send_strips()
            now = time.monotonic()
            if now - status_s >= _STATUS_S:
                status_s = now
                await self._send_text({"type": "buffer", **self._pictures.span()})
                await self._send_text(self._hub.status)
            await self._pause_for_value()

    async def _pause_for_value(self) -> None:
        """Wait for the next tick; a question for a value shortens it."""
        end_s = time.monotonic() + _TICK_S
        while self._asked is None and (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.04))

    async def _answer_value(self) -> None:
        asked, self._asked = self._asked, None
        if asked is None:
            return
        answer = {"type": "value", "request": asked.request, "x": asked.x, "y": asked.y}
        if self._shown is None:
            await self._send_text({**answer, "id": None, "raw": None, "clean": None, "sd": None})
            return
        values = exact(self._shown, asked.x, asked.y, self._view.channel)
        await self._send_text({**answer, "id": self._shown.id, **values})

    async def _send_strips(self) -> None:
        if self._strips is None or not self._pictures.live:
            return
        new = self._hub.history.since(self._strips_seen, self._strips)
        if new is None:
            return
        reset, self._strips_seen = self._strips_seen == 0, max(1, new.pop("number"))
        await self._send_text({"type": "strips", "reset": reset, **new})

    # -- the wire -------------------------------------------------------------------------

    async def _send_text(self, content: Mapping[str, Any]) -> None:
        await self._send(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY).decode())

    async def _send(self, content: str | bytes) -> None:
        send = self._socket.send_text if isinstance(content, str) else self._socket.send_bytes
        try:
            async with asyncio.timeout(_SEND_S), self._sending:
                await send(content)  # type: ignore[arg-type]  # of the type that was chosen by
        except TimeoutError as error:
            raise _Left(_STALLED, "stalled: it takes no data") from error

    async def _close(self, left: _Left) -> None:
        if self._socket.application_state is WebSocketState.DISCONNECTED or left.code == 1006:
            return
        try:
            async with asyncio.timeout(1.0):
                await self._socket.close(left.code, left.reason)
        except (TimeoutError, RuntimeError, OSError):
            return


def _measured(entry: Entry, regions: tuple[Region, ...], channel: str | None) -> dict[str, Any]:
    return {region.id: measured(entry, region, channel) for region in regions}


def _explained(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "message"
    return f"{where}: {problem['msg']}; see the protocol in the README of the web sink"
