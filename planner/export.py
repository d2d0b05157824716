"""``--out``: the folder that runs the winner, the answer it came from, and the best plan of every other framework beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .answer import as_json, layout
from .decide import Choice, Decision
from .emit.registry import emit_plan
from .emit.write import write_folder

ANSWER = "answer.json"
"""The answer of ``plan --json``, for ``roofplan report`` and ``roofplan simulate``."""
OTHERS = "alternatives"


def export(decision: Decision, folder: Path, answer: dict[str, Any] | None = None) -> list[Path]:
    """Write the winner's files, ``answer.json``, and ``alternatives/<framework>/`` for other frameworks; all of it or nothing.

    Raises BadInput if the folder holds anything that an earlier plan did not write, or cannot be written.
    """
    answer = answer or as_json(decision)
    winner = decision.choices[0]
    files = emitted(winner, answer) | {ANSWER: json.dumps(answer, indent=2, allow_nan=False) + "\n"}
    for name, choice in others(decision).items():
        files |= {f"{OTHERS}/{name}/{file}": text for file, text in emitted(choice, answer).items()}
    return write_folder(files, folder)


def emitted(choice: Choice, answer: dict[str, Any]) -> dict[str, str]:
    """What the emitters write for one plan: ``{file name: text}``."""
    problem = choice.problem
    cluster = problem.cluster.with_gpus(choice.n_gpus, min(problem.cluster.gpus_per_node, choice.n_gpus))
    return emit_plan(
        model=problem.model, plan=choice.plan, work=choice.work, cluster=cluster, accelerator=problem.accelerator,
        facts=facts(choice, answer),
    ).files  # fmt: skip


def facts(choice: Choice, answer: dict[str, Any]) -> dict[str, Any]:
    """The prediction's numbers for the emitted README and scripts, taken from the answer where the plan is in it."""
    row: dict[str, Any] = next((p for p in answer["plans"] if p["layout"] == layout(choice)), {})
    known = ("step_time_s", "tokens_per_s_per_gpu", "mfu_frac", "error_frac", "cost_usd_per_mtoken", "bottleneck", "memory")
    if not row:
        return {"step_time_s": choice.step_time_s, "tokens_per_s_per_gpu": choice.tokens_per_s_per_gpu, "mfu_frac": choice.mfu_frac}
    first = {"binding_limit": answer["binding_limit"], "why": answer["why"]} if row["rank"] == 1 else {}
    return {name: row[name] for name in known} | first


def others(decision: Decision) -> dict[str, Choice]:
    """The best plan of each framework that the winner is not of."""
    return {name: c for name, c in decision.by_framework.items() if name != decision.choices[0].plan.framework}
