"""How much of a message hides behind compute, and what hiding it costs."""

from __future__ import annotations

import numpy as np

from .op import Floats

SLOWDOWN = 0.1256
"""Extra time per second of compute and communication running together: the two share SMs and memory.
Source: Galvatron's measured overlap coefficient 1.1256 on A100 (hardware_configs of its repository)."""


def exposed(comm_s: Floats, compute_s: Floats, hidden_frac: Floats) -> Floats:
    """Seconds a message adds to a stretch of compute that can hide up to ``hidden_frac`` of its own length.

    ``comm - h + SLOWDOWN * h`` with ``h = min(comm, hidden_frac * compute)``; never negative.
    """
    hidden = np.minimum(comm_s, hidden_frac * np.asarray(compute_s))
    return comm_s - (1 - SLOWDOWN) * hidden
