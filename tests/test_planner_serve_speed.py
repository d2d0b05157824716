"""``plan --task serve`` starts cold and answers in seconds, in little memory, without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys

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


def test_a_cold_plan_takes_seconds_and_little_memory():
    """The bar is 5 s on a quiet machine; CPU time of the process is what a busy one can still tell.

    Its peak memory is read from the kernel: `ru_maxrss` would count that of the test runner it was forked from.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM, *ASKED.split()], capture_output=True, text=True, check=True)
    code, cpu_s, rss_kb, heavy = done.stderr.split(maxsplit=3)
    assert code == "0"
    assert float(cpu_s) < 5
    assert int(rss_kb) < 400_000
    assert heavy.strip() == "[]"
    answer = json.loads(done.stdout)
    assert answer["solver"]["gap_frac"] < 0.05
    assert answer["plans"][0]["goodput_per_s"] > 20
