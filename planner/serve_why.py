"""Sentences about a serving decision: what binds, why the runners-up lost, how far to trust the numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ..costmodels.serving_context import spread
from ..costmodels.serving_layers import layers_s
from ..costmodels.serving_ops import messages_s
from ..scenarios.serving import EnginePlan
from ..scenarios.units import show_number, show_tokens
from .serve_ask import ServeAsk
from .serve_bound import ATTAIN_FRAC
from .serve_search import ServeChoice, ServeDecision

MEASURED_PROMPT_TOKENS = 16_384
"""Attention kernels were measured on prompts up to this long; beyond it their rate is held."""
PROMISES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "latency"}


def limit_sentence(ask: ServeAsk, decision: ServeDecision, kept: list[ServeChoice], rejected: list[dict[str, Any]]) -> tuple[str, str]:
    """(limit, sentence): what fails first when the winner's load grows, or what felled most candidates where nothing is kept."""
    if kept:
        return _binding(ask, decision, kept[0])
    if decision.choices:
        best = max(c.goodput_per_s for c in decision.choices)
        return "rate", f"the best fleet carries {show_number(best, 4)} of the {show_number(ask.rate_per_s, 4)} requests/s"
    causes = [row for row in rejected if row["reason"] not in ("layout", "bound", "unplayed")] or rejected
    if not causes:
        return "layouts", "no layout is legal"
    worst = max(causes, key=lambda row: int(row["count"]))
    return str(worst["reason"]), str(worst["example"])


def _binding(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice) -> tuple[str, str]:
    name, seen = winner.limit, winner.seen
    if seen.n_preempted:
        return "hbm", f"HBM: the KV cache is full and {seen.n_preempted:,} requests were preempted"
    if name in PROMISES:
        value = getattr(seen, f"{name}_p95_s") if name != "e2e" else seen.e2e_s
        promised = show_s(getattr(ask.slo, f"{name}_s"))
        kept = f"{ATTAIN_FRAC:.0%} of requests see {show_s(value)} or less at {show_number(winner.load_per_s, 4)} requests/s"
        return name, f"{PROMISES[name]}: {kept}; it passes {promised} first when the load grows"
    if name == "load":
        return name, f"the load: {ask.concurrency:,} clients wait for their answers" if ask.concurrency else "the load that was asked for"
    where = bottleneck(ask, decision, winner)
    return where, f"{where.replace('_', ' ')}: more requests than {show_number(winner.goodput_per_s, 4)}/s would queue without end"


def bottleneck(ask: ServeAsk, decision: ServeDecision, choice: ServeChoice) -> str:
    """What takes most of the first part's time: messages between GPUs, or the pool or phase with the lowest bound."""
    candidate = choice.parts[0].played.candidate
    if messages_frac(ask, decision, (candidate.prefill or candidate.serve).plan) > 0.5:
        return "links"
    decode = candidate.serve.bounds.decode_per_s
    if candidate.prefill is not None:
        prefill = candidate.n_prefill * candidate.prefill.bounds.prefill_per_s
        return "prefill_compute" if prefill < candidate.n_decode * decode else "decode_bandwidth"
    return "prefill_compute" if candidate.serve.bounds.prefill_per_s < decode else "decode_bandwidth"


def messages_frac(ask: ServeAsk, decision: ServeDecision, plan: EnginePlan) -> float:
    """Part of a full step's time, attention over the cache left out, that its messages take: ``n_layers·messages / layers``."""
    system, wide = decision.system, dataclasses.replace(spread(plan), pp=1)  # a micro-batch passes all layers
    tokens = np.array([float(plan.token_budget)])
    per_rank = np.ceil(tokens / wide.dp)
    messages = ask.model.n_layers * messages_s(ask.model, wide, system, per_rank, ask.model.n_experts > 0)
    return float((messages / layers_s(ask.model, wide, system, tokens))[0])


