"""Runs independent fits in several processes, each with one thread of linear algebra, in an order that does not change the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..scenarios.errors import BadInput


def in_parallel(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int, done: Callable[[Any], None]) -> list[Any]:
    """``[work(*task) for task in tasks]`` over ``jobs`` processes; ``done(task)`` is called as results come in, in the tasks' order."""
    out = []
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            out.append(work(*task))
            done(task)
        return out
    try:
        from joblib import Parallel, delayed, parallel_config
    except ImportError:
        raise BadInput("fitting in parallel needs joblib; install it with: pip install 'roofplan[calibrate]', or use --jobs 1") from None
    with parallel_config(backend="loky", inner_max_num_threads=1):
        results = Parallel(n_jobs=min(jobs, len(tasks)), return_as="generator")(delayed(work)(*task) for task in tasks)
        for task, result in zip(tasks, results, strict=True):
            out.append(result)
            done(task)
    return out
