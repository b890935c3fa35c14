"""The checkpoints of one denoiser in one directory, numbered by promotion.

``quiet_000007.safetensors`` is what was promoted as version 7;
``quiet_training.safetensors`` is where training stands, for a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from quietbeam.core.engine import Weights
from quietbeam.core.errors import QuietbeamError
from quietbeam.model import checkpoint

log = structlog.get_logger()

KEEP = 10
_MEAN = "mean."


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """Where training stood: weights, their exponential mean, steps done."""

    weights: dict[str, NDArray[np.float32]]
    mean: dict[str, NDArray[np.float32]]
    steps: int


class Versions:
    """Reads and writes checkpoints; never deletes the one in use.

    Args:
        directory: Made if missing.
        denoiser: Name in the configuration; starts every file name.
    """

    def __init__(self, directory: Path, denoiser: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._denoiser = directory, denoiser
        self._highest = max(self.all(), default=0)

    def all(self) -> list[int]:
        """Promoted versions on disk, oldest first."""
        form = re.compile(re.escape(self._denoiser) + r"_(\d{6,})\.safetensors")
        found = (form.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def seen(self, version: int) -> None:
        """A version that exists elsewhere: numbers go on behind it."""
        self._highest = max(self._highest, version)

    @property
    def next(self) -> int:
        """Number of the next promotion; never given twice."""
        return self._highest + 1

    def path(self, version: int) -> Path:
        """File of a promoted version."""
        return self._directory / f"{self._denoiser}_{version:06d}.safetensors"

    def promote(self, weights: Weights, metadata: Mapping[str, str], *, in_use: int) -> Path:
        """Write the next version; drop the oldest beyond ten, but not ``in_use``."""
        version = self.next
        checkpoint.save(self.path(version), dict(weights), {**metadata, "version": str(version)})
        self._highest = version
        for old in self.all()[:-KEEP]:
            if old != in_use:
                self.path(old).unlink(missing_ok=True)
        return self.path(version)

    def load(self, version: int) -> dict[str, NDArray[np.float32]]:
        """Weights of a promoted version.

        Raises:
            QuietbeamError: There is no such file, or it is damaged.
        """
        return dict(checkpoint.load(self.path(version))[0])

    def keep_training(self, saved: Saved, metadata: Mapping[str, str]) -> Path:
        """Write where training stands, in place of the last time."""
        path = self._training_path()
        mean = {_MEAN + name: array for name, array in saved.mean.items()}
        known = {"steps": str(saved.steps), "version": str(self._highest)}
        checkpoint.save(path, {**saved.weights, **mean}, {**metadata, **known})
        return path

    def drop_training(self) -> None:
        """Forget where training stood."""
        self._training_path().unlink(missing_ok=True)

    def resume(self) -> Iterator[Saved]:
        """What training can go on from, best first; damaged files are passed over, and named."""
        for path in [self._training_path(), *map(self.path, reversed(self.all()))]:
            if not path.exists():
                continue
            try:
                arrays, metadata = checkpoint.load(path)
                yield self._read(arrays, metadata)
            except (QuietbeamError, ValueError) as error:
                log.warning("checkpoint_refused", file=path.name, reason=str(error))

    def _read(self, arrays: Weights, metadata: Mapping[str, str]) -> Saved:
        self.seen(int(metadata.get("version", "0")))
        mean = {k.removeprefix(_MEAN): v for k, v in arrays.items() if k.startswith(_MEAN)}
        weights = {k: v for k, v in arrays.items() if not k.startswith(_MEAN)}
        return Saved(weights, mean or weights, int(metadata.get("steps", "0")))

    def _training_path(self) -> Path:
        return self._directory / f"{self._denoiser}_training.safetensors"
