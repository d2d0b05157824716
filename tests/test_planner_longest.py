"""The longest sequence against a scan of all of them, on a made-up memory curve with steps in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from roofplan.planner.engines import DEEPSPEED, MEGATRON
from roofplan.planner.longest import GRANULE_TOKENS, MAX_TOKENS, legal_step, longest
from roofplan.planner.prune import Prices, pick
from roofplan.planner.space import Asked, Rejections, candidates
from roofplan.scenarios import registry
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload

GIB = 2.0**30


class Memory:
    """Bytes that grow with the local sequence, by tiles of 4,096 tokens, and shrink with recomputation."""

    def __init__(self, plan: ParallelPlan, work: TrainWorkload, flat: bool) -> None:
        local = np.asarray(work.seq_tokens, float) / plan.cp / plan.tp
        per_token = 0.0 if flat else {"none": 1.3e6, "selective": 9e5, "full": 1e5, "remat": 2e5}[plan.recompute]
        self.total_bytes = 10 * GIB + per_token * local + 2e8 * np.ceil(local / 4096)
        self.limit_bytes = 80 * GIB * np.ones_like(self.total_bytes) * (1e9 if flat else 1)
        self.host_bytes = np.asarray(plan.offload_activations) * local * plan.tp * 3e5
        self.host_limit_bytes = 1e11 * (1e9 if flat else 1)


def prices(flat: bool = False) -> Prices:
    def memory(plan: ParallelPlan, work: TrainWorkload) -> Any:
        return Memory(plan, work, flat)

    model = registry.model("llama3-8b")
    return Prices(model=model, step=lambda plan, work: None, memory=memory, stage_bytes=lambda plan, work, role: 0.0)  # type: ignore[arg-type, return-value]


def asked(engine: Any) -> Asked:
    model, cluster = registry.model("llama3-8b"), registry.cluster("h100-sxm", 8)
    return Asked(model=model, cluster=cluster, engines=(engine,), seq_tokens=0, global_batch=0)


@pytest.mark.parametrize("engine", [DEEPSPEED, MEGATRON], ids=lambda e: e.name)
def test_the_found_length_fits_and_the_next_does_not(engine: Any) -> None:
    found = list(longest(candidates(asked(engine), Rejections()), prices()))
    assert sum(b.n for b in found) > 100
    for batch in found:
        step = legal_step(batch)
        for row in range(batch.n):
            plan, work = pick(batch, row)
            assert work.seq_tokens % step[row] == 0
            assert fits(plan, work.seq_tokens)
            assert not fits(plan, work.seq_tokens + step[row])


def fits(plan: ParallelPlan, seq: int) -> bool:
    m = Memory(plan, TrainWorkload(seq_tokens=int(seq)), flat=False)
    return bool(m.total_bytes <= m.limit_bytes and m.host_bytes <= m.host_limit_bytes)


def test_the_step_is_the_smallest_legal_one() -> None:
    for batch in candidates(asked(MEGATRON), Rejections()):
        for row in range(batch.n):
            plan, _ = pick(batch, row)
            chunks = 2 if plan.cp_kind in ("zigzag", "allgather", "ulysses-ring") else 1
            step = legal_step(batch)[row]
            assert step % GRANULE_TOKENS == 0
            assert step % (plan.cp * chunks) == 0
            assert step % (plan.cp * plan.tp) == 0
            assert step == 1024  # all degrees are small powers of two


def test_a_limitless_layout_stops_at_the_cap() -> None:
    found = list(longest(candidates(asked(DEEPSPEED), Rejections()), prices(flat=True)))
    assert all(np.all(np.equal(b.work.seq_tokens, MAX_TOKENS)) for b in found)
