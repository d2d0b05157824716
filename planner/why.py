"""Says in words what a plan is, why it wins, what the runners-up lose to, and which limit binds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.plan import ParallelPlan
from ..scenarios.units import show_bytes, show_tokens
from ..scenarios.workload import TrainWorkload
from .decide import Choice, Decision, Searched, search
from .longest import legal_step
from .prune import LIMITS, uses
from .scenario_io import Problem
from .space import Batch

PARTS = {
    "compute_s": "compute", "bubble_s": "pipeline bubble", "exposed_tp_s": "exposed TP communication",
    "exposed_cp_s": "exposed CP communication", "exposed_ep_s": "exposed EP communication", "exposed_dp_s": "exposed DP communication",
    "exposed_pp_s": "exposed PP messages", "exposed_offload_s": "exposed host copies", "optimizer_s": "the optimizer step",
    "overhead_s": "framework overhead",
}  # fmt: skip
"""Parts of a step's cost and what they are called in a sentence."""
HEAD_RULES = frozenset({"tp_divides_heads", "tp_divides_kv_heads", "ulysses_divides_heads", "ulysses_divides_kv_heads"})
LIMIT_NAMES = {
    "hbm": "device memory", "host_ram": "host memory", "kernel_index": "the kernels' index width", "head_count": "the number of heads",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit whose lifting would help most: its name, by what part, and a sentence. ``limit = "compute"``: none would."""

    limit: str
    gain_frac: float
    sentence: str


def degrees(plan: ParallelPlan) -> str:
    """The parallel degrees that are not 1: ``dp=2 tp=4 cp=2 (zigzag)``."""
    others = ("tp", "pp", "vpp", "ep", "expert_tp")
    parts = [f"dp={plan.dp}"] + [f"{name}={getattr(plan, name)}" for name in others if getattr(plan, name) > 1]
    if plan.cp > 1:
        inner = f" {plan.cp_inner}x{plan.cp // plan.cp_inner}" if plan.cp_kind == "ulysses-ring" else ""
        parts.append(f"cp={plan.cp} ({plan.cp_kind}{inner})")
    return " ".join(parts)


def options(plan: ParallelPlan) -> list[str]:
    """Everything else that is switched on, as short words."""
    sharding = f"zero-{plan.zero_stage}" if plan.sharding in ("zero", "ddp") else plan.sharding
    batch = f"micro-batch {plan.micro_batch}x{plan.grad_accum}"
    out = [plan.framework, sharding, batch]
    if plan.pp > 1:
        out.append(plan.schedule)
    if plan.layers_first or plan.layers_last:
        out.append(f"stages {plan.layers_first}/../{plan.layers_last} layers")
    if plan.recompute != "none":
        out.append(f"{plan.recompute} recompute" + (f" of {plan.recompute_layers} layers" if plan.recompute_layers >= 0 else ""))
    for name in ("optimizer", "params", "activations"):
        part = float(getattr(plan, f"offload_{name}"))
        if part:
            out.append(f"{name} on host" if part == 1 else f"{part:.0%} of {name} on host")
    rest = {"tiled MLP": plan.tiled_mlp, "fused loss": plan.fused_loss, plan.precision: plan.precision != "bf16"}
    return out + [word for word, on in rest.items() if on]


def bottleneck(choice: Choice) -> str:
    """The largest part of the step, in words."""
    return PARTS[max(PARTS, key=lambda name: float(getattr(choice.step, name)))]


def why_lost(winner: Choice, other: Choice, place: int) -> str:
    """``rank 2 is 12 % slower per token: +9 % exposed TP communication, +3 % pipeline bubble``; what the objective counts comes first."""
    objective = winner.problem.scenario.objective
    if objective == "max-seq" and other.work.seq_tokens < winner.work.seq_tokens:
        share = 1 - float(other.work.seq_tokens) / float(winner.work.seq_tokens)
        return f"rank {place} reaches {show_tokens(int(other.work.seq_tokens))} tokens, {share:.1%} fewer"
    if objective == "cost" and winner.usd_per_mtoken and other.usd_per_mtoken:
        return f"rank {place} costs {other.usd_per_mtoken / winner.usd_per_mtoken - 1:.1%} more per token on {other.n_gpus} GPUs"
    base = winner.step_time_s / winner.tokens
    slower = other.step_time_s / other.tokens / base - 1
    if slower < 0.0005:
        more = float(other.memory.total_bytes) - float(winner.memory.total_bytes)
        return f"rank {place} is as fast and uses {show_bytes(abs(more))} {'more' if more >= 0 else 'less'} device memory"
    deltas = {name: (_per_token(other, name) - _per_token(winner, name)) / base for name in PARTS}
    worst = [f"{delta:+.1%} {PARTS[name]}" for name, delta in sorted(deltas.items(), key=lambda item: -item[1]) if delta > 0.002][:3]
    return f"rank {place} is {slower:.1%} slower per token: {', '.join(worst)}"


def _per_token(choice: Choice, part: str) -> float:
    return float(getattr(choice.step, part)) / choice.tokens


def why_wins(decision: Decision) -> list[str]:
    """One sentence on where the winner's time goes, and one per runner-up on what it loses to."""
    winner = decision.choices[0]
    shares = sorted(((float(getattr(winner.step, name)) / winner.step_time_s, name) for name in PARTS), reverse=True)
    spent = ", ".join(f"{share:.0%} {PARTS[name]}" for share, name in shares if share >= 0.01)
    return [f"rank 1 spends {spent}"] + [why_lost(winner, other, i) for i, other in enumerate(decision.choices[1:], start=2)]


def binding(decision: Decision) -> Binding:
    """Which limit keeps the winner from being better: found by lifting each one and looking at the best plan then."""
    winner = decision.choices[0]
    found = next(s for s in decision.searched if s.problem is winner.problem)
    if not winner.problem.seq_tokens:
        return _binding_length(winner)
    best, name = winner.step_time_s, "compute"
    for limit in LIMITS:
        freed = found.table.step_time_s[found.table.breaks_only(limit)]
        if freed.size and float(freed.min()) < best:
            best, name = float(freed.min()), limit
    headless = _without_head_rules(found)
    if headless is not None and headless < best * 0.999:
        best, name = headless, "head_count"
    gain = 1 - best / winner.step_time_s
    if name == "compute" or gain < 0.001:
        sentence = f"no memory or head limit hides a faster plan; {bottleneck(winner)} is the largest part"
        return Binding(limit="compute", gain_frac=0.0, sentence=sentence)
    return Binding(limit=name, gain_frac=gain, sentence=f"{LIMIT_NAMES[name]}: without it the best plan would be {gain:.1%} faster")


def _without_head_rules(found: Searched) -> float | None:
    """Best step time if heads could be cut at will; None when the head rules turned nothing away."""
    if not HEAD_RULES & set(found.rejections.count):
        return None
    table = search(found.problem, lifted=HEAD_RULES).table
    times = table.step_time_s[table.fits]
    return float(times.min()) if times.size else None


def _binding_length(winner: Choice) -> Binding:
    """Under max-seq: the limit that breaks one step beyond the winner's sequence."""
    problem, plan = winner.problem, winner.plan
    step = int(legal_step(Batch(plan=plan, work=winner.work, n=1))[0])
    longer = int(winner.work.seq_tokens) + step
    need = uses(plan, TrainWorkload(seq_tokens=longer, global_batch=winner.work.global_batch), problem.prices, 1)
    name = max(need, key=lambda limit: float(need[limit][0]))
    if need[name][0] <= 1:
        return Binding(limit="none", gain_frac=0.0, sentence="no limit: the search stopped at its longest sequence")
    memory = problem.memory(plan, TrainWorkload(seq_tokens=longer, global_batch=winner.work.global_batch))
    amounts = {"hbm": (memory.total_bytes, memory.limit_bytes), "host_ram": (memory.host_bytes, memory.host_limit_bytes)}.get(name)
    of = f"{show_bytes(float(amounts[0]))} of {show_bytes(float(amounts[1]))}" if amounts else f"{float(need[name][0]):.1%}"
    sentence = f"{LIMIT_NAMES[name]}: {show_tokens(longer)} tokens would need {of}"
    return Binding(limit=name, gain_frac=0.0, sentence=sentence)


def closest_miss(problem: Problem, found: Searched) -> str:
    """For a problem nothing fits: the candidate that comes nearest, and by how much it misses which limit."""
    table = found.table
    if not table.row.size:
        return "no layout is legal" if problem.seq_tokens else "no layout fits even the shortest sequence"
    worst = np.maximum.reduce([table.use[limit] for limit in LIMITS])
    row = int(np.argmin(worst))
    plan, work = table.pick(row)
    memory = problem.memory(plan, work)
    name = max(LIMITS, key=lambda limit: float(table.use[limit][row]))
    needs = {"hbm": (memory.total_bytes, memory.limit_bytes), "host_ram": (memory.host_bytes, memory.host_limit_bytes)}.get(name)
    over = f"{float(table.use[name][row]) - 1:.0%} over"
    amount = f"{show_bytes(float(needs[0]))} of {show_bytes(float(needs[1]))}, {over}" if needs else over
    return f"the closest layout ({degrees(plan)}; {', '.join(options(plan))}) breaks {LIMIT_NAMES[name]}: {amount}"
