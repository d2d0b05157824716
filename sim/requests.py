"""The requests of a run as columns: what arrived, how far each got, and when its first and last token left."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import as_integers
from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from ..scenarios.serving import ServeWorkload

MAX_ARRIVAL_S = 8e6
"""92 days: 64-bit picoseconds end after 106 days, and what waits must still be served."""


class Requests:
    """Columns indexed by request id (``array`` of 64-bit ints, 8 bytes a value), times in ps, -1 for not yet.

    ``prompt`` and ``output`` are what is still to compute: a preempted request's answer so far moves into its prompt. ``cached`` are the
    prompt tokens whose KV needs no computing when it is admitted. ``end`` is the decode step after which a running one is done.
    """

    __slots__ = ("arrival", "cached", "end", "finish", "first", "lost", "output", "priority", "prompt", "ready", "rejected", "swapped")

    def __init__(self, work: ServeWorkload, delay_s: float = 0.0) -> None:
        n = len(work)
        self.arrival = _ticks(work.arrival_s)
        self.ready = as_integers(np.frombuffer(self.arrival, np.int64) + round(delay_s * PS)) if delay_s else self.arrival[:]
        self.prompt, self.output = as_integers(work.prompt_tokens), as_integers(work.output_tokens)
        self.priority = as_integers(work.priority) if len(work.priority) else _filled(n, 0)
        self.first, self.finish, self.end = (_filled(n, -1) for _ in range(3))
        self.cached = _filled(n, 0)
        self.rejected: list[int] = []
        self.lost: dict[int, int] = {}
        self.swapped: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.prompt)


def _ticks(seconds: NDArray[np.float64]) -> array[int]:
    if seconds[-1] > MAX_ARRIVAL_S:
        raise BadInput(
            f"the last request arrives after {seconds[-1]:,.0f} s, over the {MAX_ARRIVAL_S:,.0f} s (92 days) of a run; "
            "take fewer requests, or a higher rate"
        )
    return as_integers(seconds * PS)


def _filled(n: int, value: int) -> array[int]:
    return array("q", (value,)) * n
