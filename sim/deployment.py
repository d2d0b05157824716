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
from .disagg import Disaggregated
from .engine import NEVER, Replica
from .fleet import Fleet
from .links import FairLinks
from .placement import Placement
from .pooled import Pooled
from .replica_kind import ReplicaModel, replica_model, start_replicas
from .requests import Requests
from .router import STATELESS, Router
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
    delay_s = next(iter(priced.values())).request_cpu_s
    requests = Requests(work, delay_s)
    pools = [
        Pool(name=name, kind=kind, gpus_each=plan.n_gpus, replicas=_started(kind, plan, work, requests, n, name != "decode", log, seed))
        for (name, kind), (plan, n) in zip(priced.items(), _sizes(deployment), strict=True)
    ]
    replicas = [replica for pool in pools for replica in pool.replicas]
    links: FairLinks | None = None
    router = Router(deployment.router, [[replica] for replica in pools[0].replicas], work, seed)
    shared_tiers = any(tier.shared for tier in deployment.plan.kv_tiers)
    if deployment.n_prefill:
        fleet = Fleet(requests, replicas)
        placement = _placement(deployment, system)
        links = placement.links
        n_bytes = pools[1].kind.kv_bytes_per_token
        sink = Disaggregated(fleet, deployment.n_prefill, router, placement, n_bytes, overlap_frac=deployment.overlap_frac)
        play(fleet, sink, clients, round(delay_s * PS), seed)
    elif clients is None and deployment.router in STATELESS and not shared_tiers:
        _play_apart(replicas, router)
    else:
        fleet = Fleet(requests, replicas)
        play(fleet, Pooled(fleet, router, in_order=shared_tiers), clients, round(delay_s * PS), seed)
    if clients is not None:
        work = dataclasses.replace(work, arrival_s=np.frombuffer(requests.arrival, np.int64) / PS)
    return collect(work, requests, pools, deployment.n_gpus, seed, links=links)


def _sizes(deployment: Deployment) -> list[tuple[EnginePlan, int]]:
    """Plan and number of replicas of each pool, in the order in which requests pass them."""
    first = [(deployment.prefill_plan, deployment.n_prefill)] if deployment.n_prefill else []
    return [*first, (deployment.plan, deployment.n_replicas)]


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


def _started(
    kind: ReplicaModel, plan: EnginePlan, work: ServeWorkload, requests: Requests, n: int, cached: bool, log: bool, seed: int
) -> list[Replica]:
    replicas = start_replicas(kind, plan, work, requests, n, cached=cached, seed=seed)
    for replica in replicas:
        replica.log = StepLog() if log else None
    return replicas


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
