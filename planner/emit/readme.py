"""README.md of a plan: the prediction, the memory, how to run each target, and what no target here can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ...scenarios.technique import technique
from ...scenarios.units import show_number, show_tokens
from .target import CannotExpress, Job

FACTS = {
    "step_time_s": "seconds of one optimizer step",
    "tokens_per_s_per_gpu": "tokens per second and GPU",
    "mfu_frac": "model FLOPs over peak, causal attention, no recompute",
    "error_frac": "expected relative error of the step time",
    "cost_usd_per_mtoken": "US dollars per million tokens",
    "bottleneck": "what most of the step is spent on",
    "binding_limit": "the limit that binds",
    "memory": "bytes per GPU by component (``<component>_bytes``), ``total_bytes``, ``limit_bytes``; per node ``host_bytes``",
    "why": "sentences that say why this plan won",
    "learning_rate": "goes into the configurations; default 1e-5",
    "gradient_clipping": "goes into the configurations; default 1.0",
}
"""Names of the facts a caller may give; all are optional."""


Written = Mapping[str, tuple[str, ...]]


def render(job: Job, modules: Mapping[str, ModuleType], written: Written, omitted: Mapping[str, CannotExpress]) -> str:
    """The README as Markdown."""
    parts = [
        f"# {job.model.name}, {show_tokens(job.seq_tokens)} tokens, on {job.world} × {job.cluster.gpu}\n",
        _prediction(job),
        f"Layout: {layout(job)}.\n",
        _why(job),
        _memory(job),
        _run(job, modules, written),
        _omitted(modules, omitted),
        _techniques(job),
        _notes(job, written),
    ]
    return "\n".join(part for part in parts if part)


def layout(job: Job) -> str:
    """The plan in one line: the axes above 1, the sharding, and the memory options that are on."""
    plan = job.plan
    axes = [f"{axis} {getattr(plan, axis)}" for axis in ("dp", "tp", "pp", "vpp", "cp", "ep") if getattr(plan, axis) > 1]
    if plan.cp > 1:
        axes.append(f"{plan.cp_kind} sequence parallelism")
    sharding = f"ZeRO-{plan.zero_stage}" if plan.sharding == "zero" else plan.sharding.upper()
    options = [
        f"recompute {plan.recompute}" if plan.recompute != "none" else "",
        *(f"{what} on the host" for what, part in _offloads(job) if part),
        "tiled MLP" if plan.tiled_mlp else "",
        "tiled loss" if plan.fused_loss else "",
        f"LoRA rank {plan.lora_rank}" if plan.lora_rank else "",
    ]
    batch = f"global batch {job.global_batch} (micro-batch {plan.micro_batch}, accumulated {plan.grad_accum})"
    return ", ".join([*(axes or ["one rank per copy"]), sharding, f"{plan.precision} {plan.optimizer}", batch, *(o for o in options if o)])


def _offloads(job: Job) -> list[tuple[str, float]]:
    plan = job.plan
    return [
        ("optimizer", float(plan.offload_optimizer)),
        ("parameters", float(plan.offload_params)),
        ("checkpointed activations", float(plan.offload_activations)),
    ]


def _prediction(job: Job) -> str:
    facts = job.facts
    error = f" ± {facts['error_frac']:.0%}" if facts.get("error_frac") else ""
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "step time": ("step_time_s", lambda v: f"{v:,.2f} s{error}"),
        "throughput": ("tokens_per_s_per_gpu", lambda v: f"{v:,.0f} tokens/s/GPU"),
        "MFU (causal, no recompute counted)": ("mfu_frac", lambda v: f"{v:.1%}"),
        "cost": ("cost_usd_per_mtoken", lambda v: f"${show_number(v, 4)} per million tokens"),
        "most of the step": ("bottleneck", str),
        "limit that binds": ("binding_limit", str),
    }
    rows = [f"| {name} | {show(facts[key])} |" for name, (key, show) in shown.items() if facts.get(key) is not None]
    if not rows:
        return "This plan comes without a prediction.\n"
    return "| predicted | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _why(job: Job) -> str:
    sentences = job.facts.get("why") or ()
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n" if sentences else ""


def _memory(job: Job) -> str:
    memory = job.facts.get("memory") or {}
    ends = ("total_bytes", "limit_bytes", "host_bytes", "host_limit_bytes")
    rows = [
        (key.removesuffix("_bytes").replace("_", " "), value)
        for key, value in memory.items()
        if key.endswith("_bytes") and key not in ends and value
    ]
    if not rows:
        return ""
    lines = [f"| {name} | {value / 2**30:,.2f} |" for name, value in rows]
    for key, name in zip(ends, ("**total**", "limit", "host memory per node", "host limit per node"), strict=True):
        if memory.get(key):
            lines.append(f"| {name} | {memory[key] / 2**30:,.2f} |")
    return "## Memory per GPU, worst rank (GiB)\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"


def _run(job: Job, modules: Mapping[str, ModuleType], written: Written) -> str:
    rows = []
    for name, files in written.items():
        listed = ", ".join(f"`{file}`" for file in files)
        rows.append(f"| {modules[name].TITLE} | {listed} | {modules[name].HOW} |")
    if not rows:
        return "## Run it\n\nNo target can express this plan; the table below names the nearest.\n"
    many = "\nOn several nodes start the torchrun launchers on each, with `MASTER_ADDR` and `NODE_RANK` set.\n" if job.nodes > 1 else ""
    return "## Run it\n\n| target | files | how |\n|---|---|---|\n" + "\n".join(rows) + "\n" + many


def _omitted(modules: Mapping[str, ModuleType], omitted: Mapping[str, CannotExpress]) -> str:
    if not omitted:
        return ""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reason in omitted.items():
        alike.setdefault((reason.what, reason.nearest), []).append(modules[name].TITLE)
    rows = "\n".join(f"| {'; '.join(titles)} | {what} | {nearest} |" for (what, nearest), titles in alike.items())
    return f"## Not emitted\n\n| target | what it has no switch for | nearest that runs |\n|---|---|---|\n{rows}\n"


def _techniques(job: Job) -> str:
    """Published techniques of the plan: the switch of each target that has one, else where its code is and what comes nearest."""
    lines = []
    for row in map(technique, job.plan.techniques):
        if row.deploy:
            switches = "; ".join(f"{target}: `{switch}`" for target, switch in row.deploy.items())
            lines.append(f"- {row.title}: {switches}")
        else:
            where = f", code at {row.repository}" if row.repository else ""
            lines.append(f"- {row.title}: research-only, not in the files above{where}; nearest that runs: {row.nearest}")
    return "## Techniques\n\n" + "\n".join(lines) + "\n" if lines else ""


def _notes(job: Job, written: Written) -> str:
    if "script" not in written and "fsdp" not in written:
        return ""
    lora = "`train.py` needs `peft` for LoRA. " if job.plan.lora_rank else ""
    return (
        "## Check it\n\n"
        "The scripts train random weights of this shape on synthetic tokens until given `--weights` and `--data`. They print step time,\n"
        "tokens/s and peak memory beside the prediction and write `measured.csv`: `roofplan validate --training measured.csv` scores it.\n"
        f"{lora}The position encoding's base and the norms' epsilon are no part of a plan: `--weights` brings the model's own.\n"
    )
