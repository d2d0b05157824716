"""Speed of the serving simulator: requests per CPU second on a chat trace, with a prefix cache and preemption, and of a cluster.

python benchmarks/bench_serving.py [TRACE]        an Azure or Vidur chat trace; made-up lengths of the same mean without one
    --scale 0.01                                  a hundredth of the requests
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, ServeWorkload
from roofplan.scenarios.serving_parts import Speculation
from roofplan.sim import arrivals
from roofplan.sim.serve_result import ServeResult
from roofplan.sim.serving import simulate_serving
from roofplan.sim.traces import read_trace

CHAT = EnginePlan(token_budget=512, max_num_seqs=128)


def chat(n: int, rate_per_s: float, trace: Path | None) -> ServeWorkload:
    """``n`` chat requests arriving as Poisson."""
    if trace is not None:
        work = arrivals.first_requests(read_trace(trace), n)
        return dataclasses.replace(work, arrival_s=arrivals.poisson(n, rate_per_s))
    prompt = arrivals.lengths(n, 1155, 0.9, stream=arrivals.PROMPT_STREAM, largest=14_000)
    output = arrivals.lengths(n, 211, 0.8, stream=arrivals.OUTPUT_STREAM, largest=1000)
    return ServeWorkload(arrival_s=arrivals.poisson(n, rate_per_s), prompt_tokens=prompt, output_tokens=output)


def shared_prefixes(work: ServeWorkload, n_prefixes: int) -> ServeWorkload:
    """The same requests whose prompts begin with one of ``n_prefixes`` system prompts of two 128-token blocks."""
    n = len(work)
    chosen = np.random.default_rng(0).integers(0, n_prefixes, n)
    ids = np.stack([2 * chosen, 2 * chosen + 1], axis=1).ravel()
    return dataclasses.replace(work, block_starts=np.arange(0, 2 * n + 1, 2), block_ids=ids, block_id_tokens=128)


def timed(label: str, n: int, run: Callable[[], ServeResult]) -> None:
    """Best of three runs, in requests per CPU second."""
    best, result = float("inf"), None
    for _ in range(3 if n <= 100_000 else 1):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    assert result is not None
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{label:44} {n / best:12,.0f} requests/CPU-s  {result.n_steps:11,} steps  {result.n_preempted:6,} preempted  peak {mib:,.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    asked = parser.parse_args()
    trace, few, many, most = asked.trace, *(max(1, round(n * asked.scale)) for n in (10_000, 100_000, 1_000_000))
    model = registry.model("llama3-8b")
    one = registry.cluster("a100-80gb-sxm", 1)
    work = chat(few, 6.45, trace)
    timed(f"one A100, {few:,} requests", few, lambda: simulate_serving(model, one, CHAT, work))
    tight = dataclasses.replace(CHAT, prefix_cache=True, kv_blocks=4000)
    prefixed = shared_prefixes(work, 50)
    timed("the same, prefix cache and preemption", few, lambda: simulate_serving(model, one, tight, prefixed))
    guesses = Speculation(draft_tokens=3, accept_frac=0.7, accept_spread_frac=0.1)
    for label, controller in (("three guesses a step", "fixed"), ("guesses as goodput asks", "goodput")):
        speculating = dataclasses.replace(CHAT, speculation=dataclasses.replace(guesses, controller=controller))
        timed(f"the same, {label}", few, lambda plan=speculating: simulate_serving(model, one, plan, work))
    layered = dataclasses.replace(CHAT, policy="layered")
    timed("the same, layered prefill", few, lambda: simulate_serving(model, one, layered, work))
    for n in (many, most):
        more = chat(n, 6.45, trace)
        timed(f"one A100, {n:,} requests", n, lambda more=more: simulate_serving(model, one, CHAT, more))
    fleet = registry.cluster("a100-80gb-sxm", 64)
    wide = dataclasses.replace(CHAT, token_budget=2048)
    busy = chat(most, 300.0, trace)
    timed(f"64 replicas, 40 prefill + 24 decode, {most:,}", most, lambda: simulate_serving(model, fleet, wide, busy, n_prefill=40))


if __name__ == "__main__":
    main()
