"""Who may look and who may change something: hosts, origins, sessions, rates."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

COOKIE = "quietbeam_session"
CSRF_HEADER = "x-quietbeam-csrf"
_SESSIONS = 64
_FAILURES_PER_MINUTE = 10
_CLIENTS = 1024

Reason = Literal["missing", "wrong", "csrf", "origin", "host", "throttled"]


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that is not served."""

    def __init__(self, status: int, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has logged in."""

    key: str
    csrf: str
    expires_unix_s: float


@dataclass(slots=True)
class Rate:
    """At most so many events in so many seconds, by client; bounded in memory."""

    most: int
    seconds: float
    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def full(self, client: str) -> bool:
        """Tell whether this client has used up its share."""
        times = self._times.get(client)
        if times is None:
            return False
        now = time.monotonic()
        while times and now - times[0] > self.seconds:
            times.popleft()
        return len(times) >= self.most

    def add(self, client: str) -> None:
        """Count one event."""
        times = self._times.setdefault(client, deque(maxlen=self.most))
        times.append(time.monotonic())
        self._times.move_to_end(client)
        while len(self._times) > _CLIENTS:
            self._times.popitem(last=False)


class Access:
    """Checks every request of the live view.

    Args:
        verify: Tells whether a token is the daemon's.
        names: Host names served besides IP addresses and this machine's own.
        origins: Foreign pages (``https://host[:port]``) that may connect.
        reading: Whether looking needs a credential too.
        session_s: How long a login lasts.
    """

    def __init__(
        self,
        verify: Callable[[str], bool],
        names: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        reading: Literal["open", "credential"] = "open",
        session_s: float = 12 * 3600.0,
    ) -> None:
        self.reading = reading
        self.refused: Counter[str] = Counter()
        own = {"localhost", socket.gethostname()}
        self._names = frozenset(name.lower() for name in (*own, *names))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._verify, self._session_s = verify, session_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failures = Rate(_FAILURES_PER_MINUTE, 60.0)
        self._writes = Rate(120, 60.0)

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Refuse names that are not ours (DNS rebinding) and foreign web pages; scripts have none.

        Raises:
            Refused: 403.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            detail = f"this Host is not served: {host!r}; add it to `hosts` of the web sink"
            raise self._refusal(403, "host", detail)
        origin = headers.get("origin")
        if origin is None or origin.lower() in self._origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            detail = f"pages of {origin} may not do this; see `origins` of the web sink"
            raise self._refusal(403, "origin", detail)

    def check_reading(self, headers: Mapping[str, str], cookie: str | None, client: str) -> None:
        """Refuse who may not look.

        Raises:
            Refused: 401, 403 or 429.
        """
        if self.reading == "credential" and self.session(cookie) is None:
            self._bearer(headers, client)

    def check_writing(self, headers: Mapping[str, str], cookie: str | None, client: str) -> str:
        """Refuse who may not change anything; gives who it is, for the audit log.

        Raises:
            Refused: 401, 403 or 429.
        """
        if self._writes.full(client):
            raise self._refusal(429, "throttled", "too many changes; wait a minute")
        session = self.session(cookie)
        if session is None or "authorization" in headers:
            self._bearer(headers, client)
            who = "bearer"
        else:
            given = headers.get(CSRF_HEADER, "")
            if not hmac.compare_digest(given.encode(), session.csrf.encode()):
                raise self._refusal(403, "csrf", f"the header {CSRF_HEADER} is missing or wrong")
            who = f"session {session.key[:6]}"
        self._writes.add(client)
        return who

    def login(self, token: str, client: str) -> Session:
        """Begin a session.

        Raises:
            Refused: 403 a wrong token, 429 too many of them.
        """
        self._verified(token, client)
        session = Session(
            secrets.token_urlsafe(32), secrets.token_urlsafe(24), time.time() + self._session_s
        )
        self._sessions[session.key] = session
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def logout(self, cookie: str | None) -> None:
        """Forget a session."""
        if cookie is not None:
            self._sessions.pop(cookie, None)

    def session(self, cookie: str | None) -> Session | None:
        """Give the session of a cookie, if it is one and lasts."""
        session = self._sessions.get(cookie or "")
        if session is not None and session.expires_unix_s < time.time():
            self.logout(cookie)
            return None
        return session

    def _bearer(self, headers: Mapping[str, str], client: str) -> None:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given.strip():
            raise self._refusal(
                401, "missing", "log in, or give the header `Authorization: Bearer TOKEN`"
            )
        self._verified(given.strip(), client)

    def _verified(self, token: str, client: str) -> None:
        if self._failures.full(client):
            raise self._refusal(429, "throttled", "too many failures; wait a minute")
        if not self._verify(token):
            self._failures.add(client)
            raise self._refusal(403, "wrong", "the token is not the one of this daemon")

    def _refusal(self, status: int, reason: Reason, detail: str) -> Refused:
        self.refused[reason] += 1
        return Refused(status, reason, detail)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if not name:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True