def why(ask: ServeAsk, decision: ServeDecision, kept: list[ServeChoice]) -> list[str]:
    """One sentence on the winner and one per runner-up on what it loses to."""
    if not kept:
        return []
    winner = kept[0]
    head = f"rank 1 is limited by {_limit(ask, decision, winner)}"
    if drawn := winner.drawn_per_s:
        n = sum(rate >= winner.goodput_per_s * (1 - 1e-9) for rate in drawn)
        head += f"; {n} of {len(drawn)} draws of arrivals keep its rate"
        head += f", all keep {show_number(min(drawn), 4)} requests/s" if n < len(drawn) else ""
    return [head] + [why_lost(ask, decision, winner, other, rank) for rank, other in enumerate(kept[1:], 2)]


def why_lost(ask: ServeAsk, decision: ServeDecision, winner: ServeChoice, other: ServeChoice, rank: int) -> str:
    """``rank 3 carries 5.8 % less: time per output token fails first``; what the objective counts comes first."""
    if ask.objective == "latency":
        return f"rank {rank} answers {show_s(other.seen.e2e_s - winner.seen.e2e_s)} later"
    if ask.objective == "cost" and other.n_gpus / other.load_per_s > winner.n_gpus / winner.load_per_s * 1.0005:
        more = other.n_gpus / other.load_per_s / (winner.n_gpus / winner.load_per_s) - 1
        return f"rank {rank} costs {more:.1%} more per token on {other.n_gpus} GPUs"
    less = 1 - other.goodput_per_s / winner.goodput_per_s
    if less > 0.0005:
        return f"rank {rank} carries {less:.1%} less: limited by {_limit(ask, decision, other)}"
    later = other.seen.e2e_s - winner.seen.e2e_s
    return f"rank {rank} carries as much, {show_s(abs(later))} {'later' if later >= 0 else 'sooner'}"


def _limit(ask: ServeAsk, decision: ServeDecision, choice: ServeChoice) -> str:
    if choice.seen.n_preempted:
        return "KV memory"
    if choice.limit == "load":
        return "its load"
    return PROMISES.get(choice.limit) or bottleneck(ask, decision, choice).replace("_", " ")


def error_frac(ask: ServeAsk, decision: ServeDecision) -> dict[str, float]:
    """Expected relative error of throughput, TTFT and TPOT: the engine's on measured serving runs and the kernels', in quadrature."""
    system = decision.system
    kernels = system.roofline.error_frac("gemm.bf16")
    engine = system.engine
    return {
        "throughput": math.hypot(kernels, engine.throughput_error_frac), "ttft": math.hypot(kernels, engine.ttft_error_frac),
        "tpot": math.hypot(kernels, engine.tpot_error_frac),
    }  # fmt: skip


def notes(ask: ServeAsk, decision: ServeDecision, kept: list[ServeChoice]) -> list[str]:
    """What the user should know about the question and the answer."""
    out = []
    if ask.rope:
        out.append(
            f"{ask.model.name} was made for {show_tokens(ask.model.max_seq_tokens)}; its positions are stretched {ask.rope.factor:g} times "
            f"({ask.rope.kind}): check its answers at {show_tokens(ask.context_tokens)}"
        )
    lender = decision.system.roofline.calibration.transferred_from
    if lender:
        out.append(f"efficiencies are borrowed from {lender}: no kernels of {ask.gpu.name} were measured")
    if ask.context_tokens > MEASURED_PROMPT_TOKENS:
        out.append(f"contexts over {MEASURED_PROMPT_TOKENS:,} tokens are beyond what was measured: attention holds the rate it has there")
    if ask.speculation:
        guess = ask.speculation
        cost = (
            f"priced as {guess.draft_model}"
            if guess.draft_model
            else f"taken as {guess.draft_frac:.0%} of a one-token step (draft=MODEL prices it)"
        )
        out.append(f"an acceptance of {guess.accept_frac:g} a guess is the user's: measure it on real text; drafting a token is {cost}")
    return out


def show_s(value: float) -> str:
    """Seconds with three digits."""
    return f"{show_number(value * 1e3)} ms" if value < 1 else f"{show_number(value)} s"
