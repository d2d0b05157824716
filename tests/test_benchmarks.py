"""Speed on this machine, run by `make bench`: one row of SPECS adds a benchmark; the limits are generous against a busy machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from roofplan.costmodels.memory import train_memory
from roofplan.costmodels.params import count_params
from roofplan.costmodels.roofline import Roofline
from roofplan.costmodels.system import make_system
from roofplan.costmodels.training import train_step
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.load import load, names
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload
from roofplan.sim.schedule import order
from roofplan.sim.training import StageTimes, replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """``make`` prepares and returns the call to time; ``n`` is how many things one call does; ``limit_s`` bounds each."""

    name: str
    make: Callable[[], Callable[[], object]]
    n: int
    limit_s: float


def _cold_look_up() -> Callable[[], object]:
    code = "from roofplan.scenarios import registry; registry.model('meta-llama/Llama-3.1-70B'); registry.cluster('H100', 8)"
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def _price() -> Callable[[], object]:
    model, system = registry.model("llama3-8b"), make_system(registry.cluster("h100-sxm", 64), "megatron-core")
    n = 4096
    tp = np.array([1, 2, 4, 8])[np.arange(n) % 4]
    pp = np.array([1, 2, 4])[np.arange(n) // 4 % 3]
    plan = ParallelPlan(tp=tp, pp=pp, dp=64 // tp // pp, micro_batch=1 + np.arange(n) // 12 % 4, grad_accum=8, framework="megatron-core")
    work = TrainWorkload(seq_tokens=8192, global_batch=plan.dp * plan.micro_batch * plan.grad_accum)
    return lambda: (train_step(model, plan, work, system), train_memory(model, plan, work, system))


def _one_plan() -> Callable[[], object]:
    model, system = registry.model("deepseek-v3"), make_system(registry.cluster("h100-sxm", 512), "megatron-core")
    plan = ParallelPlan(dp=64, pp=8, ep=64, grad_accum=16, framework="megatron-core")
    work = TrainWorkload(seq_tokens=4096, global_batch=1024)
    return lambda: (train_step(model, plan, work, system), train_memory(model, plan, work, system))


def _products() -> Callable[[], object]:
    gpu = registry.accelerator("h100-sxm")
    roofline = Roofline(gpu, load_calibration(gpu))
    m, n, k = np.random.default_rng(2).integers(1, 65536, (3, 400_000)).astype(float)
    return lambda: roofline.gemm_s(m, n, k)


def _replay() -> Callable[[], object]:
    schedule, times = order("1f1b", 512, 1, 1000), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    return lambda: replay(schedule, times)


def _all_models() -> Callable[[], object]:
    files = list(names("models").values())
    return lambda: [load(ModelSpec, path) for path in files]


SPECS = [
    Spec(name="start Python, find a model and a cluster", make=_cold_look_up, n=1, limit_s=1.5),
    Spec(name="read one model file", make=_all_models, n=len(names("models")), limit_s=2e-3),
    Spec(name="count parameters of one model", make=lambda: lambda: count_params(registry.model("deepseek-v3")), n=1, limit_s=1e-3),
    Spec(name="price one candidate of a batch: time and memory", make=_price, n=4096, limit_s=50e-6),
    Spec(name="price one plan by itself", make=_one_plan, n=1, limit_s=30e-3),
    Spec(name="price one product of an array", make=_products, n=400_000, limit_s=0.2e-6),
    Spec(name="replay 512 stages of 1,000 micro-batches", make=_replay, n=1, limit_s=2.0),
]


@pytest.mark.parametrize("trace", [False, True], ids=["made up", "trace"])
def test_the_serving_benchmark_runs(trace: bool, tmp_path: Path) -> None:
    """A five-hundredth of its requests: every line is there and every run served something."""
    path = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:17:0{i}.0,{100 + i},{10 + i}\n" for i in range(8)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    script = Path(__file__).parent.parent / "benchmarks" / "bench_serving.py"
    done = subprocess.run(
        [sys.executable, str(script), *([str(path)] if trace else []), "--scale", "0.002"], capture_output=True, text=True, check=True
    )
    rates = [float(line.split("requests/CPU-s")[0].split()[-1].replace(",", "")) for line in done.stdout.splitlines()]
    assert len(rates) == 8
    assert min(rates) > 0


@pytest.mark.bench
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_speed(spec: Spec, capsys: pytest.CaptureFixture[str]) -> None:
    call = spec.make()
    call()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) / spec.n)
    with capsys.disabled():
        print(f"\n{spec.name:50s} median {statistics.median(times) * 1e6:10.1f} us, best {min(times) * 1e6:10.1f} us", end="")
    assert min(times) < spec.limit_s
