"""Frames for analyses without a daemon around them."""

import numpy as np

from quietbeam import Observation


def observation(clean, sd=None, *, measured=None, index=0, time_ns=None, raw=None):
    """What an analysis sees; ``sd`` may be a number, ``measured`` is ``clean`` where not given."""
    clean = np.asarray(clean, np.float32)
    sd = np.zeros_like(clean) + np.float32(1 if sd is None else sd)
    measured = clean if measured is None else np.asarray(measured, np.float32)
    return Observation(
        index=index,
        time_ns=index * 10**9 if time_ns is None else time_ns,
        clean=clean,
        sd=sd,
        corrected=measured,
        valid=np.isfinite(measured),
        raw=measured if raw is None else raw,
    )


def collected(rows):
    """Lists by name, of what was measured on several frames."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row[name] for row in rows if name in row] for name in names}
