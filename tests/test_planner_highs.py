"""HiGHS solves without writing to standard output, whatever it says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pulp
import pytest
from roofplan.planner.highs import Highs, silent_stdout


def knapsack() -> pulp.LpProblem:
    """``max 3a + 2b`` with ``2a + b <= 4`` and at most 3 of each."""
    program = pulp.LpProblem("knapsack", pulp.LpMaximize)
    a, b = (program.add_variable(name, 0, 3, pulp.LpInteger) for name in "ab")
    program += 3 * a + 2 * b
    program += 2 * a + b <= 4
    return program


def test_it_solves_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    program = knapsack()
    program.solve(Highs(10.0))
    best = max(3 * a + 2 * b for a in range(4) for b in range(4) if 2 * a + b <= 4)
    assert program.sol_status == pulp.LpSolutionOptimal
    assert round(program.objective.value()) == best
    assert capfd.readouterr().out == ""


def test_stdout_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before ")
    with silent_stdout():
        os.write(1, b"within ")
    os.write(1, b"after")
    assert capfd.readouterr().out == "before after"


def test_a_closed_stdout_is_no_error() -> None:
    code = "from roofplan.planner.highs import Highs; from test_planner_highs import knapsack; knapsack().solve(Highs(10.0))"
    here = os.path.dirname(__file__)
    done = subprocess.run(["bash", "-c", f'exec "$0" -c "{code}" >&-', sys.executable], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
