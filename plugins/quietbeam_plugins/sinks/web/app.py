"""The addresses of the live view: page, status, recordings, sessions, control, WebSockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import orjson
import structlog
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from quietbeam.core.errors import DataError, QuietbeamError
from quietbeam_plugins.sinks.web.access import COOKIE, Access, Refused
from quietbeam_plugins.sinks.web.audit import Audit
from quietbeam_plugins.sinks.web.hub import Hub
from quietbeam_plugins.sinks.web.messages import Login, NewAnnotation, SharedRegions
from quietbeam_plugins.sinks.web.recordings import Recordings, opened_pictures
from quietbeam_plugins.sinks.web.security import Guard
from quietbeam_plugins.sinks.web.snapshot import MEDIA, filename, snapshot
from quietbeam_plugins.sinks.web.viewer import Viewer

_BODY_BYTES = 64 * 1024
_DRAIN_BYTES = 4 << 20
_FULL = 1013

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]
Work = Callable[[Request, str], Awaitable[Any]]


class BadRequest(QuietbeamError):  # noqa: N818 - it is an answer
    """What was asked cannot be understood."""


class Json(JSONResponse):
    """JSON that knows NumPy numbers and writes NaN as null."""

    def render(self, content: Any) -> bytes:
        """Give the body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


class Api:
    """What each address answers.

    Args:
        hub: The stream and all viewers.
        access: Who may look and write.
        recordings: Finished files.
        audit: Told of every write.
        max_viewers: Further ones are turned away.
        secure: Cookies travel over TLS only.
    """

    def __init__(
        self,
        hub: Hub,
        access: Access,
        recordings: Recordings,
        audit: Audit,
        max_viewers: int = 64,
        *,
        secure: bool = False,
    ) -> None:
        self._hub, self._access, self._recordings = hub, access, recordings
        self._audit, self._max_viewers, self._secure = audit, max_viewers, secure

    def application(self, root_path: str = "", frame_ancestors: str = "'none'") -> ASGIApp:
        """Give the routes as an ASGI application, behind the guard."""
        static = Path(str(files("quietbeam_plugins.sinks.web"))) / "static"
        read, write = self._reading, self._writing
        api = "/api/v1"
        routes: list[BaseRoute] = [
            Route("/", _page(static)),
            Route(f"{api}/hello", read(self._hello)),
            Route(f"{api}/status", read(self._status)),
            Route(f"{api}/session", self._session),
            Route(f"{api}/login", self._login, methods=["POST"]),
            Route(f"{api}/logout", self._logout, methods=["POST"]),
            Route(f"{api}/control", read(self._commands)),
            Route(f"{api}/control/{{command}}", write(self._command), methods=["POST"]),
            Route(f"{api}/regions", read(self._regions), methods=["GET"]),
            Route(f"{api}/regions", write(self._share_regions), methods=["PUT"]),
            Route(f"{api}/annotations", read(self._annotations), methods=["GET"]),
            Route(f"{api}/annotations", write(self._annotate), methods=["POST"]),
            Route(f"{api}/history", read(self._history)),
            Route(f"{api}/snapshot", read(self._snapshot)),
            Route(f"{api}/recordings", read(self._list)),
            Route(f"{api}/recordings/{{name}}", read(self._recording)),
            Route(f"{api}/recordings/{{name}}/thumbnail", read(self._thumbnail)),
            Route(f"{api}/recordings/{{name}}/file", read(self._file)),
            WebSocketRoute("/ws/live", self._live),
            WebSocketRoute("/ws/recording", self._replayed),
        ]
        if static.is_dir():
            routes.append(Mount("/static", _Static(directory=static)))
        inner = Starlette(routes=routes)
        inner.router.redirect_slashes = False
        return Guard(inner, self._access, root_path, frame_ancestors)

    # -- who may ----------------------------------------------------------------------------

    def _reading(self, work: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            try:
                self._access.check_reading(request.headers, _cookie(request), _client(request))
                return await work(request)
            except Refused as refused:
                return _refusal(refused)
            except QuietbeamError as error:
                return Json({"error": str(error)}, _code(error))

        return handle

    def _writing(self, work: Work) -> Handler:
        async def handle(request: Request) -> Response:
            client, what = _client(request), f"{request.method} {request.url.path}"
            who, outcome, body = "nobody", "failed", b""
            try:
                who = self._access.check_writing(request.headers, _cookie(request), client)
                body = await _body(request)
                answer = Json(await work(request, body.decode(errors="replace")))
                outcome = "done"
            except Refused as refused:
                answer, outcome = _refusal(refused), f"refused: {refused.reason}"
            except QuietbeamError as error:
                answer, outcome = Json({"error": str(error)}, _code(error)), str(error)
            finally:
                self._audit.write(who, client, what, body, outcome)
            return answer

        return handle

    # -- reading ------------------------------------------------------------------------------

    async def _hello(self, request: Request) -> Response:
        return Json({**self._hub.hello(self._hub.buffer), **self._about(request)})

    async def _status(self, _request: Request) -> Response:
        return Json(self._hub.status)

    async def _commands(self, _request: Request) -> Response:
        return Json(await asyncio.to_thread(self._hub.link.command, "commands", {}))

    async def _regions(self, _request: Request) -> Response:
        return Json({"regions": [region.model_dump() for region in self._hub.regions]})

    async def _annotations(self, _request: Request) -> Response:
        return Json({"annotations": self._hub.annotations})

    async def _history(self, _request: Request) -> Response:
        found = self._hub.history.since(0) or {}
        events = found.get("events", [])
        metrics = found.get("values", {})
        return Json({"time_s": found.get("time_s", []), "metrics": metrics, "events": events})

    async def _list(self, _request: Request) -> Response:
        return Json({"recordings": await asyncio.to_thread(self._recordings.all)})

    async def _recording(self, request: Request) -> Response:
        name = request.path_params["name"]
        return Json(await asyncio.to_thread(self._recordings.describe, name))

    async def _thumbnail(self, request: Request) -> Response:
        picture = await asyncio.to_thread(self._recordings.thumbnail, request.path_params["name"])
        return Response(picture, media_type="image/jpeg")

    async def _file(self, request: Request) -> Response:
        path = await asyncio.to_thread(self._recordings.path, request.path_params["name"])
        return FileResponse(path, media_type=MEDIA["h5"], filename=path.name)

    async def _snapshot(self, request: Request) -> Response:
        query = request.query_params
        kind, number = query.get("format", "tiff"), query.get("id", "")
        if kind not in MEDIA:
            raise BadRequest(f"format = {kind[:40]!r}: expected one of {', '.join(MEDIA)}")
        if number and not (number.isascii() and number.isdigit() and len(number) < 16):
            raise BadRequest(f"id = {number[:40]!r}: expected a whole number")
        made, name = await asyncio.to_thread(self._made, query.get("recording"), number, kind)
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(made, media_type=MEDIA[kind], headers=headers)

    def _made(self, recording: str | None, number: str, kind: Any) -> tuple[bytes, str]:
        if recording is None:
            buffer = self._hub.buffer
            entry = buffer.get(int(number)) if number else buffer.newest()
        else:
            with opened_pictures(recording, self._recordings.path(recording)) as pictures:
                entry = pictures.get(int(number or 0))
        if entry is None:
            raise DataError("there is no frame yet")
        return snapshot(entry, kind), filename(entry, kind)

    # -- sessions -----------------------------------------------------------------------------

    def _about(self, connection: HTTPConnection) -> dict[str, Any]:
        session = self._access.session(_cookie(connection))
        return {"authenticated": session is not None, "reading": self._access.reading}

    async def _session(self, request: Request) -> Response:
        session = self._access.session(_cookie(request))
        return Json(
            {
                **self._about(request),
                "csrf": None if session is None else session.csrf,
                "expires_unix_s": None if session is None else session.expires_unix_s,
            }
        )

    async def _login(self, request: Request) -> Response:
        client = _client(request)
        try:
            given = _parsed(Login, (await _body(request)).decode(errors="replace"))
            session = await asyncio.to_thread(self._access.login, given.token, client)
        except Refused as refused:
            self._audit.write("nobody", client, "login", b"", f"refused: {refused.reason}")
            return _refusal(refused)
        except QuietbeamError as error:
            return Json({"error": str(error)}, _code(error))
        self._audit.write(f"session {session.key[:6]}", client, "login", b"", "done")
        answer = Json(
            {
                "authenticated": True,
                "reading": self._access.reading,
                "csrf": session.csrf,
                "expires_unix_s": session.expires_unix_s,
            }
        )
        path = request.scope.get("root_path") or "/"
        answer.set_cookie(
            COOKIE, session.key, path=path, httponly=True, samesite="strict", secure=self._secure
        )
        return answer

    async def _logout(self, request: Request) -> Response:
        self._access.logout(_cookie(request))
        answer = Json({"authenticated": False, "reading": self._access.reading, "csrf": None})
        answer.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/")
        return answer

    # -- writing ------------------------------------------------------------------------------

    async def _command(self, request: Request, body: str) -> Any:
        arguments = _object(body)
        command = request.path_params["command"]
        return await asyncio.to_thread(self._hub.link.command, command, arguments)

    async def _share_regions(self, _request: Request, body: str) -> Any:
        self._hub.share_regions(_parsed(SharedRegions, body).regions)
        return {"regions": [region.model_dump() for region in self._hub.regions]}

    async def _annotate(self, _request: Request, body: str) -> Any:
        given = _parsed(NewAnnotation, body)
        note = self._hub.annotate(given.text, given.index)
        kept = await asyncio.to_thread(self._keep, note)
        return {"annotation": note, "recorded": kept}

    def _keep(self, note: Mapping[str, Any]) -> bool:
        """Put a remark into the recording too; False where the daemon cannot."""
        try:
            text = f"frame {note['index']}: {note['text']}"
            self._hub.link.command("annotate", {"text": text})
        except QuietbeamError as error:
            structlog.get_logger().warning("annotation_not_recorded", error=str(error))
            return False
        return True

    # -- WebSockets ---------------------------------------------------------------------------

    async def _live(self, socket: WebSocket) -> None:
        if await self._admitted(socket):
            await Viewer(socket, self._hub, self._hub.buffer, self._about(socket)).serve()

    async def _replayed(self, socket: WebSocket) -> None:
        if not await self._admitted(socket):
            return
        name = socket.query_params.get("name", "")
        try:
            opening = opened_pictures(name, await asyncio.to_thread(self._recordings.path, name))
            with opening as pictures:
                await Viewer(socket, self._hub, pictures, self._about(socket)).serve()
        except DataError as error:
            await socket.send_denial_response(Json({"error": str(error)}, 404))

    async def _admitted(self, socket: WebSocket) -> bool:
        try:
            self._access.check_reading(socket.headers, _cookie(socket), _client(socket))
        except Refused as refused:
            await socket.send_denial_response(_refusal(refused))
            return False
        if len(self._hub.viewers) >= self._max_viewers:
            text = f"{self._max_viewers} viewers look on already; see max_viewers of the web sink"
            await socket.send_denial_response(Json({"error": text}, 503))
            return False
        return True


class _Static(StaticFiles):
    """Files of the bundle; names with a hash never change."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Give one file, with how long it may be kept."""
        answer = super().file_response(*args, **kwargs)
        hashed = "-" in Path(str(args[0])).stem
        kept = "public, max-age=31536000, immutable" if hashed else "no-cache"
        answer.headers["cache-control"] = kept
        return answer


def _page(static: Path) -> Handler:
    async def page(_request: Request) -> Response:
        index = static / "index.html"
        if not index.is_file():
            text = "the page was not built: run `npm ci && npm run build` in plugins/web"
            return Json({"error": text}, 503)
        return FileResponse(index, media_type="text/html", headers={"cache-control": "no-cache"})

    return page


def _cookie(connection: HTTPConnection) -> str | None:
    return connection.cookies.get(COOKIE)


def _client(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else "unknown"


def _refusal(refused: Refused) -> Response:
    headers = {"retry-after": "60"} if refused.status == 429 else {}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Json({"error": refused.detail}, refused.status, headers)


def _code(error: QuietbeamError) -> int:
    if isinstance(error, BadRequest):
        return 413 if "larger than" in str(error) else 400
    return 404 if isinstance(error, DataError) else 409


async def _body(request: Request) -> bytes:
    content, given = bytearray(), 0
    async for chunk in request.stream():
        given += len(chunk)
        if given <= _BODY_BYTES:
            content += chunk
        if given > _DRAIN_BYTES:
            break
    # The rest is read and thrown away: hanging up on one that still sends costs it the answer.
    if given > _BODY_BYTES:
        raise BadRequest(f"the body is larger than {_BODY_BYTES} bytes")
    return bytes(content)


def _object(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body) if body.strip() else {}
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return found


def _parsed(model: type[M], body: str) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the body"
        raise BadRequest(f"{where}: {problem['msg']}") from error
