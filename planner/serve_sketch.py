"""Quick plays: pools whose replicas each run by themselves, transfers at the links' full rate; pipelines lane by lane.

Winners are played in full.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..costmodels.arrays import as_integers
from ..costmodels.pipeline_times import PipelineTimes
from ..costmodels.serving_ops import ServeSystem
from ..costmodels.step_times import PS
from ..scenarios.serving import ServeWorkload
from ..sim.clock import NEVER
from ..sim.disagg import hand_over, hide_answers
from ..sim.placement import Placement
from ..sim.replica_kind import ReplicaModel, start_replicas
from ..sim.requests import Requests
from ..sim.serve_result import Pool, ServeResult, collect
from .serve_kinds import Candidate, Kind

LEAST_HELD = 4
"""Requests that a lane's share of the KV pool must hold for lanes to stand for a pipeline."""


def is_pipeline(kind: Kind | None) -> bool:
    """Whether the simulator plays this replica's stages one by one."""
    return kind is not None and isinstance(kind.model.times, PipelineTimes)


def lanes(kind: Kind, tokens: float) -> tuple[ReplicaModel, int]:
    """A pipeline's micro-batches as replicas of their own, each with its share of seats and KV, and how many they are; else (itself, 1).

    Even micro-batches meet no other's work: each is back after a pass through all ``n`` stages. One that carries ``c`` prompt tokens takes
    ``linear[c] − linear[1] + prefill[c]`` longer; each of the others waits for an ``n``-th of that, which is counted on the first: they
    meet as many in turn. Itself where a share holds too few requests of ``tokens``.
    """
    model, times = kind.model, kind.model.times
    if not isinstance(times, PipelineTimes):
        return model, 1
    n, limits = len(times.layers), model.limits
    blocks = limits.blocks // n
    if blocks * limits.block_tokens < LEAST_HELD * tokens:
        return model, 1
    whole = times.whole
    fresh = np.array(whole.prefill)
    longer = np.maximum(np.array(whole.linear)[: len(fresh)] - whole.linear[1], 0) + fresh
    prefill = as_integers(fresh + longer * (n - 1) // n)
    limits = replace(limits, max_seqs=max(limits.max_seqs // n, 1), blocks=blocks)
    return replace(model, times=replace(whole, prefill=prefill), limits=limits), n


def _one_stage(kind: Kind) -> ReplicaModel:
    """A pipeline that only prefills, as its widest stage: chunks of prompts follow one another through the stages."""
    times = kind.model.times
    if not isinstance(times, PipelineTimes):
        return kind.model
    return replace(kind.model, times=times.stage(times.layers.index(max(times.layers))))


def quick(candidate: Candidate, tokens: float) -> bool:
    """Whether ``sketch`` stands for the full simulator first: groups, and pipelines that do both phases without a prefix cache."""
    return candidate.prefill is not None or (not candidate.serve.plan.prefix_cache and lanes(candidate.serve, tokens)[1] > 1)


def sketch(candidate: Candidate, work: ServeWorkload, system: ServeSystem) -> ServeResult:
    """A quick play of a group, or of a pipeline's lanes, to which requests are dealt in turn."""
    if candidate.prefill is not None:
        return _sketch_group(candidate, work, system)
    kind = candidate.serve
    lane, n = lanes(kind, _longest(work))
    requests = Requests(work, lane.request_cpu_s)
    replicas = start_replicas(lane, kind.plan, work, requests, n)
    for q in range(len(requests)):
        replicas[q % n].submit(q)
    for replica in replicas:
        replica.run(NEVER)
    return collect(work, requests, [Pool(name="serve", kind=lane, gpus_each=kind.plan.n_gpus, replicas=replicas)], candidate.n_gpus, 0)


def _longest(work: ServeWorkload) -> float:
    return float((work.prompt_tokens + work.output_tokens).max())


def _sketch_group(candidate: Candidate, work: ServeWorkload, system: ServeSystem) -> ServeResult:
    """Prompts dealt in turn to the prefill replicas, then, ``kv bytes / link + latency`` after each first token, to the decode replicas.

    Unlike the full simulator it lets KV move at once, without waiting for room or for other transfers.
    """
    first, second = candidate.prefill, candidate.serve
    assert first is not None
    requests = Requests(work, first.model.request_cpu_s)
    ahead, (lane, n_lanes) = _one_stage(first), lanes(second, _longest(work))
    prefill = start_replicas(ahead, first.plan, work, requests, candidate.n_prefill)
    decode = start_replicas(lane, second.plan, work, requests, candidate.n_decode * n_lanes, cached=False)
    plans = [first.plan] * candidate.n_prefill + [second.plan] * candidate.n_decode
    gpus, ranks = [p.n_gpus for p in plans], [p.tp * p.pp * p.cp for p in plans]
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
        Pool(name="prefill", kind=ahead, gpus_each=first.plan.n_gpus, replicas=prefill),
        Pool(name="decode", kind=lane, gpus_each=second.plan.n_gpus, replicas=decode),
    ]
    return collect(work, requests, pools, candidate.n_gpus, 0)
