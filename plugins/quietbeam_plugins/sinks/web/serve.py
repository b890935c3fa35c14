"""Runs the live view: one thread reads the rings, the event loop serves viewers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING

import structlog
import uvicorn

from quietbeam.core.errors import ConfigError
from quietbeam.core.plugin import Link
from quietbeam_plugins.sinks.web.access import Access
from quietbeam_plugins.sinks.web.app import Api
from quietbeam_plugins.sinks.web.audit import Audit
from quietbeam_plugins.sinks.web.buffer import Buffer
from quietbeam_plugins.sinks.web.hub import Hub
from quietbeam_plugins.sinks.web.recordings import Recordings

if TYPE_CHECKING:
    from quietbeam_plugins.sinks.web import Web

_POLL_S = 0.1
_LOOK_S = 0.25
_NICE = 5
_STALLED_MS = 15_000
_SEND_BYTES = 1 << 20
_MESSAGE_BYTES = 64 * 1024

log = structlog.get_logger()


def serve(settings: Web, link: Link) -> None:
    """Serve viewers until the link says to stop.

    Raises:
        ConfigError: The address cannot be listened on, or the certificate not be read.
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)  # display is what is given up first
    listener = listen(settings.address)
    try:
        asyncio.run(_serve(settings, link, listener))
    finally:
        listener.close()


async def _serve(settings: Web, link: Link, listener: socket.socket) -> None:
    hub = Hub(link, Buffer(settings.buffer_mib << 20), asyncio.get_running_loop())
    access = Access(link.verify, settings.hosts, settings.origins, settings.reading)
    api = Api(
        hub,
        access,
        Recordings(settings.recordings),
        Audit(settings.audit_log),
        settings.max_viewers,
        secure=settings.tls_certificate is not None,
    )
    application = api.application(settings.root_path, settings.frame_ancestors)
    server = _Server(_configured(settings, application))
    reader = threading.Thread(target=_read, args=(link, hub), name="web-read", daemon=True)
    reader.start()
    url = url_of(listener, settings.root_path, tls=settings.tls_certificate is not None)
    log.info("web_listens", url=url)
    if settings.address_file is not None:
        settings.address_file.write_text(url + "\n")
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not link.stopping and reader.is_alive() and not serving.done():
            hub.look()
            await asyncio.sleep(_LOOK_S)
    finally:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=3.0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    if not link.stopping:
        log.critical("web_ended", reader=reader.is_alive())


def _read(link: Link, hub: Hub) -> None:
    """Take frames from the rings as they come; nothing here waits for a viewer."""
    while not link.stopping:
        items = link.poll(_POLL_S)
        for item in items:
            hub.take(item)
        if hub.buffer.uncleaned() is not None or items:
            hub.wake()


def _configured(settings: Web, application: object) -> uvicorn.Config:
    config = uvicorn.Config(
        application,  # type: ignore[arg-type]  # an ASGI application
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=_MESSAGE_BYTES,
        ws_ping_interval=10.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,  # pixels do not shrink, and it would cost the processor
        http="h11",
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=1,
        limit_concurrency=4 * settings.max_viewers + 64,
    )
    if settings.tls_certificate is not None:
        try:
            config.ssl = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            config.ssl.load_cert_chain(settings.tls_certificate, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"tls_certificate = {settings.tls_certificate}: cannot be read: {error}"
            ) from error
        config.load()
    return config


def listen(address: str) -> socket.socket:
    """Open the listening socket of ``HOST:PORT`` (port 0: a free one).

    Raises:
        ConfigError: It is no address, or somebody else listens there.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"web: address = {address!r}: expected HOST:PORT, e.g. 127.0.0.1:8080")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit both: one that is stalled is given up by the kernel as well.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        listener.bind((host, int(port)))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"web: address = {address!r}: cannot listen there: {error.strerror or error}; "
            "stop what uses the port or choose another (port 0 picks a free one)"
        ) from error
    return listener


def url_of(listener: socket.socket, root_path: str, *, tls: bool) -> str:
    """Give the URL under which the view is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    scheme, shown = "https" if tls else "http", f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}{root_path}/"


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
