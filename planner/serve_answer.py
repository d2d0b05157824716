"""The stable JSON of ``plan --task serve --json``: a serving decision as plain numbers, text and lists."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .. import __version__
from ..costmodels.serving_memory import ServeMemory
from ..scenarios.serving import EnginePlan
from ..scenarios.units import show_number, show_tokens
from .serve_ask import ServeAsk
from .serve_search import ServeChoice, ServeDecision, ServePart
from .serve_space import describe
from .serve_why import bottleneck, error_frac, limit_sentence, notes, why

LAYOUT = (
    "tp", "pp", "dp", "cp", "ep", "weight_dtype", "expert_dtype", "kv_dtype", "token_budget", "max_num_seqs", "preemption",
    "prefix_cache", "engine",
)  # fmt: skip
"""Fields of the engine plan that the JSON form names as the layout."""


def as_json(ask: ServeAsk, decision: ServeDecision, kept: list[ServeChoice], nearest: list[str], wall_s: float) -> dict[str, Any]:
    """Everything the command has to say. When nothing is kept ``binding_limit`` is what felled most and ``nearest`` says what would fit."""
    rejected: list[dict[str, Any]] = [{"reason": reason, "count": n, "example": example} for reason, n, example in decision.rejected]
    short = [c for c in decision.choices if c not in kept]
    if short:
        best = max(c.goodput_per_s for c in short)
        rejected.append(
            {
                "reason": "rate",
                "count": len(short),
                "example": f"the best carries {show_number(best, 4)} of {show_number(ask.rate_per_s, 4)} requests/s",
            }
        )
    limit = limit_sentence(ask, decision, kept, rejected)
    return {
        "scenario": scenario(ask),
        "plans": [plan_json(ask, decision, choice, rank) for rank, choice in enumerate(kept, 1)],
        "rejected": rejected,
        "binding_limit": limit[0],
        "binding": {"limit": limit[0], "sentence": limit[1]},
        "why": why(ask, decision, kept),
        "compared": [],
        "nearest": nearest,
        "n_gpus_needed": decision.n_gpus_needed or None,
        "solver": solver(decision, wall_s),
        "notes": notes(ask, decision, kept),
        "provenance": _provenance(ask, decision, wall_s),
    }


def scenario(ask: ServeAsk) -> dict[str, Any]:
    """What was asked; latencies not promised, loads not asked for and options not used are null."""
    promised = {name: value if (value := getattr(ask.slo, name)) < math.inf else None for name in ("ttft_s", "tpot_s")}
    return {
        "task": "serve", "model": ask.model.name, "gpu": ask.gpu.name, "cluster": ask.cluster.name, "n_gpus": ask.cluster.n_gpus,
        "gpus_per_node": ask.cluster.gpus_per_node, "isl_tokens": ask.prompt_tokens, "osl_tokens": ask.output_tokens,
        "context_tokens": ask.context_tokens, **promised, "objective": ask.objective, "rate_per_s": ask.rate_per_s or None,
        "concurrency": ask.concurrency or None, "trace": ask.trace.source if ask.trace else None,
        "n_requests": len(ask.trace) if ask.trace else None, "engine": ask.engine, "allow": ["quant"] if ask.allow_quant else [],
        "expert_skew": ask.expert_skew,
        "rope_scaling": dataclasses.asdict(ask.rope) | {"original_max_tokens": ask.model.max_seq_tokens} if ask.rope else None,
        "speculation": dataclasses.asdict(ask.speculation) if ask.speculation else None,
        "price_usd_per_h": ask.cluster.on_demand_usd_per_h,
    }  # fmt: skip


def solver(decision: ServeDecision, wall_s: float) -> dict[str, Any]:
    """How the answer was found and what is proved of it."""
    proof = decision.proof
    done = proof.gap_frac <= 0.01
    sentence = (
        f"no fleet of the {proof.n_bounded:,} replicas and groups bounded carries more than "
        f"{show_number(proof.bound_per_s, 4)} requests/s: "
        f"by their closed-form bounds, and by the simulator, under one draw of arrivals, for the {proof.n_simulated:,} that were played"
    )
    return {
        "name": "closed-form bounds, bisection in the simulator, HiGHS", "status": "optimal" if done else "gap left", "proved": sentence,
        "gap_frac": proof.gap_frac, "bound_per_s": proof.bound_per_s, "n_candidates": decision.n_candidates, "n_bounded": proof.n_bounded,
        "n_simulated": proof.n_simulated, "n_runs": proof.n_runs, "wall_s": wall_s,
    }  # fmt: skip


def layout(plan: EnginePlan) -> dict[str, Any]:
    """The engine plan's degrees, formats and limits; tiers and speculation where it has them."""
    out: dict[str, Any] = {name: getattr(plan, name) for name in LAYOUT}
    out["kv_tiers"] = [dataclasses.asdict(tier) for tier in plan.kv_tiers]
    out["speculation"] = dataclasses.asdict(plan.speculation) if plan.speculation else None
    return out


