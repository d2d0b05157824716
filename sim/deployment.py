"""Plays a workload on any deployment: equal replicas behind a router, or prefill and decode replicas of different plans."""

from __future__ import annotations

from collections.abc import Mapping

from ..costmodels.serving_ops import ServeSystem, serve_system
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload, ServingEngine, serving_engine
from .disagg import KvLink, run_disaggregated
from .replica_kind import ReplicaModel, replica_model, start_replicas
from .requests import Requests
from .router import route
from .serve_result import Pool, ServeResult, collect
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
    log: bool = False,
) -> ServeResult:
    """Serve ``work`` as the deployment says on the first ``deployment.n_gpus`` GPUs of the cluster.

    ``engine`` stands for the plans' engine; ``kinds`` are replicas already priced for such a workload by pool: ``serve``, or ``prefill``
    and ``decode``. With ``log`` the result keeps every replica's steps. Equal inputs and seed give equal results. Raises BadInput
    when the cluster is too small or a plan cannot run on it.
    """
    if deployment.n_gpus > cluster.n_gpus:
        raise BadInput(f"the deployment needs {deployment.n_gpus} GPUs, {cluster.name} has {cluster.n_gpus}; drop replicas or add GPUs")
    plan = deployment.plan
    kinds = kinds or {}
    system = serve_system(cluster, engine or serving_engine(plan.engine))
    kind = kinds.get("decode" if deployment.n_prefill else "serve") or replica_model(model, plan, system, work)
    requests = Requests(work, kind.request_cpu_s)
    replicas = start_replicas(kind, plan, work, requests, deployment.n_replicas, cached=not deployment.n_prefill)
    pools = [Pool(name="serve", kind=kind, gpus_each=plan.n_gpus, replicas=replicas)]
    if deployment.n_prefill:
        first = deployment.prefill_plan
        other = system if first.engine == plan.engine or engine else serve_system(cluster, serving_engine(first.engine))
        first_kind = kinds.get("prefill") or (kind if first == plan else replica_model(model, first, other, work))
        begin = start_replicas(first_kind, first, work, requests, deployment.n_prefill)
        pools = [
            Pool(name="prefill", kind=first_kind, gpus_each=first.n_gpus, replicas=begin),
            Pool(name="decode", kind=kind, gpus_each=plan.n_gpus, replicas=replicas),
        ]
    for pool in pools:
        for replica in pool.replicas:
            replica.log = StepLog() if log else None
    if deployment.n_prefill:
        n_bytes = kind.memory.kv_bytes_per_token * (1 if model.is_mla else plan.tp) * plan.pp * plan.cp
        run_disaggregated(requests, pools[0].replicas, replicas, kv_link(plan, system), n_bytes)
    else:
        route(requests, replicas, deployment.router, seed)
    return collect(work, requests, pools, deployment.n_gpus, seed)


def kv_link(plan: EnginePlan, system: ServeSystem) -> KvLink:
    """One replica's way to another: its GPUs' shares of the NICs together, or their links inside the node when all fit in one."""
    cluster, net = system.cluster, system.network
    if cluster.n_gpus <= cluster.gpus_per_node:
        return KvLink(bytes_per_s=net.intra.bytes_per_s * plan.n_gpus, latency_s=net.intra.latency_s)
    share = net.inter.bytes_per_s * cluster.nics_per_node / cluster.gpus_per_node
    return KvLink(bytes_per_s=share * plan.n_gpus, latency_s=net.inter.latency_s)
