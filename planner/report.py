"""The answer as a table for people, 80 columns wide, from the JSON alone."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..scenarios.units import show_bytes, show_number, show_tokens

if TYPE_CHECKING:
    from rich.console import Console


def print_report(data: dict[str, Any], console: Console) -> None:
    """The readable form, from the JSON alone: what was asked, the ranked plans, why, what binds, what was turned away."""
    asked, plans = data["scenario"], data["plans"]
    console.print(f"[bold]{asked['model']}[/] on {asked['n_gpus']:,} x {asked['gpu']}", highlight=False)
    _say(console, f"seq {show_tokens(asked['seq_tokens'])}, {asked['global_batch']:,} sequences a step, objective {asked['objective']}", "")
    if not plans:
        _say(console, f"No plan fits: {data['binding']['sentence']}.", "  ")
        _say(console, "Nearest changes:", "")
        for line in data["nearest"]:
            _say(console, f"- {line}", "  ")
        return
    _print_plans(data, console)
    for line in data["why"]:
        _say(console, f"- {line}", "  ")
    _say(console, f"Binding limit: {data['binding']['sentence']}.", "  ")
    _say(console, _solver_line(data), "  ")
    for line in data["notes"]:
        _say(console, f"Note: {line}", "  ")


def _say(console: Console, text: str, indent: str) -> None:
    for line in wrap(text, max(console.width, 40), subsequent_indent=indent):
        console.print(line, highlight=False, markup=False)


def _print_plans(data: dict[str, Any], console: Console) -> None:
    """Two or three lines a plan: degrees and numbers in columns, then the options."""
    console.print()
    console.print(f"[bold]{'#':>2}  {'layout':<31}{'step':>9}{'tok/s/GPU':>10}{'MFU':>7}{'memory':>10}{'$/Mtok':>7}[/]")
    for plan in data["plans"]:
        cost, memory = plan["cost_usd_per_mtoken"], plan["memory"]
        gpus = f" on {plan['n_gpus']:,} GPUs" if plan["n_gpus"] != data["scenario"]["n_gpus"] else ""
        numbers = (
            f"{show_seconds(plan['step_time_s']):>9}{plan['tokens_per_s_per_gpu']:>10,.0f}{plan['mfu_frac']:>7.1%}"
            f"{show_bytes(memory['total_bytes']):>10}{show_number(cost) if cost else '-':>7}"
        )
        degrees = plan["summary"]["degrees"] + gpus
        if len(degrees) > 30:
            console.print(f"{plan['rank']:>2}  [bold]{degrees}[/]", highlight=False)
            degrees, place = "", ""
        else:
            place = str(plan["rank"])
        console.print(f"{place:>2}  [bold]{degrees:<31}[/]{numbers}", highlight=False)
        words = list(plan["summary"]["options"])
        if plan["seq_tokens"] != data["scenario"]["seq_tokens"]:
            words.insert(0, f"seq {show_tokens(plan['seq_tokens'])}")
        for line in wrap(", ".join(words), 76):
            console.print(f"    [dim]{line}[/]", highlight=False)
    console.print()


def _solver_line(data: dict[str, Any]) -> str:
    solver, plan = data["solver"], data["plans"][0]
    turned = sum(row["count"] for row in data["rejected"])
    borrowed = " (beyond what was measured: a borrowed card, or over 16,384 tokens)" if plan["extrapolated"] else ""
    return (
        f"{solver['n_candidates']:,} layouts priced, {turned:,} turned away; {solver['name']}: {solver['status']}, "
        f"gap {solver['gap_frac']:.2%}, {solver['n_solved']} layouts solved; times good to about {plan['error_frac']:.0%}{borrowed}."
    )


def show_seconds(value: float) -> str:
    """Seconds with three digits: ``412 ms``, ``3.21 s``, ``1,234 s``, ``2.5 h``."""
    if value >= 7200:
        return f"{value / 3600:,.3g} h" if value < 3.6e6 else f"{value / 3600:,.0f} h"
    return f"{show_number(value * 1e3)} ms" if value < 1 else f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"
