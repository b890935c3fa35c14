"""Finds plugins by name, through entry points, without importing what is not used."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from quietbeam.core.errors import ConfigError
from quietbeam.core.plugin import Plugin

P = TypeVar("P", bound=Plugin)

KINDS = ("sources", "corrections", "denoisers", "analyses", "sinks", "inversions")


def available(kind: str) -> dict[str, EntryPoint]:
    """Plugins installed for ``kind`` (one of ``KINDS``), by name, not imported."""
    return {point.name: point for point in sorted(entry_points(group=f"quietbeam.{kind}"))}


def find(kind: str, name: str, base: type[P]) -> type[P]:
    """Import the plugin ``name`` of ``kind``.

    Raises:
        ConfigError: No such plugin, it needs an extra that is missing, or it
            is not a ``base``.
    """
    points = available(kind)
    if name not in points:
        raise ConfigError(
            f"there is no {kind} plugin {name!r}; installed: {', '.join(points) or 'none'}"
        )
    try:
        cls: object = points[name].load()
    except ImportError as error:
        extra = getattr(error, "name", None) or error
        raise ConfigError(
            f"{kind} plugin {name!r} needs {extra!s}, which is not installed; "
            "see the extras in the README"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{points[name].value} is not a {base.__name__}")
    return cls
