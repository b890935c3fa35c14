"""CURVE on ZMQ sockets: encrypted, and only for those whose public key is known.

Key files are those of ``zmq.auth.create_certificates``: NAME.key_secret stays
on its machine, NAME.key is given to the other side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from quietbeam.core.errors import ConfigError

_OTHERS = 0o077
_WARN_EVERY_S = 10.0


def become_server(socket: zmq.Socket[Any], secret_key: Path) -> None:
    """Let only CURVE clients connect to ``socket``; call it before binding.

    Raises:
        ConfigError: The key cannot be read, or others on this machine can read it.
    """
    public, secret = _own_keys(secret_key)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    socket.set(zmq.CURVE_SERVER, 1)


def become_client(socket: zmq.Socket[Any], secret_key: Path, server_key: Path) -> None:
    """Connect ``socket`` only to the server that owns ``server_key``; call it before connecting.

    Raises:
        ConfigError: As for ``become_server``.
    """
    public, secret = _own_keys(secret_key)
    server, _ = _load(server_key)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    socket.set(zmq.CURVE_SERVERKEY, server)


@contextmanager
def doorkeeper(context: zmq.Context[Any], clients: Path) -> Iterator[Doorkeeper]:
    """Decide who may connect to the CURVE servers of ``context``.

    Args:
        context: Of the sockets; one doorkeeper a context.
        clients: Directory of the public keys (``*.key``) let in.  It is read at
            every handshake: adding or removing a file needs no restart.

    Raises:
        ConfigError: ``clients`` is no directory.
    """
    if not clients.is_dir():
        raise ConfigError(f"{clients}: expected a directory with the *.key files of the clients")
    keeper = Doorkeeper(clients)
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback("*", keeper)
    try:
        yield keeper
    finally:
        authenticator.stop()


class Doorkeeper:
    """Answers the authenticator, in its thread.

    Attributes:
        refused: Handshakes so far with a key that is not known.
    """

    def __init__(self, clients: Path) -> None:
        self.refused = 0
        self._clients = clients
        self._told_s = -_WARN_EVERY_S
        self._log = structlog.get_logger()

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell whether the client with this public key (Z85) may connect."""
        del domain
        known = key in self._known()
        self.refused += not known
        if not known and time.monotonic() - self._told_s >= _WARN_EVERY_S:
            self._told_s = time.monotonic()
            self._log.warning("client_refused", clients=str(self._clients), refused=self.refused)
        return known

    def _known(self) -> set[bytes]:
        known = set()
        for path in self._clients.glob("*.key"):
            try:
                known.add(_load(path)[0])
            except ConfigError as error:  # a bad file keeps out its owner only
                self._log.warning("client_key_unusable", error=str(error))
        return known


def _own_keys(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"{path}: holds no secret key; expected the NAME.key_secret of a pair")
    if path.stat().st_mode & _OTHERS:
        raise ConfigError(f"{path}: others may read this secret key; `chmod 600 {path}`")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: no CURVE key can be read there ({type(error).__name__}); "
            "`zmq.auth.create_certificates` makes a pair"
        ) from error
    if any(key is not None and len(key) != 40 for key in (public, secret)):
        raise ConfigError(f"{path}: holds a damaged CURVE key; expected 40 characters of Z85")
    return public, secret
