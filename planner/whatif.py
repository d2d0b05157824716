"""What-if sweeps: one tidy row per scenario, for notebooks and ``roofplan sweep``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..costmodels.memory import PARTS
from ..scenarios.errors import BadInput
from ..scenarios.scenario import MAX_SEQ, Scenario
from .decide import Choice, decide
from .why import binding, degrees, options

COLUMNS = (
    "model", "gpu", "n_gpus", "seq_tokens", "global_batch", "fits", "layout", "options", "step_time_s", "tokens_per_s_per_gpu", "mfu_frac",
    *PARTS, "total_bytes", "limit_bytes", "host_bytes", "cost_usd_per_mtoken", "binding_limit", "error_frac", "note",
)  # fmt: skip
"""Columns of a sweep; a scenario that nothing fits, or that is not legal, has ``fits = False`` and says why in ``note``."""


def sweep_rows(scenarios: Iterable[Scenario]) -> list[dict[str, Any]]:
    """The best plan of each scenario as a row with COLUMNS."""
    return [row_of(scenario) for scenario in scenarios]


def grid(base: Scenario, *, seqs: Iterable[int] = (), counts: Iterable[int] = (), gpus: Iterable[str] = ()) -> list[Scenario]:
    """Every combination of sequence lengths (0: the longest), GPU counts and GPUs; an empty list keeps the base's value."""
    out = []
    for gpu in list(gpus) or [base.gpu]:
        for n in list(counts) or [base.n_gpus]:
            for seq in list(seqs) or [base.seq_tokens]:
                objective = "max-seq" if seq == MAX_SEQ else "time" if base.objective == "max-seq" else base.objective
                out.append(replace(base, gpu=gpu, n_gpus=n, seq_tokens=seq, objective=objective))
    return out


def row_of(scenario: Scenario) -> dict[str, Any]:
    """One row: the winner's numbers, or why there is none."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    row |= {"model": scenario.model, "gpu": scenario.gpu, "n_gpus": scenario.n_gpus, "seq_tokens": scenario.seq_tokens, "fits": False}
    try:
        decision = decide(replace(scenario, top=1))
    except BadInput as error:
        return row | {"note": str(error)}
    if not decision.choices:
        return row | {"global_batch": decision.problem.global_batch, "note": "no plan fits"}
    return row | _numbers(decision.choices[0]) | {"fits": True, "binding_limit": binding(decision).limit}


def _numbers(best: Choice) -> dict[str, Any]:
    memory = {name: float(getattr(best.memory, name)) for name in (*PARTS, "total_bytes", "limit_bytes", "host_bytes")}
    return memory | {
        "model": best.problem.model.name, "gpu": best.problem.accelerator.name, "n_gpus": best.n_gpus,
        "seq_tokens": int(best.work.seq_tokens), "global_batch": int(best.work.global_batch), "layout": degrees(best.plan),
        "options": "; ".join(options(best.plan)), "step_time_s": best.step_time_s, "tokens_per_s_per_gpu": best.tokens_per_s_per_gpu,
        "mfu_frac": best.mfu_frac, "cost_usd_per_mtoken": best.usd_per_mtoken, "error_frac": float(best.step.error_frac),
    }  # fmt: skip
