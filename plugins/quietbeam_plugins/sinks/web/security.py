"""What stands before every address: Host, Origin, and the headers of every answer."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from quietbeam_plugins.sinks.web.access import Access, Refused


class Guard:
    """Refuses foreign hosts and pages with 403 and adds security headers.

    Args:
        application: What is behind it.
        access: Knows which hosts and origins are ours.
        root_path: Prefix at the reverse proxy, which may pass it on or cut it off.
        frame_ancestors: Which pages may show ours in a frame, as in CSP.
    """

    def __init__(
        self, application: ASGIApp, access: Access, root_path: str, frame_ancestors: str
    ) -> None:
        self._application, self._access = application, access
        self._root_path = root_path
        policy = (
            "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
            "script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; "
            f"form-action 'self'; frame-ancestors {frame_ancestors}"
        )
        self._headers = {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._application(scope, receive, send)
            return
        try:
            self._access.check_page(Headers(scope=scope))
        except Refused as refused:
            await self._refuse(refused, scope, receive, send)
            return
        await self._application(self._rooted(scope), receive, self._adding(send))

    def _rooted(self, scope: Scope) -> Scope:
        root, path = self._root_path, scope["path"]
        if not root:
            return scope
        if path == root or path.startswith(root + "/"):
            return {**scope, "root_path": root}
        return {**scope, "root_path": root, "path": root + path}

    async def _refuse(self, refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"error": refused.detail}, refused.status, self._headers)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(answer)
        else:
            await answer(scope, receive, send)

    def _adding(self, send: Send) -> Send:
        starts = {"http.response.start", "websocket.http.response.start"}

        async def adding(message: Message) -> None:
            if message["type"] in starts:
                headers: Any = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return adding
