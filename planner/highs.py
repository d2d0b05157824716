"""Runs a program by HiGHS through PuLP without a word on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pulp


class Highs(pulp.HiGHS):  # type: ignore[misc]
    """One thread, gap 0, no log.

    HiGHS 1.16 prints its name when it is made, before any option can forbid it: what `--json -` writes would not be JSON.
    """

    def __init__(self, time_limit_s: float) -> None:
        super().__init__(msg=False, gapRel=0.0, timeLimit=time_limit_s, threads=1)

    def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802 (PuLP's name)
        with silent_stdout():
            super().createAndConfigureSolver(lp)


@contextmanager
def silent_stdout() -> Iterator[None]:
    """File descriptor 1 leads nowhere meanwhile; without one (a closed stdout) nothing is done."""
    with suppress(OSError, ValueError, AttributeError):  # a replaced or closed sys.stdout
        sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
