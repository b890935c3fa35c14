"""Denoisers of others to compare with: scikit-image's, frame by frame or on a running mean.

Optional (the extra ``evaluate``); settings are tuned with the truth, as those
of the filters in ``baselines`` are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quietbeam.offline.baselines import Baseline, running_mean, settings_grid

Video = NDArray[np.float32]

_NEEDS = {"skimage": "scikit-image", "pywt": "PyWavelets"}  # module -> package


def nlm(video: Video, strength: float = 0.8, frames: int = 1) -> Video:
    """Non-local means of every frame (Buades, Coll & Morel, CVPR 2005).

    Args:
        video: (t, h, w) float32, finite.
        strength: Cut-off in standard deviations of the noise.
        frames: Running mean that is taken first.
    """
    from skimage.restoration import denoise_nl_means

    return _framewise(
        video,
        frames,
        lambda image, sigma: denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=strength * sigma, sigma=sigma
        ),
    )


def wavelet(video: Video, strength: float = 1.0, frames: int = 1) -> Video:
    """BayesShrink of every frame (Chang, Yu & Vetterli, IEEE Trans. Image Process. 9, 1532 (2000)).

    Arguments as for ``nlm``; ``strength`` multiplies the noise it is told of.
    """
    from skimage.restoration import denoise_wavelet

    return _framewise(
        video,
        frames,
        lambda image, sigma: denoise_wavelet(
            image, sigma=strength * sigma, wavelet="sym4", wavelet_levels=_levels(image)
        ),
    )


def total_variation(video: Video, strength: float = 1.0, frames: int = 1) -> Video:
    """Rudin-Osher-Fatemi of every frame (Chambolle, J. Math. Imaging Vis. 20, 89 (2004)).

    Arguments as for ``nlm``; ``strength`` times the noise is the weight.
    """
    from skimage.restoration import denoise_tv_chambolle

    return _framewise(
        video, frames, lambda image, sigma: denoise_tv_chambolle(image, weight=strength * sigma)
    )


def _levels(image: NDArray[np.float64]) -> int:
    """As many as leave a few pixels of the coarsest, without the border being most of it."""
    return max(1, int(np.log2(min(image.shape) / 8)))


_STRENGTHS = (0.3, 0.5, 0.8, 1.2, 1.8)
PEERS: Mapping[str, Baseline] = {
    name: Baseline(one, settings_grid(frames=(1, 5, 9), strength=_STRENGTHS), causal=False)
    for name, one in (("nlm", nlm), ("wavelet", wavelet), ("total variation", total_variation))
}
"""By name; a mean of one frame leaves each as it is."""


def for_single_images(peer: Baseline) -> Baseline:
    """Give ``peer`` without the settings that take a mean over frames."""
    alone = tuple(one for one in peer.settings if one["frames"] == 1)
    return Baseline(peer.filter, alone, causal=True)


def missing_peers() -> dict[str, str]:
    """Peers that cannot run here, with the package that each lacks."""
    lacking = {module for module in _NEEDS if find_spec(module) is None}
    if "skimage" in lacking:
        return dict.fromkeys(PEERS, _NEEDS["skimage"])
    return {"wavelet": _NEEDS["pywt"]} if lacking else {}


def _framewise(
    video: Video, frames: int, filtered: Callable[[NDArray[np.float64], float], Any]
) -> Video:
    """Filter every frame of a running mean, on a scale of 0 to 1 that the peers expect."""
    mean = running_mean(video, frames) if frames > 1 else video
    low, span = float(mean.min()), float(np.ptp(mean)) or 1.0
    out = np.empty_like(video)
    for i, frame in enumerate(mean):
        unit = (np.asarray(frame, np.float64) - low) / span
        out[i] = low + span * np.asarray(filtered(unit, _noise(unit)))
    return out


def _noise(image: NDArray[np.float64]) -> float:
    """S.d. of the noise from the finest structure: the second difference along both axes.

    Edges count as noise; the tuned strength makes up for it.
    """
    finest = np.diff(np.diff(image, n=2, axis=0), n=2, axis=1)
    return max(float(np.sqrt(np.mean(finest**2))) / 6, 1e-6)
