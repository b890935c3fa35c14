"""The sink ``epics``: its settings, and the life of the server."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator

from quietbeam import ConfigError, Link, SinkError, ViewSink
from quietbeam_plugins.sinks.epics.pv import NAME_CHARS, Limits, check
from quietbeam_plugins.sinks.epics.table import FIXED, table

_FIRST_S = 60.0


class Epics(ViewSink):
    """Settings of the EPICS server."""

    prefix: str = Field(default="QB:DEN1:", pattern=r"^[A-Za-z0-9_\-:;.<>\[\]]+:$")
    """Of every name, with the final colon, e.g. ``BL99-DEN:DEN1:``."""
    interface: str = "127.0.0.1"
    """Address of the network card that serves; 0.0.0.0 for all."""
    ca_port: int = Field(default=5064, ge=1, le=65535)
    pva_port: int = Field(default=5075, ge=1, le=65535)
    image_port: int = Field(default=5085, ge=1, le=65535)
    """Of images, ``Metrics`` and ``PVI``: a second PV Access server."""
    pva_broadcast_port: int = Field(default=5076, ge=1, le=65535)
    record_hz: PositiveFloat = 10.0
    """How often records are brought up to date; ``Metrics`` follows every frame."""
    image_hz: NonNegativeFloat = 5.0
    """Most images a second; 0: every frame.  The PV ``MinCallbackTime`` changes it."""
    preview_hz: PositiveFloat = 10.0
    stale_s: PositiveFloat = 2.0
    """What is measured on frames is INVALID when none has come for so long."""
    labels: str = ""
    """Map shown as ``Pva3:Image``; "": the first one without classes."""
    phases: str = ""
    """Map shown as ``Pva6:Image``; "": the first one with classes."""
    alarms: dict[str, Limits] = Field(default_factory=dict)
    """Limits by name of metric: lolo, low, high, hihi."""
    operators: tuple[str, ...] = ()
    """Users who may steer; with no experts either: the user who runs the daemon."""
    experts: tuple[str, ...] = ()
    """Users who may also freeze, roll back, checkpoint and reset."""
    access_file: Path | None = None
    """An access security file instead of one made from ``operators`` and ``experts``."""
    autosave_directory: Path | None = None
    """Where settings are kept over a restart; None: they are not."""
    capture_root: Path | None = None
    """Only below it does ``HDF1:Capture`` write files; None: nowhere."""

    @field_validator("prefix")
    @classmethod
    def _fits(cls, value: str) -> str:
        for problem in check(FIXED, value):
            raise ValueError(f"{problem}: choose a shorter prefix (names: {NAME_CHARS})")
        return value

    @property
    def raw_backlog(self) -> int:
        """Raw frames wait for the cleaned frame of the same number."""
        return 64

    def serve(self, link: Link) -> None:
        """Serve clients until the daemon stops.

        Raises:
            ConfigError: What the daemon measures cannot be served under this prefix.
            SinkError: A port is taken, or the daemon measures something else now.
        """
        status = self._first_status(link)
        if status is None:
            return
        self._prepare_environment()
        pvs = table(status["metrics"], self.alarms)
        for problem in check(pvs, self.prefix):
            raise ConfigError(f"[[sinks]] epics: {problem}; choose a shorter prefix")
        # here and not above: an IOC exists once in a process, and reads the environment
        from quietbeam_plugins.sinks.epics.server import EpicsServer

        with tempfile.TemporaryDirectory() as scratch:
            server = EpicsServer(self, link, pvs, status, Path(scratch))
            structlog.get_logger().info("epics_serves", prefix=self.prefix, pvs=len(pvs))
            server.run()

    def _first_status(self, link: Link) -> Any:
        deadline_s = time.monotonic() + _FIRST_S
        while not link.stopping and "metrics" not in link.status():
            if time.monotonic() > deadline_s:
                raise SinkError("the daemon has not told its status; the server starts again")
            time.sleep(0.02)
        return None if link.stopping else link.status()

    def _prepare_environment(self) -> None:
        """Say where EPICS listens; before its libraries are loaded."""
        for port in (self.ca_port, self.pva_port, self.image_port):
            _is_free(self.interface, port)
        known = {
            "EPICS_CAS_INTF_ADDR_LIST": self.interface,
            "EPICS_CAS_SERVER_PORT": str(self.ca_port),
            "EPICS_PVAS_INTF_ADDR_LIST": self.interface,
            "EPICS_PVAS_SERVER_PORT": str(self.pva_port),
            "EPICS_PVAS_BROADCAST_PORT": str(self.pva_broadcast_port),
        }
        if self.interface.startswith("127."):
            known |= {"EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO"}
            known |= {"EPICS_CAS_BEACON_ADDR_LIST": self.interface}
            known |= {"EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO"}
            known |= {"EPICS_PVAS_BEACON_ADDR_LIST": self.interface}
        os.environ.update(known)

    @property
    def image_period_s(self) -> float:
        """Least time between two images."""
        return 0.0 if math.isclose(self.image_hz, 0.0) else 1.0 / self.image_hz


def _is_free(interface: str, port: int) -> None:
    """Refuse a taken port: EPICS would take another one, where nobody looks for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((interface, port))
        except OSError as error:
            raise SinkError(
                f"port {port} of {interface} cannot be served: {error.strerror}; stop what uses "
                "it or choose another"
            ) from error
