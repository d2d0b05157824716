"""README.md of a serving folder: what was chosen and why, what is predicted, how to run and check it, what could not be expressed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ....costmodels.serving_ops import by_all_to_all
from ....scenarios.serving import EnginePlan
from ....scenarios.serving_parts import Speculation
from ....scenarios.units import show_number, show_tokens
from ..target import CannotExpress
from .bench import curve
from .job import Role, ServeJob, limits
from .research import Note

Files = Mapping[str, Mapping[str, str]]


def render(
    job: ServeJob, engines: Mapping[str, ModuleType], written: Files, omitted: Mapping[str, CannotExpress], notes: list[Note]
) -> str:
    """The README as Markdown."""
    sections = [
        f"# {job.model.name} served on {job.deployment.n_gpus} × {job.cluster.gpu}\n",
        _prediction(job),
        _why(job),
        _layout(job),
        _run(job, engines, written),
        _check(job),
        _research(notes),
        _omitted(engines, omitted),
    ]
    return "\n".join(section for section in sections if section)


def _prediction(job: ServeJob) -> str:
    facts = job.predicted
    error = f" ± {facts['error_frac']:.0%}" if facts.get("error_frac") else ""
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "requests a second within the promises": ("goodput_per_s", lambda v: f"{show_number(v, 4)}{error}"),
        "requests a second in these figures": ("rate_per_s", lambda v: show_number(v, 4)),
        "TTFT, mean": ("ttft_s", lambda v: f"{v * 1e3:,.0f} ms"),
        "TPOT, mean": ("tpot_s", lambda v: f"{v * 1e3:,.1f} ms"),
        "output tokens a second and GPU": ("output_tokens_per_s_per_gpu", lambda v: f"{v:,.0f}"),
        "cost": ("cost_usd_per_mtoken", lambda v: f"${show_number(v, 4)} per million output tokens"),
    }
    rows = [f"| {name} | {show(facts[key])} |" for name, (key, show) in shown.items() if facts.get(key) is not None]
    rows += [f"| promised {name.removesuffix('_s').upper()} | {value * 1e3:,.0f} ms |" for name, value in job.slo.items()]
    sizes = f"{show_tokens(job.prompt_tokens)} tokens in, {show_tokens(job.output_tokens)} out"
    asked = f"Requests of {sizes}, up to {job.context_tokens:,} tokens in all.\n"
    table = "| predicted | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else "This deployment comes without a prediction.\n"
    return asked + "\n" + table


def _why(job: ServeJob) -> str:
    sentences = job.predicted.get("why") or ()
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n" if sentences else ""


def _layout(job: ServeJob) -> str:
    d = job.deployment
    counts = {"prefill": d.n_prefill, "decode": d.n_replicas, "serve": d.n_replicas}
    rows = [f"| {role} | {counts[role]} | {plan.n_gpus} | {describe(job, role, plan)} |" for role, plan in job.plans().items()]
    router = f"\nRequests are routed {d.router}.\n" if d.n_replicas + d.n_prefill > 1 else ""
    return "## Replicas\n\n| role | replicas | GPUs each | plan |\n|---|---|---|---|\n" + "\n".join(rows) + "\n" + router


def describe(job: ServeJob, role: Role, plan: EnginePlan) -> str:
    """One role's plan in a line: axes above 1, formats, limits of one scheduler, and the options that are on."""
    limit = limits(job, plan)
    axes = [f"{axis} {getattr(plan, axis)}" for axis in ("tp", "pp", "dp", "cp", "ep") if getattr(plan, axis) > 1] or ["one GPU"]
    options = [
        f"weights {plan.weight_dtype}" + (f", experts {plan.expert_dtype}" if plan.expert_dtype else ""),
        f"KV {plan.kv_dtype}",
        f"{limit.token_budget:,} tokens and {limit.max_num_seqs:,} sequences a step" + (" of each dp rank" if plan.dp > 1 else ""),
        "prefix cache" if plan.prefix_cache else "",
        f"{plan.redundant_experts} redundant experts" if plan.redundant_experts else "",
        *(f"KV tier {tier.name} of {tier.capacity_bytes / 1e9:,.0f} GB" for tier in plan.kv_tiers),
        _speculation(plan.speculation) if plan.speculation else "",
        f"context stretched {job.rope_factor:g} times (YaRN)" if job.rope_factor > 1 else "",
    ]
    return ", ".join([*axes, *(option for option in options if option)])


