"""``plan --task serve``: the layouts that carry most requests within the promised latencies, as a table and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..scenarios import registry
from ..scenarios.calibration import load_calibration
from ..scenarios.errors import BadInput
from ..scenarios.units import parse_quantity, parse_tokens
from ..sim.serving_metrics import Slo
from .answer import write_json
from .command import FAILED, OK
from .serve_search import ServeAsk, ServeChoice, ServeDecision, plan_serving

OWN_FLAGS = (
    "model",
    "gpu",
    "cluster",
    "gpus_per_node",
    "n_gpus",
    "task",
    "isl",
    "osl",
    "ttft",
    "tpot",
    "rate",
    "allow",
    "top",
    "trace",
    "concurrency",
)
LAYOUT = ("tp", "pp", "dp", "ep", "weight_dtype", "kv_dtype", "token_budget", "max_num_seqs")
"""Fields of the engine plan that the JSON form names as the layout."""


def plan_serve(flags: Mapping[str, Any], json_to: str | None) -> int:
    """Plan serving from the flags of ``plan``: model, gpu or cluster, n_gpus, isl, osl, ttft, tpot, rate, allow, top.

    Exit code 1 when no layout keeps the promises (at ``rate``, where it is given). Raises BadInput for what cannot be used.
    """
    started = time.perf_counter()
    ask = read_ask(flags)
    rate = _rate(flags.get("rate"))
    decision = plan_serving(ask, flags.get("top") or 5)
    kept = [c for c in decision.choices if c.goodput_per_s >= rate]
    data = as_json(ask, decision, kept, rate, time.perf_counter() - started)
    if json_to:
        write_json(data, json_to)
    if json_to != "-":
        show(data)
    return OK if kept else FAILED


def read_ask(flags: Mapping[str, Any]) -> ServeAsk:
    """The question in the flags; BadInput names the flag that is missing or does not belong."""
    for name in ("model", "n_gpus", "isl", "osl"):
        if not flags.get(name):
            raise BadInput(f"--task serve needs --{name.replace('n_gpus', 'gpus')}")
    foreign = [name for name, value in flags.items() if value is not None and name not in OWN_FLAGS]
    if foreign:
        raise BadInput(f"--{foreign[0].replace('_', '-')} is for training and is not used by plan --task serve; drop it")
    for name in ("trace", "concurrency"):
        if flags.get(name):
            raise BadInput(
                f"--{name} is not used by plan --task serve; give --isl and --osl here, and replay a trace with roofplan simulate"
            )
    cluster = registry.cluster(flags.get("cluster") or flags.get("gpu") or "h100-sxm", flags["n_gpus"], flags.get("gpus_per_node"))
    slo = Slo(**{f"{name}_s": parse_quantity(flags[name], "_s") for name in ("ttft", "tpot") if flags.get(name)})
    return ServeAsk(
        model=registry.model(flags["model"]),
        gpu=registry.accelerator(cluster.gpu),
        cluster=cluster,
        prompt_tokens=parse_tokens(flags["isl"]),
        output_tokens=parse_tokens(flags["osl"]),
        slo=slo,
        allow_quant="quant" in (flags.get("allow") or ()),
    )


def _rate(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1e9:
        raise BadInput(f"--rate {text} must be a number of requests a second, more than 0")
    return rate


def as_json(ask: ServeAsk, decision: ServeDecision, kept: list[ServeChoice], rate: float, wall_s: float) -> dict[str, Any]:
    """The stable JSON form; ``binding_limit`` is what felled most layouts when none is left."""
    rejected: list[dict[str, Any]] = [{"reason": reason, "count": n, "example": example} for reason, n, example in decision.rejected]
    if len(kept) < len(decision.choices):
        best = decision.choices[0].goodput_per_s
        n = len(decision.choices) - len(kept)
        rejected.append({"reason": "rate", "count": n, "example": f"the best carries {best:.4g} of {rate:.4g} requests/s"})
    promised = {name: value if (value := getattr(ask.slo, name)) < float("inf") else None for name in ("ttft_s", "tpot_s")}
    return {
        "scenario": {
            "task": "serve",
            "model": ask.model.name,
            "gpu": ask.gpu.name,
            "n_gpus": ask.cluster.n_gpus,
            "isl_tokens": ask.prompt_tokens,
            "osl_tokens": ask.output_tokens,
            **promised,
            "rate_per_s": rate or None,
        },
        "plans": [_plan(ask, rank, choice, rate) for rank, choice in enumerate(kept, 1)],
        "rejected": rejected,
        "binding_limit": None if kept else max(rejected, key=lambda r: r["count"])["reason"] if rejected else "layouts",
        "solver": {
            "name": "closed-form bound, then bisection of the rate in the simulator",
            "n_candidates": decision.n_candidates,
            "n_simulated": decision.n_simulated,
            "wall_s": wall_s,
        },
        "provenance": {"calibration": load_calibration(ask.gpu).transferred_from or ask.gpu.name, "engine": ask.engine},
    }


def _plan(ask: ServeAsk, rank: int, choice: ServeChoice, rate: float) -> dict[str, Any]:
    plan, memory = choice.plan, choice.memory
    mixed = {"mixed": choice.n_replicas}
    split = {"prefill": choice.n_prefill, "decode": choice.n_replicas - choice.n_prefill}
    needed = -(-rate * choice.n_replicas // choice.goodput_per_s) * plan.n_gpus if rate and not choice.n_prefill else None
    return {
        "rank": rank,
        "layout": {name: getattr(plan, name) for name in LAYOUT},
        "pools": split if choice.n_prefill else mixed,
        "goodput_per_s": choice.goodput_per_s,
        "bound_per_s": choice.bound_per_s,
        "ttft_s": choice.ttft_s,
        "tpot_s": choice.tpot_s,
        "output_tokens_per_s_per_gpu": choice.output_tokens_per_s_per_gpu,
        "n_gpus_for_rate": None if needed is None else int(needed),
        "memory": {
            "weights_bytes": memory.weights_bytes,
            "activations_bytes": memory.activations_bytes,
            "context_bytes": memory.context_bytes,
            "kv_bytes": memory.kv_bytes,
            "limit_bytes": memory.limit_bytes,
        },
        "cost_usd_per_mtoken": choice.usd_per_mtoken,
    }


def show(data: dict[str, Any]) -> None:
    """The ranked table, or why nothing fits."""
    asked, console = data["scenario"], Console()
    title = f"{asked['model']} on {asked['n_gpus']} x {asked['gpu']}, {asked['isl_tokens']:,} in, {asked['osl_tokens']:,} out"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("#", "layout", "step", "pools", "req/s", "TTFT ms", "TPOT ms", "tok/s/GPU", "USD/Mtok"):
        table.add_column(name, justify="left" if name in ("layout", "pools") else "right", no_wrap=True)
    for plan in data["plans"]:
        layout, pools = plan["layout"], plan["pools"]
        experts = f" ep{layout['ep']}" if layout["ep"] > 1 else ""
        table.add_row(
            str(plan["rank"]),
            f"tp{layout['tp']}{experts} {layout['weight_dtype']}/{layout['kv_dtype']}",
            str(layout["token_budget"]),
            str(pools["mixed"]) if "mixed" in pools else f"{pools['prefill']}P+{pools['decode']}D",
            f"{plan['goodput_per_s']:.4g}",
            f"{plan['ttft_s'] * 1e3:.0f}",
            f"{plan['tpot_s'] * 1e3:.1f}",
            f"{plan['output_tokens_per_s_per_gpu']:,.0f}",
            f"{plan['cost_usd_per_mtoken']:.3g}",
        )
    if data["plans"]:
        console.print(table)
    else:
        console.print(f"{title}: no layout keeps the promises; most fall to: {data['binding_limit']}", soft_wrap=True)
    for row in data["rejected"]:
        console.print(f"left out, {row['reason']} ({row['count']}): {row['example']}", highlight=False, markup=False, soft_wrap=True)
