"""Every way to lay one serving replica out over GPUs: tensor, pipeline, attention data, expert and context parallelism, formats, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ..scenarios.registry import link
from ..scenarios.serving import EnginePlan
from ..scenarios.serving_parts import KvTier, Speculation
from .serve_ask import ServeAsk

BUDGETS = (512, 1024, 2048, 4096, 8192)
LONG_BUDGETS = (2048, 8192, 32_768)
PREFILL_BUDGET, LONG_PREFILL_BUDGET = 8192, 32_768
SEATS = 256
MANY_SEATS = 1024
"""Sequences of a step of one attention rank: vLLM's default, and what is also tried where the KV pool holds more."""
MAX_REPLICA_GPUS = 64
HOST_KV_FRAC = 0.5
"""Part of the host's memory that may hold KV blocks; the rest is the engine's, the file cache's and the system's."""


def parallel(ask: ServeAsk) -> Iterator[tuple[EnginePlan, str]]:
    """Every (tp, pp, dp, cp, ep) of at most the cluster's GPUs with '' or the rule it breaks, as a sentence."""
    largest = min(ask.cluster.n_gpus, MAX_REPLICA_GPUS)
    sizes = [n for n in range(1, largest + 1) if largest % n == 0 or n & (n - 1) == 0]
    for tp in range(1, min(ask.cluster.gpus_per_node, largest) + 1):
        for pp in sizes:
            for dp in sizes if ask.model.n_experts else (1,):
                for cp in sizes if ask.long_prompts and not ask.model.special_layers else (1,):
                    if tp * pp * dp * cp > largest or (pp > 1) + (dp > 1) + (cp > 1) > 1:
                        continue
                    n = tp * pp * dp * cp
                    for ep in sorted({1, n}) if ask.model.n_experts and pp == 1 else (1,):
                        plan = EnginePlan(tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, engine=ask.engine, expert_skew=ask.expert_skew)
                        yield plan, broken_rule(ask, plan)


