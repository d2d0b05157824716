"""The requests of a run as columns: what arrived, how far each got, and when its first and last token left."""

from __future__ import annotations

import numpy as np

from ..costmodels.step_times import PS
from ..scenarios.serving import ServeWorkload


class Requests:
    """Lists indexed by request id, times in ps, -1 for not yet. ``prompt`` and ``output`` are what is still to compute: a preempted
    request's answer so far moves into its prompt. ``cached`` are the prompt tokens whose KV needs no computing when it is admitted.
    """

    __slots__ = ("arrival", "cached", "end", "finish", "first", "lost", "output", "priority", "prompt", "ready", "rejected", "swapped")

    def __init__(self, work: ServeWorkload, delay_s: float = 0.0) -> None:
        n = len(work)
        ticks = np.rint(work.arrival_s * PS).astype(np.int64)
        self.arrival: list[int] = ticks.tolist()
        self.ready: list[int] = (ticks + round(delay_s * PS)).tolist()
        self.prompt: list[int] = work.prompt_tokens.tolist()
        self.output: list[int] = work.output_tokens.tolist()
        self.priority: list[int] = work.priority.tolist() or [0] * n
        self.first = [-1] * n
        self.finish = [-1] * n
        self.end = [-1] * n
        self.cached = [0] * n
        self.rejected: list[int] = []
        self.lost: dict[int, int] = {}
        self.swapped: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.prompt)
