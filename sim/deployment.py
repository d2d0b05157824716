"""Plays a workload on any deployment: replicas behind a router, prefill apart from decode, split GPUs, pools that grow and shrink."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ..costmodels.serving_ops import ServeSystem, serve_system
from ..costmodels.step_times import PS
from ..scenarios.clients import Clients
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload, ServingEngine, serving_engine
from .autoscale import Autoscaler
from .clock import NEVER
from .disagg import Disaggregated
from .engine import Replica
from .fleet import Fleet
from .links import FairLinks
from .placement import Placement
from .pooled import Pooled
from .prefill_ranks import prefill_ranks
from .replica_kind import ReplicaModel, replica_model, start_replicas
from .requests import Requests
from .router import STATELESS, Router
from .semi_pd import SplitGpus, split_kinds, twin_replicas
from .serve_result import Pool, ServeResult, collect
from .sources import play
from .step_log import StepLog


def simulate_deployment(
    model: ModelSpec,
    cluster: Cluster,
    deployment: Deployment,
    work: ServeWorkload,
    *,
    seed: int = 0,
    engine: ServingEngine | None = None,
    kinds: Mapping[str, ReplicaModel] | None = None,
    clients: Clients | None = None,
    log: bool = False,
) -> ServeResult:
    """Serve ``work`` as the deployment says on the first ``deployment.n_gpus`` GPUs of the cluster.

    With ``clients`` its arrival times do not count: clients send the requests in order, each when its last answer has come, and the
    result's workload holds when that was. ``engine`` stands for the plans' engine; ``kinds`` are replicas already priced for such a
    workload by pool: ``serve``, or ``prefill`` and ``decode``. With ``log`` the result keeps every replica's steps. Equal inputs and seed
    give equal results. Raises BadInput when the cluster is too small or a plan cannot run on it.
    """
    if deployment.n_gpus > cluster.n_gpus:
        raise BadInput(f"the deployment needs {deployment.n_gpus} GPUs, {cluster.name} has {cluster.n_gpus}; drop replicas or add GPUs")
    system = serve_system(cluster, engine or serving_engine(deployment.plan.engine))
    priced = _kinds(model, deployment, system, work, engine, kinds or {})
    requests = Requests(work, next(iter(priced.values())).request_cpu_s)
    pools = _pools(deployment, priced, work, requests, seed)
    for pool in pools:
        for replica in pool.replicas:
            replica.log = StepLog() if log else None
    links, scaler = _play(deployment, pools, work, requests, system, clients, seed)
    if clients is not None:
        work = dataclasses.replace(work, arrival_s=np.frombuffer(requests.arrival, np.int64) / PS)
    result = collect(work, requests, pools, deployment.n_gpus, seed, links=links)
    if scaler is None:
        return result
    paid_s, scaled = scaler.bill(round(result.end_s * PS))
    return dataclasses.replace(result, gpu_s=paid_s * deployment.plan.n_gpus, scaled=scaled)


def _play(
    deployment: Deployment,
    pools: list[Pool],
    work: ServeWorkload,
    requests: Requests,
    system: ServeSystem,
    clients: Clients | None,
    seed: int,
) -> tuple[FairLinks | None, Autoscaler | None]:
    """Play the run to its end; returns the links KV moved over and what scaled the pool, where there were such."""
    first, last = pools[0].replicas, pools[-1].replicas
    shared_tiers = any(tier.shared for tier in deployment.plan.kv_tiers)
    delay_ps = round(pools[0].kind.request_cpu_s * PS)
    if deployment.n_prefill:
        fleet = Fleet(requests, first + last)
        placement = _placement(deployment, system)
        router = Router(deployment.router, [[replica] for replica in first], work, seed)
        n_bytes, state = pools[1].kind.kv_bytes_per_token, pools[1].kind.state_bytes
        sink = Disaggregated(
            fleet,
            len(first),
            router,
            placement,
            n_bytes,
            state_bytes=state,
            overlap_frac=deployment.overlap_frac,
            decode_answers=deployment.decode_answers,
            decode_first=deployment.decode_first,
            poll_steps=deployment.poll_steps,
            decode_in_turn=deployment.decode_in_turn,
        )
        play(fleet, sink, clients, delay_ps, seed)
        return placement.links, None
    if deployment.prefill_sm_frac:
        fleet = Fleet(requests, last + first)
        router = Router(deployment.router, list(zip(first, last, strict=True)), work, seed)
        play(fleet, SplitGpus(fleet, router, len(last)), clients, delay_ps, seed)
        return None, None
    router = Router(deployment.router, [[replica] for replica in first], work, seed)
    if clients is None and router.name in STATELESS and not shared_tiers and not deployment.autoscale:
        _play_apart(first, router)
        return None, None
    fleet = Fleet(requests, first)
    pool = Pooled(fleet, router, in_order=shared_tiers)
    scaler = Autoscaler(fleet, pool, deployment.autoscale) if deployment.autoscale else None
    play(fleet, pool, clients, delay_ps, seed)
    return None, scaler


def _sizes(deployment: Deployment) -> list[tuple[EnginePlan, int]]:
    """Plan and number of replicas of each pool, in the order in which requests pass them."""
    first = [(deployment.prefill_plan, deployment.n_prefill)] if deployment.n_prefill else []
    most = deployment.autoscale.max_replicas if deployment.autoscale else deployment.n_replicas
    return [*first, (deployment.plan, most)]


def _pools(deployment: Deployment, priced: Mapping[str, ReplicaModel], work: ServeWorkload, requests: Requests, seed: int) -> list[Pool]:
    """The replicas of each pool, idle, in the order in which requests pass them."""
    plan = deployment.plan
    if deployment.prefill_sm_frac:
        sides = twin_replicas(requests, priced["prefill"], priced["decode"], deployment.n_replicas)
        named = zip(priced.items(), sides, strict=True)
        return [Pool(name=name, kind=kind, gpus_each=plan.n_gpus, replicas=list(side)) for (name, kind), side in named]
    pools = []
    for (name, kind), (own, n) in zip(priced.items(), _sizes(deployment), strict=True):
        replicas = (
            prefill_ranks(kind, own, requests, n, seed)
            if deployment.decode_first and name == "prefill"
            else start_replicas(kind, own, work, requests, n, cached=name != "decode", seed=seed)
        )
        pools.append(Pool(name=name, kind=kind, gpus_each=own.n_gpus, replicas=replicas))
    return pools


def _kinds(
    model: ModelSpec,
    deployment: Deployment,
    system: ServeSystem,
    work: ServeWorkload,
    engine: ServingEngine | None,
    given: Mapping[str, ReplicaModel],
) -> dict[str, ReplicaModel]:
    """Each pool's kind of replica by the pool's name, in the order of ``_sizes``; equal plans are priced once."""
    plan, first = deployment.plan, deployment.prefill_plan
    if deployment.prefill_sm_frac and given:
        return {"prefill": given["prefill"], "decode": given["decode"]}
    if deployment.prefill_sm_frac:
        prefill, decode = split_kinds(model, plan, system, work, deployment.prefill_sm_frac)
        return {"prefill": prefill, "decode": decode}
    if not deployment.n_prefill:
        return {"serve": given.get("serve") or replica_model(model, plan, system, work)}
    if first.kv_dtype != plan.kv_dtype:
        raise BadInput(f"prefill caches KV as {first.kv_dtype}, decode as {plan.kv_dtype}; give both plans the same kv_dtype")
    decode = given.get("decode") or replica_model(model, plan, system, work)
    if first == plan:
        return {"prefill": given.get("prefill") or decode, "decode": decode}
    if engine is None and first.engine != plan.engine:
        system = serve_system(system.cluster, serving_engine(first.engine))
    return {"prefill": given.get("prefill") or replica_model(model, first, system, work), "decode": decode}


def _play_apart(replicas: list[Replica], router: Router) -> None:
    """Each replica by itself on its share of the arrivals: the same result as together where the router needs no state."""
    for q in range(len(replicas[0].r)):
        replicas[router.pick(q, range(len(replicas)))].submit(q)
    for replica in replicas:
        replica.run(NEVER)


def _placement(deployment: Deployment, system: ServeSystem) -> Placement:
    """Prefill replicas on the first GPUs, decode replicas on those after them."""
    gpus = [plan.n_gpus for plan, n in _sizes(deployment) for _ in range(n)]
    ranks = [plan.tp * plan.pp * plan.cp for plan, n in _sizes(deployment) for _ in range(n)]
    return Placement(system.network, gpus, ranks, deployment.nic_per_gpu)