def broken_rule(ask: ServeAsk, plan: EnginePlan) -> str:
    """The first rule a layout breaks, or ''.

    tp divides the query heads, the key heads of recurrent states, and the KV heads or is a multiple of them; experts divide over ep, or
    their width over all GPUs; stages have a layer each and cross nodes, or join GPUs without NVLink; a replica fills an equal part of a
    node or whole nodes.
    Source for pipelines: vLLM documentation, "Parallelism and Scaling" (tp inside a node, pp across nodes or without NVLink).
    """
    m, node = ask.model, ask.cluster.gpus_per_node
    if m.n_heads % plan.tp:
        return f"tp={plan.tp} does not divide n_heads={m.n_heads} of {m.name}"
    if not m.is_mla and m.n_kv_heads % plan.tp and plan.tp % m.n_kv_heads:
        return f"tp={plan.tp} neither divides n_kv_heads={m.n_kv_heads} of {m.name} nor is a multiple of it"
    if m.n_linear_layers and m.linear_key_heads % plan.tp:
        return f"tp={plan.tp} does not divide linear_key_heads={m.linear_key_heads} of {m.name}"
    if m.n_moe_layers < m.n_layers and m.ffn_hidden % plan.tp:
        return f"tp={plan.tp} does not divide ffn_hidden={m.ffn_hidden} of {m.name}"
    if plan.pp > m.n_layers:
        return f"pp={plan.pp} is more than the n_layers={m.n_layers} of {m.name}"
    if plan.ep > 1 and m.n_experts % plan.ep:
        return f"ep={plan.ep} does not divide n_experts={m.n_experts} of {m.name}"
    if plan.ep == 1 and m.n_experts and m.moe_ffn_hidden % (plan.tp * plan.dp * plan.cp):
        return f"tp*dp*cp={plan.tp * plan.dp * plan.cp} does not divide moe_ffn_hidden={m.moe_ffn_hidden} of {m.name}"
    n = plan.n_gpus
    if plan.pp > max(n // node, 1) and _fast_links(ask) and not m.n_heads % (2 * plan.tp):
        return f"pp={plan.pp} makes stages inside a node with NVLink: wider tp does the same without pipeline bubbles"
    if (n < node and node % n) or (n > node and n % node):
        return f"a replica of {n} GPUs neither divides a node of {node} nor fills whole nodes"
    return ""


def _fast_links(ask: ServeAsk) -> bool:
    return link(ask.cluster.intra).kind.startswith("nvlink")


def formats(ask: ServeAsk) -> list[tuple[str, str, str]]:
    """(weights, experts, KV) formats: the checkpoint's own with a 16-bit cache; under ``--allow quant`` also fewer bits.

    Fewer bits are what the card multiplies (experts in scaled blocks, as MoE checkpoints are published), or 4-bit weights where it has no
    8-bit floats. Experts '' are in the weights' format.
    """
    own = (ask.model.weight_dtype, ask.model.expert_dtype)
    found = [(*own, "bf16")]
    if not ask.allow_quant:
        return found
    if ask.gpu.fp8_flops_per_s <= 0:
        return [*found, ("int4", "", "bf16")] if own == ("bf16", "") else found
    eight = "fp8_block" if ask.model.n_experts else "fp8"
    found += [(*own, "fp8")] if own != ("bf16", "") else [(eight, "", "bf16"), (eight, "", "fp8")]
    return [*found, ("nvfp4", "", "fp8")] if ask.gpu.fp4_flops_per_s > 0 else found


def options(ask: ServeAsk, plan: EnginePlan) -> Iterator[EnginePlan]:
    """A layout in every allowed format, with the workload's prefix cache, host tier, expert copies and speculation on and off.

    Recurrent states are not found again by prefix here, so models that have them run without.
    """
    hashed = ask.hashed and not ask.model.n_linear_layers
    for weights, experts, kv in formats(ask):
        base = dataclasses.replace(plan, weight_dtype=weights, expert_dtype=experts, kv_dtype=kv)
        caches = [dataclasses.replace(base, prefix_cache=True)] if hashed else [base]
        caches += [dataclasses.replace(c, kv_tiers=(tier,)) for c in caches if hashed and (tier := host_tier(ask, plan)) is not None]
        if ask.expert_skew and plan.ep > 1:
            caches += [dataclasses.replace(c, redundant_experts=plan.ep) for c in caches]
        yield from caches
        if ask.speculation is not None:
            yield from (dataclasses.replace(c, speculation=ask.speculation) for c in caches)


def one_pair(first: EnginePlan, second: EnginePlan) -> bool:
    """Whether the second layout may go on from the first's KV: equal formats, and a draft on both or on neither.

    A draft has a cache of its own, which prompts have to pass through; vLLM and SGLang want the same speculation on both sides.
    """
    same = all(getattr(first, name) == getattr(second, name) for name in ("weight_dtype", "experts_in", "kv_dtype"))
    return same and (first.speculation is None) == (second.speculation is None)


def host_tier(ask: ServeAsk, plan: EnginePlan) -> KvTier | None:
    """The host memory next to a replica's GPUs as a home for KV blocks, over those GPUs' host links; None where it is not known."""
    cluster = ask.cluster
    per_gpu = cluster.host_ram_bytes * HOST_KV_FRAC / (cluster.gpus_per_host or cluster.gpus_per_node)
    if per_gpu * plan.n_gpus < 1:
        return None
    wire = link(cluster.host_link)
    return KvTier(name="host", capacity_bytes=per_gpu * plan.n_gpus, bytes_per_s=wire.bytes_per_s * plan.n_gpus, latency_s=wire.latency_s)


def budgets(ask: ServeAsk, dp: int) -> tuple[int, ...]:
    """Token budgets of a replica that does both prefill and decode, over all its attention ranks: each schedules for itself."""
    return tuple(dp * budget for budget in (LONG_BUDGETS if ask.long_prompts else BUDGETS))


def prefill_budget(ask: ServeAsk, dp: int) -> int:
    """Token budget of a replica that only prefills, over all its attention ranks."""
    return dp * (LONG_PREFILL_BUDGET if ask.long_prompts else PREFILL_BUDGET)


def describe(plan: EnginePlan) -> str:
    """A layout in a few words."""
    degrees = [f"{name}={value}" for name in ("tp", "pp", "dp", "cp", "ep") if (value := getattr(plan, name)) > 1 or name == "tp"]
    words = [*degrees, plan.weight_dtype if plan.kv_dtype == "bf16" else f"{plan.weight_dtype}/{plan.kv_dtype} KV"]
    words += [f"{plan.expert_dtype} experts"] if plan.expert_dtype not in ("", plan.weight_dtype) else []
    words += [f"budget {plan.token_budget // plan.dp}"] if plan.token_budget else []
    words += [f"{plan.max_num_seqs // plan.dp} seats"] if plan.max_num_seqs not in (0, SEATS * plan.dp) else []
    words += ["a rank"] if plan.dp > 1 and (plan.token_budget or plan.max_num_seqs) else []
    words += [f"{plan.redundant_experts} expert copies"] if plan.redundant_experts else []
    words += [f"{tier.name} KV tier" for tier in plan.kv_tiers]
    return " ".join(words + ([f"{plan.speculation.method} speculation to γ={_most(plan.speculation)}"] if plan.speculation else []))


def _most(guess: Speculation) -> int:
    return max([gamma for _, gamma in guess.gamma_by_batch] or [guess.draft_tokens])
