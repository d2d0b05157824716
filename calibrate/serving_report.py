"""Serving validation as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..scenarios.units import show_number


def points_table(result: dict[str, Any]) -> Table:
    """Errors by source and metric of ``validate_serving``."""
    fitted = sum(row["fitted"] for row in result["rows"])
    title = f"{len(result['rows'])} numbers predicted, {fitted} in the fitting fifth and left out, {len(result['skipped'])} rows skipped"
    table = Table(title=title, title_justify="left")
    for name in ("source", "metric", "n", "median error", "mean error", "bias"):
        table.add_column(name, justify="left" if name in ("source", "metric") else "right")
    for source, metrics in result["summary"].items():
        for metric, e in metrics.items():
            table.add_row(source, metric, f"{e['n']:,}", f"{e['median_ape']:.1%}", f"{e['mape']:.1%}", f"{e['bias']:+.1%}")
    return table


def log_table(result: dict[str, Any]) -> Table:
    """Measured beside replayed distributions of ``validate_serving_log``."""
    (name, summary), *_ = result["summary"].items()
    table = Table(title=f"{name}: {summary['n_requests']} requests, {summary['kv_blocks']} KV blocks", title_justify="left")
    for column in ("metric", "stat", "measured", "predicted", "error"):
        table.add_column(column, justify="left" if column in ("metric", "stat") else "right")
    for row in result["rows"]:
        numbers = [show_number(row[name], 4) for name in ("published", "predicted")]
        table.add_row(row["metric"], row["stat"], *numbers, f"{row['error_frac']:+.1%}")
    return table
