"""Turns the flags of ``roofplan simulate`` into a workload, an engine plan and a deployment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from ..costmodels.params import count_params
from ..scenarios import registry
from ..scenarios.clients import Clients
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import MAX_ARRIVAL_S, MAX_TOKENS, EnginePlan, Floats64, ServeWorkload
from ..scenarios.serving_parts import AttentionFfnSplit, Speculation
from ..scenarios.serving_text import read_autoscale, read_kv_tier, read_speculation
from ..scenarios.units import parse_quantity, parse_tokens, show_number
from . import arrivals, traces

T = TypeVar("T")
MAX_MADE_UP = 5_000_000
MAX_CV = 100.0
MIN_SM_FRAC = 0.05
"""A part of a card under a twentieth of its SMs is no engine's setting."""
PLAN_FLAGS = (
    "tp", "pp", "dp", "ep", "cp", "engine", "max_num_seqs", "block_tokens", "kv_blocks", "preemption", "prefix_cache",
    "kv_dtype", "expert_skew", "redundant_experts",
)  # fmt: skip


def read(flags: Mapping[str, Any], name: str, parse: Callable[[str], T], none: T) -> T:
    """The text of a flag as ``parse`` reads it, ``none`` where it was not given; BadInput names the flag."""
    if flags.get(name) is None:
        return none
    try:
        return parse(flags[name])
    except BadInput as error:
        raise BadInput(f"--{name.replace('_', '-')} {error}") from None


def tokens(text: str) -> int:
    """``128K`` -> 131072; BadInput otherwise, and for over a billion."""
    found = parse_tokens(text)
    if found > MAX_TOKENS:
        raise BadInput(f"{text} is over the limit of {MAX_TOKENS:,} tokens of a request")
    return found


def seconds(text: str) -> float:
    """``2s`` -> 2.0; BadInput otherwise."""
    return parse_quantity(text, "_s")


def workload(flags: Mapping[str, Any]) -> ServeWorkload:
    """The trace, or made-up requests, with the arrivals that were asked for. BadInput when both, or neither, say what to serve."""
    _check_arrivals(flags)
    if flags["trace"] and (flags["isl"] or flags["osl"]):
        raise BadInput("--trace and --isl/--osl both say what the requests are; give one of them")
    n, rate, seed = flags["n_requests"], flags["rate"], flags["seed"]
    if flags["trace"]:
        if flags["length_cv"]:
            raise BadInput("--length-cv spreads the lengths of --isl and --osl, and a trace has its own; drop one of them")
        work = traces.read_trace(flags["trace"])
        work = arrivals.first_requests(work, n) if n else work
    else:
        if not (flags["isl"] and flags["osl"] and (rate or flags["concurrency"] or flags["burst"])):
            raise BadInput("no workload: give --trace FILE, or --isl N --osl N with --rate R, --concurrency C or --burst SIZE:GAP")
        n = n or 1000
        if n > MAX_MADE_UP:
            raise BadInput(f"--requests {n:,} is over the limit of {MAX_MADE_UP:,} for a made-up workload; give fewer, or a trace")
        spread = within(flags, "length_cv", 0, MAX_CV)
        prompt = arrivals.lengths(n, read(flags, "isl", tokens, 0), spread, seed)
        output = arrivals.lengths(n, read(flags, "osl", tokens, 0), spread, seed, arrivals.OUTPUT_STREAM)
        work = ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=prompt, output_tokens=output, source="made up")
    if flags["burst"]:
        return dataclasses.replace(work, arrival_s=_bursts(flags, len(work)))
    if rate is None:
        return work
    if flags["swing"]:
        period_s = read(flags, "period", seconds, arrivals.DAY_S)
        return dataclasses.replace(work, arrival_s=arrivals.diurnal(len(work), rate, flags["swing"], period_s, seed))
    return dataclasses.replace(work, arrival_s=arrivals.gamma(len(work), rate, flags["cv"], seed))


