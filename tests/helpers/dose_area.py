"""How many frames the area of a phase needs: raw frames averaged, against one clean frame.

A program: ``PYTHONPATH=tests python tests/helpers/dose_area.py`` prints the errors.  The truth
judges: rms over places and times of the difference from the area in the true frames that were
averaged, so that bias counts.  ``quiet`` is fitted to the whole recording, and not trained.
"""

from __future__ import annotations

import sys

import numpy as np

import quietbeam
from quietbeam.testing.phantoms import Phantom

FRAMES, SIDE, THRESHOLD = 260, 96, 40.0  # counts: halfway between the two phases
COUNTS = (1, 2, 4, 8, 16, 32, 64)


def errors(frames: np.ndarray, truth: np.ndarray, region: int, count: int) -> float:
    """Give the rms error of the area fraction of the mean of ``count`` frames."""
    places = range(4, SIDE - region - 4, max(4, region // 2))
    found = []
    for first in range(60, FRAMES - 70, 13):
        mean = frames[first : first + count].mean(0) > THRESHOLD
        true = (truth[first : first + count] > THRESHOLD).mean(0)
        for y in places:
            for x in places:
                at = (slice(y, y + region), slice(x, x + region))
                found.append(mean[at].mean() - true[at].mean())
    return float(np.sqrt(np.mean(np.square(found))))


def main() -> None:
    cell = Phantom((SIDE, SIDE), FRAMES, 0)
    raw = np.stack([cell.frame(i) for i in range(FRAMES)])
    truth = np.stack([cell.truth(i) for i in range(FRAMES)])
    clean = quietbeam.denoise(raw, "quiet", steps=1, fallback=()).clean
    for region in (8, 16, 24):
        for count in COUNTS:
            pair = [errors(frames, truth, region, count) for frames in (raw, clean)]
            sys.stdout.write(
                f"{region} px, {count} frames: raw {pair[0]:.4f} clean {pair[1]:.4f}\n"
            )


if __name__ == "__main__":
    main()
