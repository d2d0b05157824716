"""Plays a workload on the replicas of a cluster and returns when each request's first and last token left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..costmodels.serving import Reach, step_times
from ..costmodels.serving_memory import ServeMemory, serve_memory
from ..costmodels.serving_ops import ServeSystem, serve_system
from ..costmodels.step_times import PS, StepTimes
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, Floats64, Ints64, ServeWorkload, ServingEngine, serving_engine
from .disagg import KvLink, run_disaggregated
from .engine import Limits, Replica
from .gaps import GapHistogram
from .kvstore import PrefixCache
from .policies import Policy, policy_named
from .requests import Requests
from .router import route


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeResult:
    """One run. Times are seconds from the trace's start, NaN for requests that were rejected (larger than the KV pool)."""

    work: ServeWorkload
    first_s: Floats64
    finish_s: Floats64
    rejected: Ints64
    gaps: GapHistogram
    n_steps: int
    n_preempted: int
    busy_s: float
    end_s: float
    n_gpus: int
    n_replicas: int
    memory: ServeMemory
    seed: int
    cache_hit_frac: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """Everything needed to start replicas of one kind: tables, policy, limits, and what memory they hold."""

    times: StepTimes
    policy: Policy
    limits: Limits
    memory: ServeMemory
    request_cpu_s: float


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
    longest = int(work.prompt_tokens.max()) + int(work.output_tokens.max())
    chunk = budget if policy.chunked else max(budget, int(work.prompt_tokens.max()))
    low, high = np.quantile(work.prompt_tokens, 0.1), np.quantile(work.prompt_tokens + work.output_tokens, 0.9)
    reach = Reach(
        tokens=chunk + seats,
        chunk=chunk,
        seqs=seats,
        kv_low_tokens=max(1.0, float(low)),
        kv_high_tokens=max(float(high), float(low) + 256),
        past_tokens=float(max(longest, 1024)),
    )
    return ReplicaModel(
        times=step_times(model, plan, system, reach), policy=policy, limits=limits, memory=memory, request_cpu_s=engine.request_cpu_s
    )


def simulate_serving(
    model: ModelSpec,
    cluster: Cluster,
    plan: EnginePlan,
    work: ServeWorkload,
    *,
    router: str = "round-robin",
    n_prefill: int = 0,
    seed: int = 0,
    engine: ServingEngine | None = None,
    kind: ReplicaModel | None = None,
) -> ServeResult:
    """Serve ``work`` on every GPU of ``cluster``: ``n_gpus / plan.n_gpus`` equal replicas behind a router.

    With ``n_prefill > 0`` that many replicas only prefill and send their KV to the others (prefill/decode disaggregation). ``kind`` is
    a replica already priced for such a workload. Equal inputs and seed give equal results. Raises BadInput when the replicas do not
    fill the cluster or the plan cannot run.
    """
    if cluster.n_gpus % plan.n_gpus:
        raise BadInput(
            f"gpus={cluster.n_gpus} is not a whole number of replicas of {plan.n_gpus} GPUs (tp={plan.tp}, pp={plan.pp}, dp={plan.dp})"
        )
    n_replicas = cluster.n_gpus // plan.n_gpus
    if n_prefill and not 0 < n_prefill < n_replicas:
        raise BadInput(f"prefill={n_prefill} of {n_replicas} replicas: at least one must prefill and one decode")
    system = serve_system(cluster, engine or serving_engine(plan.engine))
    kind = kind or replica_model(model, plan, system, work)
    requests = Requests(work, kind.request_cpu_s)
    stores = prefix_caches(plan, work, requests, kind.limits.block_tokens, n_replicas)
    replicas = [
        Replica(requests, kind.times, kind.policy, kind.limits, store if not n_prefill or i < n_prefill else None)
        for i, store in enumerate(stores)
    ]
    if n_prefill:
        n_bytes = kind.memory.kv_bytes_per_token * (1 if model.is_mla else plan.tp) * plan.pp * plan.cp
        run_disaggregated(requests, replicas[:n_prefill], replicas[n_prefill:], kv_link(plan, system), n_bytes)
    else:
        route(requests, replicas, router, seed)
    return _result(work, requests, replicas, kind, cluster.n_gpus, seed)


def kv_link(plan: EnginePlan, system: ServeSystem) -> KvLink:
    """One replica's way to another: its GPUs' shares of the NICs together, or their links inside the node when all fit in one."""
    cluster, net = system.cluster, system.network
    if cluster.n_gpus <= cluster.gpus_per_node:
        return KvLink(bytes_per_s=net.intra.bytes_per_s * plan.n_gpus, latency_s=net.intra.latency_s)
    share = net.inter.bytes_per_s * cluster.nics_per_node / cluster.gpus_per_node
    return KvLink(bytes_per_s=share * plan.n_gpus, latency_s=net.inter.latency_s)


def prefix_caches(plan: EnginePlan, work: ServeWorkload, requests: Requests, block_tokens: int, n: int) -> list[PrefixCache | None]:
    """One prefix cache a replica, or none where the plan has it off. BadInput when the workload has no block hashes to match."""
    if not plan.prefix_cache:
        return [None] * n
    if not len(work.block_starts):
        raise BadInput("the prefix cache is on, but the workload names no prompt blocks; use a trace with hash_ids or turn it off")
    if work.block_id_tokens % block_tokens:
        raise BadInput(f"block={block_tokens} does not divide the trace's hash blocks of {work.block_id_tokens} tokens")
    ids, starts = work.block_ids.tolist(), work.block_starts.tolist()
    return [PrefixCache(ids, starts, requests.prompt, work.block_id_tokens, block_tokens) for _ in range(n)]


def _result(work: ServeWorkload, requests: Requests, replicas: list[Replica], kind: ReplicaModel, n_gpus: int, seed: int) -> ServeResult:
    gaps = GapHistogram()
    for replica in replicas:
        gaps.merge(replica.gaps)
    stores = [replica.store for replica in replicas if replica.store is not None]
    return ServeResult(
        work=work,
        first_s=_seconds(requests.first),
        finish_s=_seconds(requests.finish),
        rejected=np.array(requests.rejected, np.int64),
        gaps=gaps,
        n_steps=sum(r.n_steps for r in replicas),
        n_preempted=sum(r.n_preempted for r in replicas),
        busy_s=sum(r.busy_ps for r in replicas) / PS,
        end_s=max(r.now for r in replicas) / PS,
        n_gpus=n_gpus,
        n_replicas=len(replicas),
        memory=kind.memory,
        seed=seed,
        cache_hit_frac=sum(s.hit_tokens for s in stores) / max(sum(s.prompt_tokens for s in stores), 1),
    )


def _seconds(ticks: list[int]) -> Floats64:
    at = np.array(ticks, np.float64) / PS
    return np.where(at < 0, np.nan, at)
