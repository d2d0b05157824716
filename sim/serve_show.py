"""A serving run as a table for people, 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from ..scenarios.terminal import Terminal, print_table
from ..scenarios.units import show_bytes, show_number


def show(out: Mapping[str, Any]) -> None:
    """Latencies, rates, pools and costs of a run, from its stable JSON form; says first whether the system was overloaded.

    Answers of one token have no time between tokens: a dash.
    """
    console = Terminal()
    title = f"{out['model']} on {out['n_gpus']} x {out['gpu']}: {out['n_requests']:,} requests, {out['n_iterations']:,} steps"
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("latency", "mean", "p50", "p90", "p95", "p99", "p99.9"):
        table.add_column(column, justify="left" if column == "latency" else "right", no_wrap=True)
    single = not out["tpot_s"]["mean"]
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        absent = single and name in ("tpot_s", "itl_s")
        table.add_row(name.removesuffix("_s").upper(), *("-" if absent else _seconds(v) for v in out[name].values()))
    if out["saturated"]:
        growth = out["saturation"]["growth"]
        console.print(f"[bold red]overloaded[/]: TTFT grows by {growth:.2f} s every second; these averages never settle")
    console.print(title, highlight=False, markup=False, style="italic")
    print_table(table)
    for line in [*_lines(out), *(f"Note: {note}" for note in out["notes"])]:
        console.print(line, highlight=False, markup=False)


def _lines(out: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{out['output_tokens_per_s']:,.0f} output + {out['prompt_tokens_per_s']:,.0f} prompt tokens/s, "
        f"goodput {show_number(out['goodput_per_s'])} requests/s, busy {out['busy_frac']:.0%}",
        f"{out['preemptions']:,} preemptions, {out['n_rejected']:,} rejected, KV {show_bytes(out['kv_bytes'])} a GPU",
    ]
    if len(out["pools"]) > 1:
        shares = ", ".join(f"{p['n_replicas']} x {p['name']} {p['busy_frac']:.0%}" for p in out["pools"])
        lines.append(f"pools busy: {shares}")
    idle = [f"{p['bubble_frac']:.0%} ({p['name']})" for p in out["pools"] if "bubble_frac" in p]
    if idle:
        lines.append(f"pipeline stages idle {', '.join(idle)} of their time")
    if out["links"]:
        moved = sum(link["n_bytes"] for link in out["links"] if link["name"].endswith(">"))
        busiest = max(link["busy_frac"] for link in out["links"])
        lines.append(f"{show_bytes(moved)} of KV moved, the busiest link busy {busiest:.1%} of the run")
    if out["cache_hit_frac"]:
        saved = ", ".join(f"{tier['name']} {tier['hit_tokens']:,}" for tier in out["cache_tiers"])
        lines.append(f"prefix cache: {out['cache_hit_frac']:.1%} of prompt tokens ({saved} tokens)")
    if out["replicas_over_time"]:
        most = max(row["n_replicas"] for row in out["replicas_over_time"])
        lines.append(f"replicas: at most {most}, {out['gpu_s'] / 3600:,.1f} GPU hours paid")
    if out["cost_usd_per_mtoken"]:
        cost, energy = out["cost_usd_per_mtoken"], out["energy_j_per_token_at_tdp"]
        lines.append(f"{show_number(cost)} USD per million output tokens on demand, at most {show_number(energy)} J a token")
    return lines


def _seconds(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"
