"""What one kind of replica is: its step-time tables, policy, limits and memory; and how such replicas are started."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.serving import Reach, step_times
from ..costmodels.serving_memory import ServeMemory, serve_memory
from ..costmodels.serving_ops import ServeSystem
from ..costmodels.serving_split import SplitTimes, split_times
from ..costmodels.step_times import StepTimes
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload
from .engine import Limits, Replica
from .policies import Policy, policy_named
from .requests import Requests
from .stepping import stepping_replicas
from .stores import prefix_stores


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """Everything needed to start replicas of one kind: tables, policy, limits, and what memory they hold.

    ``kv_bytes_per_token`` are those of one token on all GPUs of the replica together, each element counted once.
    """

    times: StepTimes | SplitTimes
    policy: Policy
    limits: Limits
    memory: ServeMemory
    request_cpu_s: float
    kv_bytes_per_token: float


def replica_model(model: ModelSpec, plan: EnginePlan, system: ServeSystem, work: ServeWorkload) -> ReplicaModel:
    """Price a replica for this workload: engine defaults filled in, tables as long as the workload needs.

    Raises BadInput when a limit cannot work or the weights leave no room for a KV cache.
    """
    engine = system.engine
    policy = policy_named(plan.policy or engine.policy)
    seats = plan.max_num_seqs or engine.max_num_seqs
    budget = plan.token_budget or engine.token_budget
    block = plan.block_tokens or engine.block_tokens
    memory = serve_memory(model, plan, engine, system.accelerator, budget, seats, block)
    limits = Limits(budget=budget, max_seqs=seats, blocks=memory.kv_blocks, block_tokens=block, swap=plan.preemption == "swap")
    table = split_times if plan.attention_ffn else step_times
    return ReplicaModel(
        times=table(model, plan, system, reach(policy, limits, work)),
        policy=policy,
        limits=limits,
        memory=memory,
        request_cpu_s=engine.request_cpu_s,
        kv_bytes_per_token=memory.kv_bytes_per_token * (1 if model.is_mla else plan.tp) * plan.pp * plan.cp,
    )


def reach(policy: Policy, limits: Limits, work: ServeWorkload) -> Reach:
    """How far the tables of a replica under this policy must go to serve the workload."""
    longest = int(work.prompt_tokens.max()) + int(work.output_tokens.max())
    chunk = limits.budget if policy.chunked else max(limits.budget, int(work.prompt_tokens.max()))
    low, high = np.quantile(work.prompt_tokens, 0.1), np.quantile(work.prompt_tokens + work.output_tokens, 0.9)
    return Reach(
        tokens=chunk + limits.max_seqs,
        chunk=chunk,
        seqs=limits.max_seqs,
        kv_low_tokens=max(1.0, float(low)),
        kv_high_tokens=max(float(high), float(low) + 256),
        past_tokens=float(max(longest, 1024)),
    )


def start_replicas(
    kind: ReplicaModel, plan: EnginePlan, work: ServeWorkload, requests: Requests, n: int, *, cached: bool = True
) -> list[Replica]:
    """``n`` idle replicas of one kind over the same requests; ``cached`` false leaves out the plan's prefix cache.

    Raises BadInput when the plan wants a prefix cache that the workload or a KV tier cannot serve.
    """
    block = kind.limits.block_tokens
    stores = prefix_stores(plan, work, kind.policy, block, kind.kv_bytes_per_token, n) if cached else [None] * n
    if isinstance(kind.times, SplitTimes):  # a step is no sum of its parts: play every one
        return list(stepping_replicas(requests, kind.times, None, kind.policy, kind.limits, stores, None, 1, 0))
    return [Replica(requests, kind.times, kind.policy, kind.limits, store) for store in stores]
