"""A quick play of prefill and decode pools: each replica by itself, transfers at the links' full rate. Winners are played in full."""

from __future__ import annotations

from ..costmodels.serving_ops import ServeSystem
from ..costmodels.step_times import PS
from ..scenarios.serving import ServeWorkload
from ..sim.clock import NEVER
from ..sim.disagg import hand_over, hide_answers
from ..sim.placement import Placement
from ..sim.replica_kind import start_replicas
from ..sim.requests import Requests
from ..sim.serve_result import Pool, ServeResult, collect
from .serve_kinds import Candidate


def sketch(candidate: Candidate, work: ServeWorkload, system: ServeSystem) -> ServeResult:
    """Prompts dealt in turn to the prefill replicas, then, ``kv bytes / link + latency`` after each first token, to the decode replicas.

    Unlike the full simulator it lets KV move at once, without waiting for room or for other transfers.
    """
    first, second = candidate.prefill, candidate.serve
    assert first is not None
    requests = Requests(work, first.model.request_cpu_s)
    prefill = start_replicas(first.model, first.plan, work, requests, candidate.n_prefill)
    decode = start_replicas(second.model, second.plan, work, requests, candidate.n_decode, cached=False)
    gpus = [first.plan.n_gpus] * len(prefill) + [second.plan.n_gpus] * len(decode)
    ranks = [p.tp * p.pp * p.cp for p in [first.plan] * len(prefill) + [second.plan] * len(decode)]
    _, link_bytes_per_s, latency_s = Placement(system.network, gpus, ranks, True).route(0, len(prefill))

    answers = hide_answers(requests)
    for q in range(len(requests)):
        prefill[q % len(prefill)].submit(q)
    for replica in prefill:
        replica.run(NEVER)
    per_token = second.model.kv_bytes_per_token / link_bytes_per_s * PS
    once = second.model.state_bytes / link_bytes_per_s * PS + latency_s * PS
    for q in range(len(requests)):
        if requests.finish[q] >= 0 and answers[q] > 1:
            moved = requests.finish[q] + round(requests.prompt[q] * per_token + once)
            hand_over(requests, q, answers[q], moved)
    coming = sorted((requests.ready[q], q) for q in range(len(requests)) if requests.first[q] >= 0 and requests.finish[q] < 0)
    for turn, (_, q) in enumerate(coming):
        decode[turn % len(decode)].submit(q)
    for replica in decode:
        replica.run(NEVER)
    pools = [
        Pool(name="prefill", kind=first.model, gpus_each=first.plan.n_gpus, replicas=prefill),
        Pool(name="decode", kind=second.model, gpus_each=second.plan.n_gpus, replicas=decode),
    ]
    return collect(work, requests, pools, candidate.n_gpus, 0)