def within(flags: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number of a flag that must be from ``low`` to ``high``; BadInput names the flag (nan is never legal)."""
    value = float(flags[name])
    if not low <= value <= high:
        raise BadInput(f"--{name.replace('_', '-')} {value:g} must be from {show_number(low)} to {show_number(high)}")
    return value


def _check_arrivals(flags: Mapping[str, Any]) -> None:
    """BadInput where a flag says how requests arrive and another leaves it without a use, or where it is out of range."""
    given = [flag for flag in ("burst", "rate", "concurrency") if flags[flag] is not None]
    if len(given) > 1:
        raise BadInput(f"{' and '.join(f'--{flag}' for flag in given)} both say when requests come; give one of them")
    if flags["rate"] is not None:
        within(flags, "rate", 1e-6, 1e9)
    within(flags, "cv", 0.01, MAX_CV)
    within(flags, "swing", 0, 1)
    period_s = read(flags, "period", seconds, arrivals.DAY_S)
    if not 1 <= period_s <= 1e8:
        raise BadInput(f"--period {flags['period']} must be from 1s to 1e8s, like 24h")
    for flag, plain, what in (("cv", 1.0, "burstiness"), ("swing", 0.0, "daily swing")):
        if flags[flag] != plain and flags["rate"] is None:
            raise BadInput(f"--{flag} {flags[flag]:g} is the {what} of --rate; give a rate, or drop it")
    if flags["swing"] and flags["cv"] != 1.0:
        raise BadInput("--cv and --swing cannot be combined: requests of a swinging rate are Poisson; drop one of them")


def _bursts(flags: Mapping[str, Any], n: int) -> Floats64:
    """Arrivals of ``--burst SIZE:GAP``. BadInput says the form."""
    size, colon, gap = flags["burst"].partition(":")
    if not colon or not size.isdecimal() or not int(size[:12]) > 0 or len(size) > 12:
        raise BadInput(f"--burst {flags['burst'][:40]!r} is not SIZE:GAP with a size from 1 to 1e12, like 32:10s")
    gap_s = read({"burst": gap}, "burst", seconds, 0.0)
    if gap_s > MAX_ARRIVAL_S:
        raise BadInput(f"--burst {flags['burst'][:40]!r}: the gap must be at most {MAX_ARRIVAL_S:,.0f} s")
    return arrivals.burst(n, int(size), gap_s)


def engine_plan(flags: Mapping[str, Any], model: ModelSpec) -> EnginePlan:
    """How each replica runs; weights in the checkpoint's own formats unless others are asked for. Raises BadInput."""
    weights = flags["weight_dtype"] or model.weight_dtype
    plan = EnginePlan(
        weight_dtype=weights,
        expert_dtype=flags["expert_dtype"] or ("" if flags["weight_dtype"] else model.expert_dtype),
        policy=flags["policy"] or "",
        token_budget=read({"chunk": flags["token_budget"]}, "chunk", parse_tokens, 0),
        speculation=read_speculation(flags["speculation"]) if flags["speculation"] else None,
        kv_tiers=tuple(read_kv_tier(text) for text in flags["kv_tier"]),
        attention_ffn=AttentionFfnSplit(n_ffn_gpus=flags["ffn_gpus"]) if flags["ffn_gpus"] else None,
        **{name: flags[name] for name in PLAN_FLAGS},
    )
    check_layout(plan, model)
    return plan


def check_layout(plan: EnginePlan, model: ModelSpec) -> None:
    """BadInput where the model cannot be cut this way, or the plan speaks of experts or predicted tokens that it does not have."""
    if model.n_heads % plan.tp:
        legal = ", ".join(str(n) for n in range(1, model.n_heads + 1) if not model.n_heads % n)
        raise BadInput(f"--tp {plan.tp} does not divide the {model.n_heads} heads of {model.name}; legal: {legal}")
    if plan.pp > model.n_layers:
        raise BadInput(f"--pp {plan.pp} is over the {model.n_layers} layers of {model.name}; give each stage a layer")
    if plan.speculation:
        check_draft(plan.speculation, model)
    experts = {
        "ep": plan.ep > 1,
        "expert-skew": plan.expert_skew,
        "redundant-experts": plan.redundant_experts,
        "experts": plan.expert_dtype,
    }
    useless = [flag for flag, value in experts.items() if value and not model.n_experts]
    if useless:
        raise BadInput(f"--{useless[0]} is for models with experts, and {model.name} has none; drop it")


def check_draft(speculation: Speculation, model: ModelSpec) -> None:
    """BadInput where the model predicts no tokens itself though it should, or the draft is unknown or as large as the model."""
    if speculation.method == "mtp" and not model.n_mtp_layers:
        raise BadInput(
            f"--speculation mtp: {model.name} has no multi-token-prediction layers; use chain with a draft model, "
            "like chain:3:0.7:draft=llama3.2-1b"
        )
    if speculation.draft_model:
        draft = registry.model(speculation.draft_model)
        sizes = count_params(draft).total, count_params(model).total
        if sizes[0] >= sizes[1]:
            raise BadInput(
                f"--speculation draft={draft.name} has {sizes[0] / 1e9:,.1f} billion parameters and {model.name} {sizes[1] / 1e9:,.1f}; "
                "a draft must be smaller"
            )


def deployment(flags: Mapping[str, Any], plan: EnginePlan, cluster: Cluster) -> Deployment:
    """As many replicas as the cluster holds: ``--prefill`` of them only prefill, with ``--prefill-tp`` GPUs each where that is given.

    Raises BadInput when the GPUs are not a whole number of replicas.
    """
    n_prefill, prefill = flags["n_prefill"], None
    if flags["prefill_tp"] and not n_prefill:
        raise BadInput("--prefill-tp is the width of replicas that only prefill; say how many with --prefill")
    if flags["kv_overlap"] and not n_prefill:
        raise BadInput("--kv-overlap hides transfers from replicas that only prefill; say how many with --prefill, or drop it")
    if flags["prefill_sm"] and not MIN_SM_FRAC <= flags["prefill_sm"] <= 1 - MIN_SM_FRAC:
        raise BadInput(f"--prefill-sm {flags['prefill_sm']:g} must be from {MIN_SM_FRAC} to {1 - MIN_SM_FRAC}, or 0 for no split")
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
        ffn = f", {flags['ffn_gpus']} for the FFN" if flags["ffn_gpus"] else ""
        rest = f" ({cluster.n_gpus} less {n_prefill} x {(prefill or plan).n_gpus} that prefill)" if n_prefill else ""
        raise BadInput(
            f"gpus={left}{rest} is not a whole number of replicas of {plan.n_gpus} GPUs (tp={plan.tp}, pp={plan.pp}, dp={plan.dp}, "
            f"cp={plan.cp}{ffn}); give a multiple of {plan.n_gpus}"
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
    """The clients of a closed loop, or None where requests arrive by themselves. BadInput when nobody is there to think."""
    if not flags["concurrency"]:
        if flags["think"]:
            raise BadInput("--think is the pause of clients that wait for their answers; say how many with --concurrency")
        return None
    return Clients(n_clients=flags["concurrency"], think_s=read(flags, "think", seconds, 0.0))


def window(text: str | None) -> tuple[float, float] | None:
    """``10s..20s`` in seconds; None when not given. BadInput says the form."""
    if text is None:
        return None
    low, dots, high = text.partition("..")
    if not dots:
        raise BadInput(f"--window {text[:40]!r} is not FROM..TO, like 10s..20s")
    ends = {"window": low}, {"window": high}
    first, last = (read(end, "window", seconds, 0.0) for end in ends)
    if not first < last:
        raise BadInput(f"--window {text[:40]!r} must end after its start, like 10s..20s")
    return first, last
