"""``roofplan validate``: published numbers against predictions, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..scenarios.errors import BadInput, CheckFailed, RoofplanError
from ..scenarios.reference import select
from ..scenarios.store import check_place, write_text
from ..scenarios.terminal import print_table
from ..scenarios.units import show_number
from .serving_report import log_table, points_table
from .training_report import tables as training_tables
from .training_report import validate_training
from .validate import run_cases
from .validate_serving import validate_serving, validate_serving_log

T = TypeVar("T")
WIDE_COLUMNS = 120


@click.command()
@click.argument("case", nargs=-1)
@click.option("--training", type=click.Path(path_type=Path), help="A table of measured training runs (CSV) to predict and score.")
@click.option("--serving", type=click.Path(path_type=Path), help="A table of measured serving points (CSV).")
@click.option("--serving-log", type=click.Path(path_type=Path), help="A folder with the log of a real engine run.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON; '-' writes it to standard output and nothing else.")
def validate(case: tuple[str, ...], training: Path | None, serving: Path | None, serving_log: Path | None, json_to: str | None) -> None:
    """Compare predictions with published or measured numbers.

    Without an option: the catalogue of published cases, all or those whose name or system is CASE. Exit code 1 if a case whose number
    was read in a primary source is outside its bar, 2 if the input is wrong.
    """
    try:
        check_place(json_to, "--json")
        result, shown = _result(case, training, serving, serving_log)
        _write(result, shown, json_to)
        missed = [row["case"] for row in result["rows"] if row.get("status") == "miss"]
        if missed:
            raise CheckFailed(f"{len(missed)} of {len(result['rows'])} cases outside their bar: {', '.join(missed)}")
    except CheckFailed as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except RoofplanError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _result(
    case: tuple[str, ...], training: Path | None, serving: Path | None, serving_log: Path | None
) -> tuple[dict[str, Any], list[Table]]:
    given = [f"CASE {case[0]!r}"] if case else []
    given += [flag for flag, path in (("--training", training), ("--serving", serving), ("--serving-log", serving_log)) if path]
    if len(given) > 1:
        raise BadInput(f"{given[0]} and {given[1]} exclude each other; run them one after the other")
    if serving is not None:
        result = validate_serving(serving, lambda points: watched(points, "serving points"))
        return result, [points_table(result)]
    if serving_log is not None:
        result = validate_serving_log(serving_log)
        return result, [log_table(result)]
    if training is None:
        result = run_cases(watched(select(case), "cases"))
        return result, [case_table(result)]
    result = validate_training(training, lambda groups: watched(groups, "batches of runs"))
    return result, training_tables(result)


def watched(items: Sequence[T], what: str) -> Iterable[T]:
    """The same items with a progress bar on standard error while it is a terminal."""
    console = Console(stderr=True)
    return track(items, description=what, console=console, transient=True, disable=not console.is_terminal)


def _write(result: dict[str, Any], shown: list[Table], json_to: str | None) -> None:
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    if json_to == "-":
        click.echo(text, nl=False)
        return
    if json_to:
        write_text(text, json_to, "--json")
    for table in shown:
        print_table(table)


def case_table(result: dict[str, Any]) -> Table:
    """Cases as a table for a terminal: published beside predicted, error beside bar; a narrow one has no room for system and metric."""
    s = result["summary"]
    title = f"{s['pass']} pass, {s['miss']} miss, {s['claimed']} claimed (not read in a primary source, shown only)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    words = ("system", "metric") if Console().width >= WIDE_COLUMNS else ()
    for name in ("case", *words, "published", "predicted", "error", "bar", "status"):
        numeric = name in ("published", "predicted", "error", "bar")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric or name in ("case", "status"))
    colours = {"pass": "green", "miss": "red", "claimed": "yellow"}
    for row in result["rows"]:
        table.add_row(
            row["case"],
            *(row[name] for name in words),
            show_number(row["published"], 4),
            show_number(row["predicted"], 4),
            f"{100 * row['error_frac']:+.1f} %",
            f"{100 * row['tolerance_frac']:.1f} %",
            f"[{colours[row['status']]}]{row['status']}[/]",
        )
    return table
