"""The HTTP interface: metrics, health, status, control.  Reading is open, changing is not."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from quietbeam.core.errors import ConfigError, QuietbeamError
from quietbeam.service.access import Access
from quietbeam.service.control import Control, ControlError, UnknownCommandError
from quietbeam.service.health import alive, document, ready
from quietbeam.service.view_socket import to_json

_BODY_BYTES = 64 * 1024
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Snapshot = Callable[[], Mapping[str, Any]]


class _Json(JSONResponse):
    """JSON that knows NumPy numbers and writes NaN as null."""

    def render(self, content: Any) -> bytes:
        return to_json(content)


class Endpoints:
    """What each address answers.

    Args:
        snapshot: Gives the daemon's full status.
        accounts: Gives the account of every frame.
        registry: Of the Prometheus metrics.
        control: Carries out commands.
        access: Says who may give them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        accounts: Snapshot,
        registry: CollectorRegistry,
        control: Control,
        access: Access,
    ) -> None:
        self._snapshot, self._accounts, self._registry = snapshot, accounts, registry
        self._control, self._access = control, access

    def application(self) -> Starlette:
        """Give the routes as an ASGI application."""
        return Starlette(
            routes=[
                Route("/", self._index),
                Route("/metrics", self._metrics),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/api/v1/status", self._status),
                Route("/api/v1/ledger", self._ledger),
                Route("/api/v1/control/{command}", self._command, methods=["POST"]),
            ]
        )

    async def _index(self, request: Request) -> Response:
        paths = ["/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/ledger"]
        return self._answer(request, {"service": "quietbeam", "paths": paths})

    async def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), media_type=content_type, headers=_HEADERS)

    async def _healthz(self, request: Request) -> Response:
        well, content = document(alive(self._snapshot()))
        return self._answer(request, content, 200 if well else 503)

    async def _readyz(self, request: Request) -> Response:
        well, content = document(ready(self._snapshot()))
        return self._answer(request, content, 200 if well else 503)

    async def _status(self, request: Request) -> Response:
        return self._answer(request, self._snapshot())

    async def _ledger(self, request: Request) -> Response:
        return self._answer(request, self._accounts())

    async def _command(self, request: Request) -> Response:
        client = request.client.host if request.client else "unknown"
        refusal = self._access.refuse("control", request.headers, client)
        if refusal is not None:
            headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
            return _Json({"error": refusal.detail}, refusal.status, {**_HEADERS, **headers})
        try:
            arguments = await _body(request)
            command = request.path_params["command"]
            return _Json(await self._control.run(command, arguments, client), headers=_HEADERS)
        except QuietbeamError as error:
            return _Json({"error": str(error)}, _status_of(error), _HEADERS)

    def _answer(self, request: Request, content: Any, status: int = 200) -> Response:
        if self._access.foreign_host(request.headers):
            return _Json({"error": "this Host is not served"}, 403, _HEADERS)
        return _Json(content, status, _HEADERS)


def _status_of(error: QuietbeamError) -> int:
    if isinstance(error, UnknownCommandError):
        return 404
    return 400 if isinstance(error, ControlError) else 409


async def _body(request: Request) -> Mapping[str, Any]:
    """Read the JSON object of a command; an empty body is an empty object."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _BODY_BYTES:
            raise ControlError(f"the body is larger than {_BODY_BYTES} bytes")
    if not content:
        return {}
    try:
        arguments = json.loads(content)
    except ValueError as error:
        raise ControlError(f"the body is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ControlError("the body must be a JSON object")
    return arguments


def listen(address: str) -> socket.socket:
    """Open the listening socket of ``HOST:PORT`` (port 0: a free one).

    Raises:
        ConfigError: It is no address, or somebody else listens there.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"[service] http = {address!r}: expected HOST:PORT, e.g. 127.0.0.1:9469")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"[service] http = {address!r}: cannot listen there: {error.strerror or error}; "
            "stop what uses the port or choose another (port 0 picks a free one)"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Give the URL under which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class HttpServer:
    """Serves one application on one socket, in the running loop."""

    def __init__(self, application: Starlette, listener: socket.socket) -> None:
        self._listener = listener
        self._server = _Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http="h11",
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
            )
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Serve from now on."""
        serving = self._server.serve(sockets=[self._listener])
        self._task = asyncio.get_running_loop().create_task(serving, name="http")

    async def stop(self) -> None:
        """End open requests and close the socket; safe without a start, and twice."""
        task, self._task = self._task, None
        if task is None:
            self._listener.close()
            return
        self._server.should_exit = True
        await asyncio.wait({task}, timeout=2.0)
        self._listener.close()
        if not task.done():
            self._server.force_exit = True
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
