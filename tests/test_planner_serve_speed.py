"""``plan --task serve`` starts cold and answers in seconds, in little memory, without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

ASKED = "--task serve --model llama3.1-8b --gpus 8 --gpu h200 --isl 4000 --osl 500 --ttft 2s --tpot 30ms --json -"
PROGRAM = """
import resource, sys
from roofplan.planner.cli import plan
code = plan.main(args=sys.argv[1:], standalone_mode=False)
used = resource.getrusage(resource.RUSAGE_SELF)
peak_kb = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
heavy = [m for m in ("pandas", "scipy", "plotly", "pyarrow", "torch") if m in sys.modules]
print(code, used.ru_utime + used.ru_stime, peak_kb, heavy, file=sys.stderr)
"""


def cold() -> tuple[str, str, str, str, str]:
    """Exit code, CPU seconds, peak KiB, heavy modules and the answer of the plan in a process of its own.

    Peak memory is read from the kernel: `ru_maxrss` would count that of the test runner it was forked from.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM, *ASKED.split()], capture_output=True, text=True, check=True)
    code, cpu_s, rss_kb, heavy = done.stderr.split(maxsplit=3)
    return code, cpu_s, rss_kb, heavy, done.stdout


@pytest.mark.bench
def test_a_cold_plan_takes_five_seconds_at_most():
    started = time.perf_counter()
    cpu_s = float(cold()[1])
    print(f"\n{time.perf_counter() - started:.2f} s wall, {cpu_s:.2f} s CPU")
    assert cpu_s < 5


def test_a_cold_plan_takes_little_memory():
    code, _, rss_kb, heavy, shown = cold()
    assert code == "0"
    assert int(rss_kb) < 400_000
    assert heavy.strip() == "[]"
    answer = json.loads(shown)
    assert answer["solver"]["gap_frac"] < 0.05
    assert answer["plans"][0]["goodput_per_s"] > 20