def plan_json(ask: ServeAsk, decision: ServeDecision, choice: ServeChoice, rank: int) -> dict[str, Any]:
    """One fleet. Latencies and cost are at ``load_per_s``: the asked rate, or the goodput."""
    first = choice.parts[0]
    needed = _needed(ask.rate_per_s, choice)
    seen = choice.seen
    return {
        "rank": rank,
        "n_gpus": choice.n_gpus,
        "layout": layout(choice.plan),
        "prefill_layout": layout(first.deployment.prefill_plan) if first.deployment.n_prefill else None,
        "pools": pools(first),
        "parts": [_part(part) for part in choice.parts] if len(choice.parts) > 1 else [],
        "summary": summary(choice),
        "goodput_per_s": choice.goodput_per_s,
        "draws": draws(choice),
        "bound_per_s": choice.bound_per_s,
        "load_per_s": choice.load_per_s,
        "ttft_s": seen.ttft_s,
        "tpot_s": seen.tpot_s,
        "e2e_s": seen.e2e_s,
        "ttft_p95_s": seen.ttft_p95_s,
        "tpot_p95_s": seen.tpot_p95_s,
        "output_tokens_per_s_per_gpu": choice.output_tokens_per_s_per_gpu,
        "n_gpus_for_rate": needed,
        "memory": memory_json(choice.memory, ask, choice.plan),
        "cache_hit_frac": seen.cache_hit_frac,
        "preemptions": seen.n_preempted,
        "fails_first": choice.limit,
        "bottleneck": bottleneck(ask, decision, choice),
        "cost_usd_per_mtoken": choice.usd_per_mtoken,
        "error_frac": error_frac(ask, decision)["throughput"],
        "errors": {f"{name}_error_frac": value for name, value in error_frac(ask, decision).items()},
    }


def draws(choice: ServeChoice) -> dict[str, Any] | None:
    """How far the goodput rests on one draw of arrivals: draws played, those that carry it, and what the worst and the first carry."""
    found = choice.drawn_per_s
    if not found:
        return None
    kept = sum(rate >= choice.goodput_per_s * (1 - 1e-9) for rate in found)
    return {"n": len(found), "kept": kept, "lowest_per_s": min(found), "first_per_s": found[0]}


def pools(part: ServePart) -> dict[str, int]:
    """Replicas by what they do."""
    deployment = part.deployment
    if deployment.n_prefill:
        return {"prefill": deployment.n_prefill, "decode": deployment.n_replicas}
    return {"mixed": deployment.n_replicas}


def summary(choice: ServeChoice) -> str:
    """A fleet in a few words, replicas of each layout."""
    return "; ".join(_words(part) for part in choice.parts)


def _words(part: ServePart) -> str:
    deployment = part.deployment
    if not deployment.n_prefill:
        return f"{deployment.n_replicas} x ({describe(deployment.plan)})"
    first, second = describe(deployment.prefill_plan), describe(deployment.plan)
    return f"{deployment.n_prefill} prefill ({first}) + {deployment.n_replicas} decode ({second})"


def _part(part: ServePart) -> dict[str, Any]:
    deployment = part.deployment
    return {
        "layout": layout(deployment.plan),
        "prefill_layout": layout(deployment.prefill_plan) if deployment.n_prefill else None,
        "pools": pools(part),
        "n_gpus": deployment.n_gpus,
        "goodput_per_s": part.copies * part.played.goodput_per_s,
    }


def _needed(rate_per_s: float, choice: ServeChoice) -> int | None:
    """GPUs of as many copies of the first part as carry the rate."""
    if not rate_per_s:
        return None
    part = choice.parts[0]
    return math.ceil(rate_per_s / part.played.goodput_per_s - 1e-9) * part.played.candidate.n_gpus


def memory_json(memory: ServeMemory, ask: ServeAsk, plan: EnginePlan) -> dict[str, float]:
    """Bytes on the fullest GPU of a replica; ``host_bytes`` are those of KV tiers in host memory, per node."""
    parts = {name: getattr(memory, f"{name}_bytes") for name in ("weights", "activations", "context", "states", "kv")}
    hosted = sum(tier.capacity_bytes for tier in plan.kv_tiers if tier.name == "host") / plan.n_gpus
    return {f"{name}_bytes": value for name, value in parts.items()} | {
        "total_bytes": math.fsum(parts.values()), "limit_bytes": memory.limit_bytes, "kv_bytes_per_token": memory.kv_bytes_per_token,
        "host_bytes": hosted * ask.cluster.gpus_on_host,
    }  # fmt: skip


def _provenance(ask: ServeAsk, decision: ServeDecision, wall_s: float) -> dict[str, Any]:
    calibration = decision.system.roofline.calibration
    return {
        "roofplan": __version__, "calibration": calibration.name, "calibration_transferred_from": calibration.transferred_from,
        "engine": ask.engine, "wall_s": wall_s, "longest": show_tokens(ask.context_tokens),
    }  # fmt: skip
