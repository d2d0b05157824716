"""The answer as a table for people, 80 columns wide, from the JSON alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..scenarios.units import show_bytes, show_tokens

if TYPE_CHECKING:
    from rich.console import Console


def print_report(data: dict[str, Any], console: Console) -> None:
    """The readable form, from the JSON alone: what was asked, the ranked plans, why, what binds, what was turned away."""
    asked, plans = data["scenario"], data["plans"]
    console.print(
        f"[bold]{asked['model']}[/] on {asked['n_gpus']:,} x {asked['gpu']}, seq {show_tokens(asked['seq_tokens'])}, "
        f"{asked['global_batch']:,} sequences a step, objective {asked['objective']}"
    )
    if not plans:
        console.print(f"[bold red]No plan fits.[/] {data['binding']['sentence']}.")
        console.print("Nearest changes:")
        for line in data["nearest"]:
            console.print(f"  - {line}", highlight=False)
        return
    console.print(_table(data))
    for line in data["why"]:
        console.print(f"- {line}", highlight=False)
    console.print(f"Binding limit: {data['binding']['sentence']}.", highlight=False)
    console.print(_solver_line(data), highlight=False)
    for line in data["notes"]:
        console.print(f"Note: {line}", highlight=False)


def _table(data: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("layout", ratio=1)
    for name in ("step", "tok/s/GPU", "MFU", "HBM", "$/Mtok"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in data["plans"]:
        cost, memory = plan["cost_usd_per_mtoken"], plan["memory"]
        gpus = f" on {plan['n_gpus']} GPUs" if plan["n_gpus"] != data["scenario"]["n_gpus"] else ""
        seq = f" seq {show_tokens(plan['seq_tokens'])}" if plan["seq_tokens"] != data["scenario"]["seq_tokens"] else ""
        table.add_row(
            str(plan["rank"]), f"[bold]{plan['summary']['degrees']}[/]{gpus}{seq}\n[dim]{', '.join(plan['summary']['options'])}[/]",
            show_seconds(plan["step_time_s"]), f"{plan['tokens_per_s_per_gpu']:,.0f}", f"{plan['mfu_frac']:.1%}",
            show_bytes(memory["total_bytes"]), f"{cost:.3g}" if cost else "-",
        )  # fmt: skip
    return table


def _solver_line(data: dict[str, Any]) -> str:
    solver, plan = data["solver"], data["plans"][0]
    turned = sum(row["count"] for row in data["rejected"])
    borrowed = " (efficiencies borrowed from another card)" if plan["extrapolated"] else ""
    return (
        f"{solver['n_candidates']:,} layouts priced, {turned:,} turned away; {solver['name']}: {solver['status']}, "
        f"gap {solver['gap_frac']:.2%}, {solver['n_solved']} layouts solved; times good to about {plan['error_frac']:.0%}{borrowed}."
    )


def show_seconds(value: float) -> str:
    """Seconds with three digits: ``412 ms``, ``3.21 s``, ``1,234 s``."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"
