"""What one kind of replica is: its step-time tables, policy, limits and memory; and how such replicas are started."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.pipeline_times import PipelineTimes, pipeline_times
from ..costmodels.serving import Reach, launched_kernels, step_times
from ..costmodels.serving_memory import ServeMemory, serve_memory
from ..costmodels.serving_ops import ServeSystem
from ..costmodels.serving_split import SplitTimes, split_times
from ..costmodels.speculation_time import VerifyTimes, memory_with_draft, verify_times
from ..costmodels.step_times import StepTimes
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload
from .engine import Replica
from .pipeline_replica import PipelineReplica
from .policies import Policy, policy_named
from .replica_state import Limits
from .requests import Requests
from .speculate import Acceptance, Controller
from .stepping import SteppingReplica
from .stores import prefix_stores


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """Everything needed to start replicas of one kind: tables, policy, limits, and what memory they hold.

    ``kv_bytes_per_token`` are those of one token on all GPUs of the replica together, each element counted once, ``state_bytes`` those
    of one sequence's recurrent states; ``verify`` are the tables of a plan that speculates; ``launch_s`` is the host's time to launch a
    step without a CUDA graph.
    """

    times: StepTimes | SplitTimes | PipelineTimes
    verify: VerifyTimes | None = None
    n_layers: int = 1
    policy: Policy
    limits: Limits
    memory: ServeMemory
    request_cpu_s: float
    kv_bytes_per_token: float
    state_bytes: float = 0.0
    launch_s: float = 0.0


def replica_model(model: ModelSpec, plan: EnginePlan, system: ServeSystem, work: ServeWorkload) -> ReplicaModel:
    """Price a replica for this workload: engine defaults filled in, tables as long as the workload needs.

    Raises BadInput when a limit cannot work or the weights leave no room for a KV cache.
    """
    engine = system.engine
    policy = policy_named(plan.policy or engine.policy)
    own_budget, own_seats = engine.limits_on(system.accelerator.name, system.accelerator.hbm_bytes, plan.dp)
    seats, budget = plan.max_num_seqs or own_seats, plan.token_budget or own_budget
    block = plan.block_tokens or engine.block_tokens
    memory = memory_with_draft(serve_memory(model, plan, engine, system.accelerator, budget, seats, block), plan, block)
    seats = memory.max_seqs
    limits = Limits(budget=budget, max_seqs=seats, blocks=memory.kv_blocks, block_tokens=block, swap=plan.preemption == "swap")
    far = reach(policy, limits, work, guesses=plan.speculation is not None)
    priced = split_times if plan.attention_ffn else pipeline_times if has_stages(plan, policy) else step_times
    times: StepTimes | SplitTimes | PipelineTimes = priced(model, plan, system, far)
    return ReplicaModel(
        times=times,
        verify=verify_times(model, plan, system, far, times) if plan.speculation else None,
        n_layers=model.n_layers,
        policy=policy,
        limits=limits,
        memory=memory,
        request_cpu_s=engine.request_cpu_s,
        kv_bytes_per_token=memory.kv_bytes_per_token * (1 if model.is_mla else plan.tp) * plan.pp * plan.cp,
        state_bytes=memory.state_bytes_per_seq * plan.tp * plan.pp,
        launch_s=engine.launch_s * launched_kernels(model, engine.kernels_per_layer),
    )


def has_stages(plan: EnginePlan, policy: Policy) -> bool:
    """Whether a replica's pipeline stages are played one by one: not where it guesses or prefills by layers, whose stages are even."""
    return plan.pp > 1 and plan.speculation is None and not policy.layer_tokens


def reach(policy: Policy, limits: Limits, work: ServeWorkload, *, guesses: bool = False) -> Reach:
    """How far the tables of a replica under this policy must go to serve the workload; ``guesses`` fill its token budget with decodes.

    A prompt that is not cut is at most the longest one and, after a preemption, what it had answered.
    """
    longest = int(work.prompt_tokens.max()) + int(work.output_tokens.max())
    whole = int(work.prompt_tokens.max()) if policy.reserve_output else longest
    chunk = limits.budget if policy.chunked else max(limits.budget, whole, policy.layer_tokens)
    low, high = np.quantile(work.prompt_tokens, 0.1), np.quantile(work.prompt_tokens + work.output_tokens, 0.9)
    return Reach(
        tokens=chunk + (limits.budget if guesses and not policy.chunked else limits.max_seqs),
        chunk=chunk,
        seqs=limits.max_seqs,
        kv_low_tokens=max(1.0, float(low)),
        kv_high_tokens=max(float(high), float(low) + 256),
        past_tokens=float(max(longest, 1024)),
        excess_tokens=excess_tokens(work, limits.max_seqs),
    )


SAMPLED = 512
"""Requests that stand for a workload's cached lengths, evenly spaced."""


def excess_tokens(work: ServeWorkload, seats: int) -> tuple[float, ...]:
    """By number of decodes, 0 to ``seats``: tokens cached by the longest of them, on average, over their mean.

    A request is met in proportion to its answer, ``prompt + u·answer`` tokens long with ``u`` even from 0 to 1; the longest of ``n`` has
    rank ``n/(n+1)``.
    """
    each = slice(None, None, -(-len(work) // SAMPLED))
    prompt, answer = work.prompt_tokens[each].astype(np.float64), work.output_tokens[each].astype(np.float64)
    cached = (prompt[:, None] + answer[:, None] * (np.arange(1, 16, 2) / 16)).ravel()
    order = np.argsort(cached, kind="stable")
    share = np.repeat(answer, 8)[order] / (8 * answer.sum())
    n = np.arange(2, seats + 1)
    rank = np.searchsorted(np.cumsum(share), n / (n + 1), side="right")
    longest = cached[order][np.minimum(rank, len(order) - 1)]
    return (0.0, 0.0, *np.maximum(longest - share @ cached[order], 0.0).tolist())[: seats + 1]


def start_replicas(
    kind: ReplicaModel, plan: EnginePlan, work: ServeWorkload, requests: Requests, n: int, *, cached: bool = True, seed: int = 0
) -> list[Replica]:
    """``n`` idle replicas of one kind over the same requests; ``cached`` false leaves out the plan's prefix cache.

    They play every step where the plan speculates, prefills by layers, splits attention from FFN or has pipeline stages: such steps have
    no closed form.
    Raises BadInput when the plan wants a prefix cache that the workload or a KV tier cannot serve.
    """
    block, times = kind.limits.block_tokens, kind.times
    stores = prefix_stores(plan, work, kind.policy, block, kind.kv_bytes_per_token, n) if cached else [None] * n
    if isinstance(times, PipelineTimes):
        return [PipelineReplica(requests, times, kind.policy, kind.limits, store) for store in stores]
    if isinstance(times, StepTimes) and kind.verify is None and not kind.policy.layer_tokens:
        return [Replica(requests, times, kind.policy, kind.limits, store) for store in stores]
    layers, spec, verify = kind.n_layers, plan.speculation, kind.verify
    if spec is None or verify is None:
        return [SteppingReplica(requests, times, kind.policy, kind.limits, store, n_layers=layers) for store in stores]
    draws = Acceptance(spec, len(requests), seed)
    parts = [(Controller(spec, verify, kind.limits.max_seqs, kind.limits.budget), draws) for _ in stores]
    return [
        SteppingReplica(requests, verify.times, kind.policy, kind.limits, store, speculation=part, n_layers=layers)
        for store, part in zip(stores, parts, strict=True)
    ]
