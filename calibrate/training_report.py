"""Validates a table of training runs: the machine-readable result and a readable table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from .training_price import Priced, Skipped, Watch, price_runs
from .training_published import failed_unclear
from .training_rows import read_runs
from .training_score import summarise, was_fitted


def validate_training(path: Path, watch: Watch = list) -> dict[str, Any]:
    """Price every run of a CSV table and score the prices: ``{"rows", "skipped", "summary"}``; BadFile if the table is broken.

    Rows on which a constant of their framework was fitted are marked ``fitted`` and left out of the summary's errors.
    ``watch`` sees the batches go by.
    """
    priced, skipped = price_runs(read_runs(path), watch)
    rows = {item.setting.run.id: _rows(item) for item in priced}
    nothing = [Skipped(id=item.setting.run.id, why=_no_number(item)) for item in priced if not rows[item.setting.run.id]]
    return {
        "rows": [row for found in rows.values() for row in found],
        "skipped": [{"id": s.id, "why": s.why} for s in (*skipped, *nothing)],
        "summary": summarise(priced),
    }


def _rows(item: Priced) -> list[dict[str, Any]]:
    s = item.setting
    out = []
    if s.published_step_s:
        out.append(_row(item, "step_time_s", s.published_step_s, item.step_s))
    if s.published_peak_bytes and item.ran is not False:
        out.append(_row(item, "peak_mem_gb", s.published_peak_bytes / s.rule.gb, item.peak_bytes / s.rule.gb))
    if item.ran is not None:
        out.append(_row(item, "fits", float(item.ran), float(item.fits)))
    return out


def _no_number(item: Priced) -> str:
    if failed_unclear(item.setting.run):
        return "failed, the source does not say whether of memory: counted in the summary only"
    return "states no step time, peak memory or memory label that can be scored"


def _row(item: Priced, metric: str, published: float, predicted: float) -> dict[str, Any]:
    error = predicted / published - 1 if published else predicted - published
    run = item.setting.run
    return {
        "id": run.id,
        "source": run.source,
        "metric": metric,
        "published": published,
        "predicted": predicted,
        "error_frac": error,
        "fitted": was_fitted(item),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """Three tables for a terminal: step time by source, memory by source, why rows were left out."""
    return [_time_table(result["summary"]), _memory_table(result["summary"]), _skipped_table(result["skipped"])]


def _time_table(summary: dict[str, Any]) -> Table:
    table = Table(title="step time by source", title_justify="left")
    for name in ("source", "n", "median error", "mean error", "after one scalar: median", "mean", "rank corr.", "regret median", "max"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, s in summary.items():
        if "n" in s:
            keys = ("median_ape", "mape", "median_ape_after_one_scalar", "mape_after_one_scalar")
            table.add_row(
                source,
                str(s["n"]),
                *(_percent(s[k]) for k in keys),
                "" if s["spearman"] is None else f"{s['spearman']:.2f}",
                _percent(s["regret"]),
                _percent(s["regret_max"]),
            )
    return table


def _memory_table(summary: dict[str, Any]) -> Table:
    table = Table(title="peak memory by source", title_justify="left")
    for name in ("source", "n", "median error", "mean error", "ran, called too big", "out of memory, called fitting"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, s in summary.items():
        m = s["memory"]
        if m["ran"] or m["ran_out_of_memory"] or "n" in m:
            table.add_row(
                source,
                str(m.get("n", 0)),
                _percent(m.get("median_ape")),
                _percent(m.get("mape")),
                f"{m['ran_called_not_fitting']} of {m['ran']}",
                f"{m['ran_out_called_fitting']} of {m['ran_out_of_memory']}",
            )
    return table


def _skipped_table(skipped: list[dict[str, str]]) -> Table:
    table = Table(title=f"{len(skipped)} rows not priced", title_justify="left")
    table.add_column("why")
    table.add_column("rows", justify="right")
    counts: dict[str, int] = {}
    for item in skipped:
        counts[item["why"]] = counts.get(item["why"], 0) + 1
    for why, n in sorted(counts.items(), key=lambda kv: -kv[1])[:20]:
        table.add_row(why, str(n))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
