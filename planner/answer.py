"""The stable JSON of ``plan --json``: a Decision as plain numbers, text and lists."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .. import __version__
from ..scenarios.store import write_text
from ..scenarios.units import show_tokens
from .decide import Choice, Decision
from .why import binding, bottleneck, closest_miss, degrees, options, why_wins

OFFLOADS = ("optimizer", "params", "activations")
MAX_REPLAYED = 8192
"""Micro-batches times virtual stages of a step that is replayed unasked (a tenth of a second); ``roofplan simulate`` plays longer ones."""


def as_json(decision: Decision) -> dict[str, Any]:
    """Everything the command has to say; when nothing fits ``plans`` is empty and ``nearest`` says what would."""
    from .advice import nearest_changes

    winner = decision.choices[0] if decision.choices else None
    bound = binding(decision) if winner else None
    first = decision.searched[0]
    out: dict[str, Any] = {
        "scenario": _scenario(decision),
        "plans": [_plan(choice, i) for i, choice in enumerate(decision.choices, start=1)],
        "rejected": _rejected(decision),
        "binding_limit": bound.limit if bound else "infeasible",
        "binding": dataclasses.asdict(bound) if bound else {"sentence": closest_miss(first.problem, first)},
        "why": why_wins(decision) if winner else [],
        "nearest": [] if winner else nearest_changes(first),
        "solver": dataclasses.asdict(decision.solver),
        "notes": decision.notes,
        "provenance": _provenance(decision),
    }
    return out


def _scenario(decision: Decision) -> dict[str, Any]:
    problem = decision.problem
    asked = dataclasses.asdict(decision.scenario)
    longest = int(decision.choices[0].work.seq_tokens) if decision.choices else problem.seq_tokens
    batch = int(decision.choices[0].work.global_batch) if decision.choices else problem.global_batch
    return asked | {
        "model": problem.model.name,
        "gpu": problem.accelerator.name,
        "cluster": problem.cluster.name,
        "gpus_per_node": problem.cluster.gpus_per_node,
        "seq_tokens": longest,
        "global_batch": batch,
        "host_ram_bytes": problem.cluster.host_ram_bytes,
        "price_usd_per_h": problem.cluster.on_demand_usd_per_h,
        "allow": list(decision.scenario.allow),
    }


def _plan(choice: Choice, place: int) -> dict[str, Any]:
    step = {name: float(getattr(choice.step, name)) for name in _parts(choice)}
    memory = {f.name: float(getattr(choice.memory, f.name)) for f in dataclasses.fields(choice.memory)}
    return {
        "rank": place,
        "n_gpus": choice.n_gpus,
        "seq_tokens": int(choice.work.seq_tokens),
        "global_batch": int(choice.work.global_batch),
        "layout": layout(choice),
        "summary": {"degrees": degrees(choice.plan), "options": options(choice.plan)},
        "step_time_s": choice.step_time_s,
        "tokens_per_s_per_gpu": choice.tokens_per_s_per_gpu,
        "mfu_frac": choice.mfu_frac,
        "flops_convention": "causal",
        "time": step,
        "memory": memory,
        "bottleneck": bottleneck(choice),
        "cost_usd_per_mtoken": choice.usd_per_mtoken,
        "error_frac": float(choice.step.error_frac),
        "extrapolated": bool(choice.step.extrapolated),
        "solved_by": choice.solved_by,
        "replay": replay(choice),
    }


def _parts(choice: Choice) -> list[str]:
    return [f.name for f in dataclasses.fields(choice.step) if f.name.endswith("_s") and f.name != "step_time_s"]


def layout(choice: Choice) -> dict[str, Any]:
    """Every field of the plan, plus ``offload`` (what is on the host) and ``techniques`` as lists of names."""
    plan = choice.plan
    fields = {name: value for name, value in dataclasses.asdict(plan).items() if name != "techniques"}
    words = {"tiled-mlp": plan.tiled_mlp, "fused-loss": plan.fused_loss, "sequence-parallel": plan.sequence_parallel and plan.tp > 1}
    return fields | {
        "offload": [name for name in OFFLOADS if getattr(plan, f"offload_{name}")],
        "techniques": [*plan.techniques, *(word for word, on in words.items() if on)],
    }


def replay(choice: Choice) -> dict[str, float] | None:
    """The step played op by op beside its closed form; None without a pipeline, or with too many micro-batches to play in passing."""
    if choice.plan.pp == 1 or choice.plan.grad_accum * choice.plan.vpp > MAX_REPLAYED:
        return None
    from ..sim.training import replay_step

    played = float(replay_step(choice.step, choice.plan).step_time_s)
    return {"step_time_s": played, "closed_form_error_frac": choice.step_time_s / played - 1}


def _rejected(decision: Decision) -> list[dict[str, object]]:
    """Layouts the rules turned away, then those priced that break a limit."""
    rows: list[dict[str, object]] = []
    for found in decision.searched:
        rows += found.rejections.rows()
        table = found.table
        for limit, use in table.use.items():
            over = int((use > 1).sum())
            if over:
                example, work = table.pick(int((use > 1).argmax()))
                need = f"needs {float(use[use > 1][0]):.2f} times the limit at {show_tokens(int(work.seq_tokens))}"
                rows.append({"reason": limit, "count": over, "example": f"{degrees(example)}; {', '.join(options(example))}: {need}"})
        dropped = found.n_legal - table.row.size
        if dropped:
            rows.append({"reason": "no_sequence_fits", "count": dropped, "example": "does not fit even 1,024 tokens"})
    return rows


def _provenance(decision: Decision) -> dict[str, Any]:
    problem = decision.problem
    calibration = problem.system.roofline.calibration
    n = max(decision.n_candidates, 1)
    return {
        "roofplan": __version__,
        "calibration": calibration.name,
        "calibration_transferred_from": calibration.transferred_from,
        "frameworks": {e.name: e.source for e in problem.engines},
        "n_legal": sum(s.n_legal for s in decision.searched),
        "price_us_per_candidate": decision.price_wall_s / n * 1e6,
        "wall_s": decision.wall_s,
    }


def write_json(data: dict[str, Any], target: str) -> None:
    """To standard output for ``-``, else to a file that is complete or absent; BadInput if it cannot be written."""
    write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", target, "--json")
