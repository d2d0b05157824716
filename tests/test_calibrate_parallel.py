"""Running fits in several processes: the order of the tasks, whatever the number of processes."""

from __future__ import annotations

import math

from roofplan.calibrate.parallel import in_parallel


def test_results_and_reports_keep_the_order_of_the_tasks() -> None:
    tasks = [(n, 2) for n in range(6)]
    for jobs in (1, 2):
        seen: list[object] = []
        assert in_parallel(math.pow, tasks, jobs, seen.append) == [float(n * n) for n in range(6)]
        assert seen == tasks
