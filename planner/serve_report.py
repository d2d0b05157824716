"""The answer of ``plan --task serve`` as a table for people, 80 columns wide, from the JSON alone."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from rich.console import Console

from ..scenarios.units import show_bytes, show_number, show_tokens
from .serve_why import show_s


def print_report(data: dict[str, Any], console: Console) -> None:
    """What was asked, the ranked fleets, why, what binds, what was turned away; or why nothing fits and what would."""
    asked, plans = data["scenario"], data["plans"]
    console.print(f"[bold]{asked['model']}[/] on {asked['n_gpus']:,} x {asked['gpu']}, {asked['engine']}", highlight=False)
    _say(console, f"{_requests(asked)}; {_promises(asked)}; objective {asked['objective']}", "")
    if not plans:
        _say(console, f"No plan fits: {data['binding_limit']}: {data['binding']['sentence']}", "  ")
        _say(console, "Nearest changes:", "")
        for line in data["nearest"]:
            _say(console, f"- {line}", "  ")
        _print_rejected(data, console)
        return
    _print_plans(data, console)
    for line in data["why"]:
        _say(console, f"- {line}", "  ")
    for row in data["compared"]:
        _say(console, f"Compared: {row['sentence']}.", "  ")
    _say(console, f"Binding limit: {data['binding']['sentence']}.", "  ")
    if data["n_gpus_needed"]:
        _say(console, f"{show_number(asked['rate_per_s'], 4)} requests/s need at least {data['n_gpus_needed']:,} GPUs.", "  ")
    _say(console, _solver_line(data), "  ")
    _print_rejected(data, console)
    for line in data["notes"]:
        _say(console, f"Note: {line}.", "  ")


def _requests(asked: dict[str, Any]) -> str:
    what = f"{asked['isl_tokens']:,} tokens in, {asked['osl_tokens']:,} out"
    if asked["trace"]:
        what = f"{asked['n_requests']:,} requests of {asked['trace']}, on average {what}, {show_tokens(asked['context_tokens'])} at most"
    if asked["rate_per_s"]:
        what += f", {show_number(asked['rate_per_s'], 4)} requests/s"
    return what + (f", {asked['concurrency']:,} clients" if asked["concurrency"] else "")


def _promises(asked: dict[str, Any]) -> str:
    words = [f"{name.upper()} {show_s(asked[f'{name}_s'])}" for name in ("ttft", "tpot") if asked[f"{name}_s"]]
    return ", ".join(words) + " for 95 % of requests" if words else "no latency promised"


def _print_plans(data: dict[str, Any], console: Console) -> None:
    """Two lines a fleet: numbers in columns, then its replicas."""
    console.print()
    console.print(
        f"[bold]{'#':>2} {'pools':<11}{'GPUs':>6}{'req/s':>9}{'TTFT':>9}{'TPOT':>9}{'tok/s/GPU':>10}{'memory':>10}{'$/Mtok':>8}[/]"
    )
    for plan in data["plans"]:
        cost = plan["cost_usd_per_mtoken"]
        console.print(
            f"{plan['rank']:>2} [bold]{_pools(plan):<11}[/]{plan['n_gpus']:>6,}{show_number(plan['goodput_per_s'], 4):>9}"
            f"{show_s(plan['ttft_s']):>9}{show_s(plan['tpot_s']):>9}{show_number(plan['output_tokens_per_s_per_gpu'], 4):>10}"
            f"{show_bytes(plan['memory']['total_bytes']):>10}{_usd(cost):>8}",
            highlight=False,
        )
        for line in wrap(plan["summary"], 76):
            console.print(f"   [dim]{line}[/]", highlight=False)
    console.print()


def _usd(cost: float) -> str:
    return show_number(cost) if cost else "-"


def _pools(plan: dict[str, Any]) -> str:
    if plan["parts"]:
        return f"mix of {len(plan['parts'])}"
    found = plan["pools"]
    return str(found["mixed"]) if "mixed" in found else f"{found['prefill']}P + {found['decode']}D"


def _solver_line(data: dict[str, Any]) -> str:
    solver = data["solver"]
    good = data["plans"][0]["errors"]
    return (
        f"{solver['n_candidates']:,} layouts priced, {solver['n_bounded']:,} replicas and groups bounded, "
        f"{solver['n_simulated']:,} played in {solver['n_runs']:,} runs; gap {solver['gap_frac']:.1%}. "
        f"Good to about {good['throughput_error_frac']:.0%} (requests/s), "
        f"{good['ttft_error_frac']:.0%} (TTFT), {good['tpot_error_frac']:.0%} (TPOT)."
    )


def _print_rejected(data: dict[str, Any], console: Console) -> None:
    for row in data["rejected"]:
        _say(console, f"left out, {row['reason']} ({row['count']:,}): {row['example']}", "  ")


def _say(console: Console, text: str, indent: str) -> None:
    for line in wrap(text, max(console.width, 40), subsequent_indent=indent):
        console.print(line, highlight=False, markup=False)
