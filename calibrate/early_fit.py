"""Fits the constants of an engine of before CUDA graphs on measured times of prompts and tokens (Splitwise's table)."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..costmodels.serving import Reach, StepParts, launched_kernels, step_parts
from ..costmodels.serving_ops import serve_system
from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan, Floats64, ServingEngine, serving_engine

GRIDS = {
    "launch_s": np.arange(0, 80) * 1e-6,
    "step_cpu_s": np.arange(0, 60) * 5e-4,
    "sequence_cpu_s": np.arange(0, 60) * 1e-5,
    "kernel_frac": np.arange(0.8, 1.6, 0.02),
    "prefill_attention_frac": np.arange(1.0, 8.0, 0.25),
}
"""Values tried: coarsely, then all within two steps of the best, until that stays best."""
COARSE = (8, 10, 12, 5, 5)
CUT = 0.5
LONGEST_PROMPT = 4096
"""The model's own length; the table's longer prompts are beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One measured time (s): of a prompt alone (``n`` 0) or a decode step of ``n``; its linear kernels, a prompt's attention, the rest."""

    tp: int
    n: int
    measured_s: float
    linear_s: float
    attention_s: float
    rest_s: float


def timed_rows(path: Path, model_name: str, hardware: str, engine: ServingEngine) -> list[Timed]:
    """The table's times of one model on one card beside what its kernels take; repeats are one row, their median.

    A decode step of ``n`` sequences reads the prompt and half of the answer each. Raises BadInput when there is no row.
    """
    bare = replace(engine, graph_tokens=(), launch_s=0.0, step_cpu_s=0.0, sequence_cpu_s=0.0, kernel_frac=1.0, prefill_attention_frac=1.0)
    found: dict[tuple[int, int, int, int], list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["model"], row["hardware"]) == (model_name, hardware) and int(row["prompt_size"]) <= LONGEST_PROMPT:
                key = (int(row["tp"]), int(row["prompt_size"]), int(row["batch_size"]), int(row["token_size"]))
                found[key].append((float(row["prompt_ms"]), float(row["token_ms"])))
    if not found:
        raise BadInput(f"{path} has no row of {model_name} on {hardware}")
    model, cluster = registry.model(model_name), registry.cluster(registry.accelerator(hardware).name, 8)
    reach = Reach(tokens=LONGEST_PROMPT, chunk=LONGEST_PROMPT, seqs=max(n for _, _, n, _ in found))
    parts: dict[int, StepParts] = {}
    out = []
    for (tp, prompt, n, answer), times in sorted(found.items()):
        if tp not in parts:
            parts[tp] = step_parts(model, EnginePlan(tp=tp, kv_dtype="fp16"), serve_system(cluster, bare), reach)
        p, (prompt_ms, token_ms) = parts[tp], np.median(np.array(times), axis=0)
        rest = p.fixed[n] + p.slope[n] * n * (prompt + answer / 2) + p.head[n]
        out.append(Timed(tp=tp, n=n, measured_s=token_ms / 1e3, linear_s=p.linear[n], attention_s=0.0, rest_s=rest))
        if n == 1:
            linear, attention, rest = p.linear[prompt], p.prefill[prompt], p.fixed[0] + p.head[0]
            out.append(Timed(tp=tp, n=0, measured_s=prompt_ms / 1e3, linear_s=linear, attention_s=attention, rest_s=rest))
    return out


def fit_early(rows: Sequence[Timed], n_kernels: int) -> tuple[dict[str, float], float]:
    """(constants, mean |log error|) of steps that take, beside their rest,

    ``max(kernel_frac·linear, launch·n_kernels) + prefill_attention_frac·attention + step_cpu + sequence_cpu·n``.
    """
    grids, names = list(GRIDS.values()), list(GRIDS)

    def score(place: tuple[int, ...]) -> float:
        return error(rows, n_kernels, {name: float(grid[i]) for name, grid, i in zip(names, grids, place, strict=True)})

    best = min(itertools.product(*(range(0, len(grid), step) for grid, step in zip(grids, COARSE, strict=True))), key=score)
    while True:
        around = [range(max(i - 2, 0), min(i + 3, len(grid))) for i, grid in zip(best, grids, strict=True)]
        near = min(itertools.product(*around), key=score)
        if score(near) >= score(best):
            return {name: float(grid[i]) for name, grid, i in zip(names, grids, best, strict=True)}, score(best)
        best = near


def error(rows: Sequence[Timed], n_kernels: int, constants: dict[str, float]) -> float:
    """Mean |log(priced/measured)|, each cut."""
    n, measured, linear, attention, rest = np.array([(r.n, r.measured_s, r.linear_s, r.attention_s, r.rest_s) for r in rows]).T
    host = constants["step_cpu_s"] + constants["sequence_cpu_s"] * n
    kernels = np.maximum(linear * constants["kernel_frac"], constants["launch_s"] * n_kernels)
    priced: Floats64 = kernels + constants["prefill_attention_frac"] * attention + rest + host
    return float(np.mean(np.minimum(np.abs(np.log(priced / measured)), CUT)))


def early_engine(path: Path, model_name: str = "llama2-70b", hardware: str = "a100-80gb", left_out_tp: int = 4) -> dict[str, float]:
    """The constants of ``vllm-0.2`` with their errors: fitted over all widths but one, checked on that one."""
    engine = serving_engine("vllm-0.2")
    rows = timed_rows(path, model_name, hardware, engine)
    n_kernels = launched_kernels(registry.model(model_name), engine.kernels_per_layer)
    kept, other = ([r for r in rows if (r.tp == left_out_tp) == out] for out in (False, True))
    constants, fitted = fit_early(kept, n_kernels)
    return constants | {"n_rows": len(kept), "log_error": fitted, "log_error_left_out": error(other, n_kernels, constants)}
