"""SimPy's clock on whole picoseconds, with a leaner kind of event: a plain call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any, cast

import simpy
from simpy.events import NORMAL

NEVER = 1 << 80


class Clock(simpy.Environment):
    """An environment whose queue also takes calls, which cost less than a Timeout with a callback; both keep one order.

    Of two that are due at one time, the one that was set first comes first. Delays of SimPy's own events must be whole too. ``calls`` is
    the queue, a heap of (time, priority, order, event or call).
    """

    def __init__(self) -> None:
        super().__init__(initial_time=0)
        self.calls = cast(list[tuple[Any, int, int, Any]], self._queue)

    def call(self, at: int, action: Callable[..., None], *values: Any) -> None:
        """Call ``action(*values)`` at a time (ps) that is not past."""
        heappush(self.calls, (at, NORMAL, next(self._eid), partial(action, *values)))

    def step(self) -> None:
        """Play the next event."""
        queue = self.calls
        if queue and type(queue[0][3]) is partial:
            self._now, _, _, call = heappop(queue)
            call()
        else:
            super().step()
