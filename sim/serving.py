"""Plays a workload on equal replicas that fill a cluster: the common case of a deployment."""

from __future__ import annotations

from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload, ServingEngine
from .deployment import simulate_deployment
from .replica_kind import ReplicaModel
from .serve_result import ServeResult


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
    log: bool = False,
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
    deployment = Deployment(plan=plan, n_replicas=n_replicas - n_prefill, n_prefill=n_prefill, router=router)
    kinds = None if kind is None else {"prefill": kind, "decode": kind} if n_prefill else {"serve": kind}
    return simulate_deployment(model, cluster, deployment, work, seed=seed, engine=engine, kinds=kinds, log=log)
