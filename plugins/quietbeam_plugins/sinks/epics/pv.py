"""What one process variable is; records, image attributes, screens and documentation follow it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "int", "bool", "enum", "string", "array", "image", "struct"]
Access = Literal["r", "rw", "x"]
Group = Literal[
    "Processing",
    "Frames",
    "Model",
    "Daemon",
    "Run",
    "Regions",
    "Metrics",
    "Snap",
    "Capture",
    "Images",
]
WriteGroup = Literal["", "QB_OPERATOR", "QB_EXPERT"]
Severity = Literal["", "MINOR", "MAJOR", "INVALID"]

NAME_CHARS = 60  # prefix and name together, so that record names fit everywhere
DESC_CHARS = 40  # of an EPICS record


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Beyond ``low`` and ``high`` the alarm is MINOR, beyond the outer ones MAJOR."""

    lolo: float | None = None
    low: float | None = None
    high: float | None = None
    hihi: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pv:
    """One process variable, or a setting with its readback.

    Attributes:
        name: Without prefix.  Of access ``r``: the whole name; ``rw``: the
            setting, whose readback is ``<name>_RBV`` where ``rbv`` says so;
            ``x``: write 1 to have something done.
        kind: Of value.
        description: At most 40 characters.
        group: Of the screens and tables.
        unit: As EPICS shows it (EGU).
        precision: Digits after the point.
        choices: Of an enumeration or a two-state value, in order.
        severities: Alarm of each choice.
        drive: Lowest and highest value that may be written.
        alarm: Limits of the value.
        length: Of an array, or of a text with its final zero.
        dtype: Of an array's or image's elements.
        write: Group of the access security file that may write it.
        autosave: Restored after a restart.
        initial: Before anything is known.
        source: Where the value comes from: ``status:`` and a path into the
            daemon's status, ``frame:`` and a field of the newest result,
            ``metric:`` and its name, ``view:`` and a name of the view's own,
            ``fixed:`` and the value.
        attribute: Its name among the attributes of images.
        rbv: An ``rw`` value has a readback of its own.
        fresh: It becomes INVALID when no frames come or the daemon is gone.
    """

    name: str
    kind: Kind
    description: str
    group: Group
    access: Access = "r"
    unit: str = ""
    precision: int = 3
    choices: tuple[str, ...] = ()
    severities: tuple[Severity, ...] = ()
    drive: tuple[float, float] | None = None
    alarm: Limits = Limits()
    length: int = 256
    dtype: str = "float32"
    write: WriteGroup = ""
    autosave: bool = False
    initial: float | str = 0
    source: str = ""
    attribute: str = ""
    rbv: bool = True
    fresh: bool = False

    @property
    def readback(self) -> str:
        """Name of the record whose value tells how it is; "" for a command."""
        if self.access == "x":
            return ""
        return self.name + "_RBV" if self.access == "rw" and self.rbv else self.name

    @property
    def names(self) -> tuple[str, ...]:
        """Every record or channel it becomes."""
        return tuple(dict.fromkeys(n for n in (self.name, self.readback) if n))

    @property
    def is_record(self) -> bool:
        """It is served as a record, over Channel Access and PV Access; else PV Access alone."""
        return self.kind not in {"image", "struct"}

    @property
    def snake(self) -> str:
        """Name in the PVI tree: ``Snap:NumFrames`` is ``snap_num_frames``."""
        plain = self.name.removesuffix("_RBV").replace(":", "_")
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)
        return re.sub(r"_+", "_", words).lower()


def camel(metric: str) -> str:
    """Give the PV name of a metric: ``quality.psnr_raw_db`` is ``QualityPsnrRawDb``."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", metric))


def check(table: tuple[Pv, ...], prefix: str) -> Iterator[str]:
    """Give what would not work in EPICS, in words."""
    seen: dict[str, str] = {}
    for pv in table:
        for name in pv.names:
            if len(prefix + name) > NAME_CHARS:
                yield f"{prefix + name} has {len(prefix + name)} characters, at most {NAME_CHARS}"
            if name in seen:
                yield f"{prefix + name} would be both {seen[name]} and {pv.description!r}"
            seen[name] = repr(pv.description)
