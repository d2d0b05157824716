"""Plans serving: every legal layout bounded in closed form, the best ones played in the simulator to their goodput."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..costmodels.serving_memory import ServeMemory
from ..costmodels.serving_ops import ServeSystem, serve_system
from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServeWorkload, serving_engine
from ..sim.arrivals import poisson
from ..sim.serving import ReplicaModel, replica_model, simulate_serving
from ..sim.serving_metrics import Slo, attained, latencies, saturation

ATTAIN_FRAC = 0.95
"""Share of requests that must keep the promised latencies at the goodput."""
SIMULATED = 6
"""Layouts that are played after the closed-form bound has ranked all."""
BUDGETS = (2048, 8192)
REQUESTS = 400
ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeAsk:
    """What to serve: prompts and answers of these lengths, under these promises, on this cluster. BadInput when the context is too long."""

    model: ModelSpec
    gpu: Accelerator
    cluster: Cluster
    prompt_tokens: int
    output_tokens: int
    slo: Slo
    allow_quant: bool = False
    engine: str = "vllm"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)} must be at least 1")
        context = self.prompt_tokens + self.output_tokens
        if context > self.model.max_seq_tokens:
            raise BadInput(
                f"isl + osl = {context:,} tokens is over the {self.model.max_seq_tokens:,} that {self.model.name} was made for; "
                "shorten them or choose a model with a longer context"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeChoice:
    """One layout and what it carries: requests a second within the promises, over all GPUs, and latencies at that rate."""

    plan: EnginePlan
    n_replicas: int
    n_prefill: int
    bound_per_s: float
    goodput_per_s: float
    ttft_s: float
    tpot_s: float
    output_tokens_per_s_per_gpu: float
    usd_per_mtoken: float
    memory: ServeMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeDecision:
    """Choices best first, how many layouts were bounded, and why the others fell: (reason, how many, example)."""

    choices: tuple[ServeChoice, ...]
    n_candidates: int
    n_simulated: int
    rejected: tuple[tuple[str, int, str], ...]


def plan_serving(ask: ServeAsk, top: int = 5) -> ServeDecision:
    """The layouts with the highest goodput, best first; empty when none keeps the promises (``rejected`` says which limit failed)."""
    system = serve_system(ask.cluster, serving_engine(ask.engine))
    rejected: dict[str, list[str]] = {}
    bounded: list[tuple[float, EnginePlan, int, ReplicaModel]] = []
    n = 0
    for plan in layouts(ask):
        n += 1
        label = describe(plan, 0)
        try:
            kind = replica_model(ask.model, plan, system, one_request(ask))
        except BadInput as error:
            rejected.setdefault("memory" if "no room" in str(error) else "limits", []).append(f"{label}: {error}")
            continue
        bound, why = rate_bound(ask, plan, kind)
        if not bound:
            rejected.setdefault(why.partition(":")[0], []).append(f"{label}: {why}")
            continue
        replicas = ask.cluster.n_gpus // plan.n_gpus
        bounded.append((bound * replicas, plan, 0, kind))
        bounded += [(bound * replicas, plan, p, kind) for p in pool_splits(ask, kind, replicas)]
    bounded.sort(key=lambda item: -item[0])
    found = [choice for item in bounded[:SIMULATED] if (choice := _played(ask, system, *item)) is not None]
    if len(bounded) > SIMULATED:
        rejected["bound"] = [f"{describe(p, k)}: at most {b:.3g} requests/s" for b, p, k, _ in bounded[SIMULATED:]]
    missed = min(len(bounded), SIMULATED) - len(found)
    if missed:
        rejected["promises"] = [f"{missed} layouts keep them for under {ATTAIN_FRAC:.0%} of requests at any rate"] * missed
    found.sort(key=lambda c: (-c.goodput_per_s, c.plan.tp, c.n_prefill))
    return ServeDecision(
        choices=tuple(found[:top]),
        n_candidates=n,
        n_simulated=min(len(bounded), SIMULATED),
        rejected=tuple((reason, len(cases), cases[0]) for reason, cases in rejected.items()),
    )


def layouts(ask: ServeAsk) -> Iterator[EnginePlan]:
    """Every tensor width that divides the heads and fits a node, both token budgets, experts split or spread, formats that are allowed."""
    formats = [("bf16", "bf16")]
    if ask.allow_quant and ask.gpu.fp8_flops_per_s > 0:
        formats += [("fp8", "bf16"), ("fp8", "fp8")]
    for tp in range(1, ask.cluster.gpus_per_node + 1):
        whole_heads = ask.model.n_heads % tp == 0 and (ask.model.n_kv_heads % tp == 0 or tp % ask.model.n_kv_heads == 0)
        if ask.cluster.n_gpus % tp or not whole_heads:
            continue
        for ep in {1, tp} if ask.model.n_experts and ask.model.n_experts % tp == 0 else {1}:
            for weights, kv in formats:
                for budget in BUDGETS:
                    yield EnginePlan(
                        tp=tp, ep=ep, weight_dtype=weights, kv_dtype=kv, engine=ask.engine, token_budget=budget, max_num_seqs=256
                    )


def one_request(ask: ServeAsk, n: int = 1) -> ServeWorkload:
    """``n`` equal requests at time 0."""
    ones = np.ones(n, np.int64)
    return ServeWorkload(arrival_s=np.zeros(n), prompt_tokens=ask.prompt_tokens * ones, output_tokens=ask.output_tokens * ones)


def rate_bound(ask: ServeAsk, plan: EnginePlan, kind: ReplicaModel) -> tuple[float, str]:
    """Requests a second that no schedule on one replica can exceed, or (0, which limit fails).

    ``min(1/work, B/(osl·step(B)))``: work is the least time one request's tokens can take (its share of the cheapest step per token,
    its attention), and by Little's law at most ``B`` requests stay at least ``osl`` steps of a batch of ``B``, the largest that fits
    the KV pool, the seats and the promised time per token.
    """
    t, limits = kind.times, kind.limits
    isl, osl = ask.prompt_tokens, ask.output_tokens
    fits = limits.blocks // -(-(isl + osl - 1) // limits.block_tokens)
    if fits < 1:
        return 0.0, f"memory: {isl + osl:,} tokens are more than the {limits.blocks * limits.block_tokens:,} of the KV pool"
    chunks = [min(limits.budget, isl - past) for past in range(0, isl, limits.budget)]
    prefill = sum(t.prefill[c] + t.prefill_slope[c] * past for c, past in zip(chunks, range(0, isl, limits.budget), strict=True))
    alone_s = (prefill + sum(t.linear[c] for c in chunks)) / PS
    if alone_s > ask.slo.ttft_s:
        return (
            0.0,
            f"ttft: the prompt alone takes {alone_s:.3g} s of the promised {ask.slo.ttft_s:.3g} s",
        )
    kv = isl + osl // 2
    seats = min(limits.max_seqs, fits)
    batch = next((b for b in range(seats, 0, -1) if t.step_ps(b, b * kv, []) / PS <= ask.slo.tpot_s), 0)
    if not batch:
        return 0.0, f"tpot: one token takes {t.step_ps(1, kv, []) / PS:.3g} s of the promised {ask.slo.tpot_s:.3g} s"
    cheapest = min(t.linear[n] / n for n in range(1, limits.budget + 1))
    work = (isl + osl - 1) * cheapest + prefill + (osl - 1) * min(t.decode_slope[1 : batch + 1]) * kv
    stay = max(osl - 1, 1) * t.step_ps(batch, batch * kv, [])
    return min(1 / work, batch / stay) * PS, ""


def pool_splits(ask: ServeAsk, kind: ReplicaModel, replicas: int) -> set[int]:
    """Prefill replicas of a disaggregated cluster: the two whole numbers around prefill's share of the work."""
    if replicas < 2:
        return set()
    t, isl, osl = kind.times, ask.prompt_tokens, ask.output_tokens
    c = min(kind.limits.budget, isl)
    prefill = isl / c * (t.linear[c] + t.prefill[c] + t.prefill_slope[c] * isl / 2)
    batch = 64
    decode = osl * t.step_ps(batch, batch * (isl + osl // 2), []) / batch
    share = replicas * prefill / (prefill + decode)
    return {min(max(int(share) + extra, 1), replicas - 1) for extra in (0, 1)}


def _played(ask: ServeAsk, system: ServeSystem, bound: float, plan: EnginePlan, n_prefill: int, kind: ReplicaModel) -> ServeChoice | None:
    """Bisect the rate up to the bound; one replica stands for equal ones (a Poisson stream split at random is Poisson again)."""
    replicas = ask.cluster.n_gpus // plan.n_gpus
    share = 1 if n_prefill else replicas
    cluster = ask.cluster.with_gpus(ask.cluster.n_gpus // share)
    shape = one_request(ask, REQUESTS * (replicas if n_prefill else 1))
    low, high, best = 0.0, bound / share, None
    for turn in range(ROUNDS):
        rate = (low + high) / 2 if turn else high * 0.7
        work = replace(shape, arrival_s=poisson(len(shape), rate))
        result = simulate_serving(ask.model, cluster, plan, work, n_prefill=n_prefill, engine=system.engine, kind=kind)
        if attained(result, ask.slo).mean() >= ATTAIN_FRAC and not saturation(result)["saturated"]:
            low, best = rate, result
        else:
            high = rate
    if best is None:
        return None
    found = latencies(best)
    per_gpu = low * share * ask.output_tokens / ask.cluster.n_gpus
    return ServeChoice(
        plan=plan,
        n_replicas=replicas,
        n_prefill=n_prefill,
        bound_per_s=bound,
        goodput_per_s=low * share,
        ttft_s=float(found["ttft_s"].mean()),
        tpot_s=float(found["tpot_s"].mean()) if len(found["tpot_s"]) else 0.0,
        output_tokens_per_s_per_gpu=per_gpu,
        usd_per_mtoken=ask.cluster.on_demand_usd_per_h / 3600 / per_gpu * 1e6,
        memory=best.memory,
    )


def describe(plan: EnginePlan, n_prefill: int) -> str:
    """A layout in a few words."""
    words = [f"tp={plan.tp}"] + ([f"ep={plan.ep}"] if plan.ep > 1 else []) + [plan.weight_dtype, f"budget {plan.token_budget}"]
    return " ".join(words + ([f"{n_prefill} prefill"] if n_prefill else []))
