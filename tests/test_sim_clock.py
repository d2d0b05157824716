"""The clock: plain calls and SimPy's own events in one order, on whole picoseconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import simpy
from roofplan.sim.clock import Clock


def test_calls_and_events_of_one_time_happen_in_the_order_in_which_they_were_set():
    clock, heard = Clock(), []

    def process() -> Iterator[Any]:
        yield clock.timeout(5)
        heard.append(("process", clock.now))

    clock.call(5, heard.append, ("set first", 5))
    clock.process(process())
    clock.call(7, heard.append, ("last", 7))
    clock.call(2, lambda: clock.call(5, heard.append, ("set at 2", 5)))
    times = []
    while clock.calls:
        times.append(clock.calls[0][0])
        clock.step()
    assert heard == [("set first", 5), ("process", 5), ("set at 2", 5), ("last", 7)]
    assert times == sorted(times)
    assert clock.now == 7


def test_a_clock_without_events_refuses_to_step():
    with pytest.raises(simpy.core.EmptySchedule):
        Clock().step()


def test_times_stay_whole_where_floats_would_not():
    clock, heard = Clock(), []
    far = 7 * 10**18 + 1  # 81 days; a float there counts by 1024 ps
    clock.call(far, lambda: heard.append(clock.now))
    clock.step()
    assert heard == [far]
