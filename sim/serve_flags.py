"""Turns the flags of ``roofplan simulate`` into a workload, an engine plan and a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..scenarios.clients import Clients
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, Floats64, ServeWorkload
from ..scenarios.serving_parts import AttentionFfnSplit
from ..scenarios.serving_text import read_autoscale, read_kv_tier, read_speculation
from ..scenarios.units import parse_quantity, parse_tokens
from . import arrivals, traces

MAX_MADE_UP = 5_000_000
PLAN_FLAGS = (
    "tp", "pp", "dp", "ep", "cp", "engine", "max_num_seqs", "block_tokens", "kv_blocks", "preemption", "prefix_cache",
    "kv_dtype", "expert_skew", "redundant_experts",
)  # fmt: skip


def workload(flags: Mapping[str, Any]) -> ServeWorkload:
    """The trace, or made-up requests, with the arrivals that were asked for. BadInput when both, or neither, say what to serve."""
    if flags["trace"] and (flags["isl"] or flags["osl"]):
        raise BadInput("--trace and --isl/--osl both say what the requests are; give one of them")
    n, rate, seed = flags["n_requests"], flags["rate"], flags["seed"]
    if flags["trace"]:
        work = traces.read_trace(flags["trace"])
        work = arrivals.first_requests(work, n) if n else work
    else:
        if not (flags["isl"] and flags["osl"] and (rate or flags["concurrency"] or flags["burst"])):
            raise BadInput("no workload: give --trace FILE, or --isl N --osl N with --rate R, --concurrency C or --burst SIZE:GAP")
        n = n or 1000
        if n > MAX_MADE_UP:
            raise BadInput(f"requests={n:,} is over the limit of {MAX_MADE_UP:,} for a made-up workload")
        spread = flags["length_cv"]
        prompt = arrivals.lengths(n, parse_tokens(flags["isl"]), spread, seed)
        output = arrivals.lengths(n, parse_tokens(flags["osl"]), spread, seed, arrivals.OUTPUT_STREAM)
        at = arrivals.poisson(n, rate, seed) if rate else arrivals.burst(n, n, 0.0)
        work = ServeWorkload(arrival_s=at, prompt_tokens=prompt, output_tokens=output, source="made up")
    if flags["burst"]:
        return dataclasses.replace(work, arrival_s=_bursts(flags, len(work)))
    if rate is None or flags["concurrency"]:
        return work
    if flags["swing"]:
        period_s = parse_quantity(flags["period"], "_s")
        return dataclasses.replace(work, arrival_s=arrivals.diurnal(len(work), rate, flags["swing"], period_s, seed))
    return dataclasses.replace(work, arrival_s=arrivals.gamma(len(work), rate, flags["cv"], seed))


def _bursts(flags: Mapping[str, Any], n: int) -> Floats64:
    """Arrivals of ``--burst SIZE:GAP``. BadInput says the form, or that another flag says when requests come."""
    if flags["rate"] or flags["concurrency"]:
        raise BadInput("--burst, --rate and --concurrency each say when requests come; give one of them")
    size, colon, gap = flags["burst"].partition(":")
    if not colon or not size.isdigit():
        raise BadInput(f"--burst {flags['burst'][:40]!r} is not SIZE:GAP, like 32:10s")
    return arrivals.burst(n, int(size), parse_quantity(gap, "_s"))


def engine_plan(flags: Mapping[str, Any], model: ModelSpec) -> EnginePlan:
    """How each replica runs; weights in the checkpoint's own formats unless others are asked for. Raises BadInput."""
    weights = flags["weight_dtype"] or model.weight_dtype
    return EnginePlan(
        weight_dtype=weights,
        expert_dtype=flags["expert_dtype"] or ("" if flags["weight_dtype"] else model.expert_dtype),
        policy=flags["policy"] or "",
        token_budget=parse_tokens(flags["token_budget"]) if flags["token_budget"] else 0,
        speculation=read_speculation(flags["speculation"]) if flags["speculation"] else None,
        kv_tiers=tuple(read_kv_tier(text) for text in flags["kv_tier"]),
        attention_ffn=AttentionFfnSplit(n_ffn_gpus=flags["ffn_gpus"]) if flags["ffn_gpus"] else None,
        **{name: flags[name] for name in PLAN_FLAGS},
    )


def deployment(flags: Mapping[str, Any], plan: EnginePlan, cluster: Cluster) -> Deployment:
    """As many replicas as the cluster holds: ``--prefill`` of them only prefill, with ``--prefill-tp`` GPUs each where that is given.

    Raises BadInput when the GPUs are not a whole number of replicas.
    """
    n_prefill, prefill = flags["n_prefill"], None
    if flags["prefill_tp"] and not n_prefill:
        raise BadInput("--prefill-tp is the width of replicas that only prefill; say how many with --prefill")
    if flags["prefill_tp"]:
        prefill = dataclasses.replace(plan, tp=flags["prefill_tp"])
    left = cluster.n_gpus - n_prefill * (prefill or plan).n_gpus
    if n_prefill and left < plan.n_gpus:
        width = (prefill or plan).n_gpus
        raise BadInput(
            f"prefill={n_prefill} replicas of {width} GPUs leave {max(left, 0)} of {cluster.n_gpus} GPUs: "
            f"at least one replica of {plan.n_gpus} must decode"
        )
    if left % plan.n_gpus or left < 1:
        raise BadInput(
            f"gpus={left} is not a whole number of replicas of {plan.n_gpus} GPUs (tp={plan.tp}, pp={plan.pp}, dp={plan.dp}, cp={plan.cp})"
        )
    autoscale = read_autoscale(flags["autoscale"]) if flags["autoscale"] else None
    return Deployment(
        plan=plan,
        n_replicas=left // plan.n_gpus,
        prefill=prefill,
        n_prefill=n_prefill,
        router=flags["router"],
        prefill_sm_frac=flags["prefill_sm"],
        overlap_frac=flags["kv_overlap"],
        nic_per_gpu=not flags["nic_per_node"],
        autoscale=autoscale,
    )


def clients(flags: Mapping[str, Any]) -> Clients | None:
    """The clients of a closed loop, or None where requests arrive by themselves. BadInput when both are asked for."""
    if not flags["concurrency"]:
        if flags["think"]:
            raise BadInput("--think is the pause of clients that wait for their answers; say how many with --concurrency")
        return None
    if flags["rate"]:
        raise BadInput("--rate and --concurrency both say when requests come; give one of them")
    return Clients(n_clients=flags["concurrency"], think_s=parse_quantity(flags["think"], "_s") if flags["think"] else 0.0)


def window(text: str | None) -> tuple[float, float] | None:
    """``10s..20s`` in seconds; None when not given. BadInput says the form."""
    if text is None:
        return None
    low, dots, high = text.partition("..")
    if not dots:
        raise BadInput(f"--window {text[:40]!r} is not FROM..TO, like 10s..20s")
    return parse_quantity(low, "_s"), parse_quantity(high, "_s")