def _speculation(spec: Speculation) -> str:
    by_batch = "; ".join(f"{gamma} up to batch {batch}" for batch, gamma in spec.gamma_by_batch)
    return f"speculation by {spec.method}, {by_batch or spec.draft_tokens} draft tokens, {spec.accept_frac:.0%} assumed accepted"


def _run(job: ServeJob, engines: Mapping[str, ModuleType], written: Files) -> str:
    rows = []
    for name, files in written.items():
        module = engines[name]
        mark = " (the prediction's)" if job.deployment.plan.engine.startswith(module.__name__.rpartition(".")[2]) else ""
        listed = ", ".join(f"`{file}`" for file in files)
        rows.append(f"| {module.TITLE} {module.VERSION}{mark} | {listed} | {module.how(job)} |")
    if not rows:
        return "## Run it\n\nNo engine can express this deployment; the tables below name the nearest.\n"
    weights = "The scripts serve the published weights unless `MODEL` names others; they say so where a format has to be made first.\n"
    if job.rope_factor > 1:
        weights += "The stretched positions replace any scaling that the checkpoint has of its own: check its answers at length.\n"
    if any(plan.dp > 1 and by_all_to_all(plan) for plan in job.plans().values()):
        weights += "Experts get their tokens by DeepEP's all-to-all, which has to be installed beside the engine.\n"
    nodes = "On several nodes start the launcher on each with `HOSTS` and `NODE_RANK` set, or `sbatch serve.slurm`.\n"
    many = nodes if job.cluster.n_nodes > 1 else ""
    return "## Run it\n\n| engine | files | how |\n|---|---|---|\n" + "\n".join(rows) + f"\n\n{weights}{many}"


def _check(job: ServeJob) -> str:
    rows = curve(job)
    text = (
        "## Check it\n\n`bash bench/bench.sh` sends the planned requests at each predicted rate with `vllm bench serve`, Poisson\n"
        "arrivals; `bench/compare.py` then prints measured beside predicted and writes `comparison.csv`.\n"
    )
    if rows:
        names = [name for name in ("ttft_s_mean", "ttft_s_p99", "tpot_s_mean", "tpot_s_p99") if any(name in row for row in rows)]
        heads = [name.replace("_s_", " ").replace("ttft", "TTFT").replace("tpot", "TPOT") + " ms" for name in names]
        text += f"\n| requests/s | {' | '.join(heads)} |\n|{'---|' * (len(names) + 1)}\n" if names else ""
        for row in rows if names else ():
            cells = [show_number(row[name] * 1e3, 4) if name in row else "" for name in names]
            text += f"| {show_number(row['rate_per_s'], 4)} | {' | '.join(cells)} |\n"
    spec = job.deployment.plan.speculation
    if spec and spec.method != "tree":
        text += (
            "\nRandom prompts are not accepted as real ones are. To hold acceptance at the assumed one, add to\n"
            "vLLM's `--speculative-config`: "
            f"`{json.dumps(synthetic_acceptance(spec))[1:-1]}`.\n"
        )
    return text


def synthetic_acceptance(spec: Speculation) -> dict[str, Any]:
    """vLLM's keys that accept draft tokens by chance: the chance that the first i + 1 of a chain are all accepted, for each i.

    ``a^(i+1)`` for equal requests; with a spread, the moments of the Beta of mean a and that standard deviation.
    """
    n, mean, spread = max([spec.draft_tokens, *(g for _, g in spec.gamma_by_batch)]), spec.accept_frac, spec.accept_spread_frac
    size = mean * (1 - mean) / spread**2 - 1 if spread else float("inf")
    rates, product = [], 1.0
    for i in range(n):
        product *= mean if size == float("inf") else (mean * size + i) / (size + i) if size > 0 else (mean if i == 0 else 1.0)
        rates.append(round(product, 6))
    return {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}


def _research(notes: list[Note]) -> str:
    lines = []
    for note in notes:
        where = f", code at {note.repository}" if note.repository else ""
        runs = "the files above run it instead, and the prediction is not theirs" if note.emitted else "no file runs it"
        lines.append(f"- {note.what}: status: {note.status}{where}; nearest: {note.nearest}; {runs}")
    return "## Not in a released engine\n\n" + "\n".join(lines) + "\n" if lines else ""


def _omitted(engines: Mapping[str, ModuleType], omitted: Mapping[str, CannotExpress]) -> str:
    if not omitted:
        return ""
    rows = "\n".join(f"| {engines[name].TITLE} | {reason.what} | {reason.nearest} |" for name, reason in omitted.items())
    return f"## Not emitted\n\n| engine | what it has no switch for | nearest that runs |\n|---|---|---|\n{rows}\n"
