"""Runs a denoiser over frames call by call, as an engine does, and what tests measure on it."""

from __future__ import annotations

import numpy as np
import torch


def stream(denoiser, frames):
    """(mean, variance) of every call for frames (t, h, w)."""
    state = denoiser.initial_state(1, *frames.shape[1:])
    out = []
    with torch.no_grad():
        for frame in np.asarray(frames, np.float32):
            mean, variance, state = denoiser(torch.from_numpy(frame)[None, None], state)
            out.append((mean[0, 0].numpy(), variance[0, 0].numpy()))
    return np.array([m for m, _ in out]), np.array([v for _, v in out])


def noise(*shape, seed=0):
    """White, of unit variance."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mse(a, b):
    """Mean squared difference."""
    return float(np.mean((a - b) ** 2))
