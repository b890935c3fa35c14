"""Who may change the daemon's state over HTTP."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REASONS = ("missing", "wrong", "origin", "host", "throttled")
"""Why a request was refused: no token, another token, a foreign web page, a name
that is not ours (DNS rebinding), too many failures from one address."""

ENDPOINTS = ("control",)
_FAILURES_PER_MINUTE = 10


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, with its HTTP status."""

    status: int
    reason: str
    detail: str


@dataclass(slots=True)
class Access:
    """Checks requests against the token and the names this daemon goes by.

    Attributes:
        token: What a caller has to know.
        names: Host names that may stand in the Host header, besides IP addresses.
        failures: Refused requests by (endpoint, reason).
    """

    token: str
    names: frozenset[str]
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    _recent: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def refuse(self, endpoint: str, headers: Mapping[str, str], client: str) -> Refusal | None:
        """Give why a state-changing request is refused, or None if it may pass."""
        refusal = self._judge(headers, client)
        if refusal is not None:
            self.failures[endpoint, refusal.reason] += 1
            if refusal.reason in {"missing", "wrong"}:
                self._recent[client].append(time.monotonic())
        return refusal

    def foreign_host(self, headers: Mapping[str, str]) -> bool:
        """Tell whether the Host header names somebody else."""
        return not self._is_ours(headers.get("host", ""))

    def _judge(self, headers: Mapping[str, str], client: str) -> Refusal | None:
        if self.foreign_host(headers):
            return Refusal(403, "host", "this Host is not served")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
            return Refusal(403, "origin", "requests from other web pages are not served")
        if self._throttled(client):
            return Refusal(429, "throttled", "too many failures; wait a minute")
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given:
            return Refusal(401, "missing", "give the header `Authorization: Bearer TOKEN`")
        if not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            return Refusal(403, "wrong", "the token is not the one of this daemon")
        return None

    def _throttled(self, client: str) -> bool:
        if len(self._recent) > 1024:  # addresses that tried once and never again
            self._forget_old()
        recent = self._recent.get(client)
        if recent is None:
            return False
        while recent and time.monotonic() - recent[0] > 60:
            recent.popleft()
        return len(recent) >= _FAILURES_PER_MINUTE

    def _forget_old(self) -> None:
        now = time.monotonic()
        for client in [c for c, times in self._recent.items() if not times or now - times[-1] > 60]:
            del self._recent[client]

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname
        if not name:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.names
        return True


def own_names(host: str) -> frozenset[str]:
    """Give the names under which this machine may be addressed."""
    return frozenset({"localhost", host.lower(), socket.gethostname().lower()})
