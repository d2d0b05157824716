"""``roofplan calibrate framework``: fit a training framework's constants on a table of measured runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.store import check_place, write_files, write_text
from .framework_fit import BOUNDS, fit_framework, to_toml
from .training_price import price_runs
from .training_rows import read_runs


@click.command(short_help="Fit constants of a training framework to measured runs.")
@click.argument("name")
@click.option("--training", type=click.Path(path_type=Path), required=True, help="A table of measured training runs (CSV).")
@click.option("--free", multiple=True, required=True, metavar="CONSTANT", help=f"A constant to fit (repeatable): {', '.join(BOUNDS)}.")
@click.option("--memory", is_flag=True, help="Fit peak memory instead of step time.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the fitted constants here as lines of the framework's data file.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the result as JSON; '-' writes it to standard output and nothing else.")
def framework_command(name: str, training: Path, free: tuple[str, ...], memory: bool, out: Path | None, json_to: str | None) -> None:
    """Fit constants of the framework NAME on one run in five (by a hash of its id); the other four judge them."""
    for place, flag in ((out, "--out"), (json_to, "--json")):
        check_place(place, flag)
    start = registry.framework(name)
    priced, _ = price_runs(read_runs(training))
    mine = [p.setting for p in priced if registry.framework(p.setting.rule.framework).name == start.name]
    if not mine:
        others = sorted({p.setting.rule.framework for p in priced})
        raise BadInput(f"{training} holds no run of {start.name} that can be priced; it has runs of {', '.join(others) or 'none'}")
    fit = fit_framework(start, mine, free, memory=memory)
    text = to_toml(fit.framework, free, f"fitted on {fit.n_fitted} runs of {training.name}, one in five by a hash of the id")
    result: dict[str, Any] = {
        "framework": start.name, "constants": {c: getattr(fit.framework, c) for c in free}, "n_fitted": fit.n_fitted,
        "n_scored": fit.n_scored, "fitted_median_ape": fit.fitted_error, "scored_median_ape": fit.scored_error,
    }  # fmt: skip
    if out is not None:
        write_files({out: text.encode()}, "--out")
    if json_to == "-":
        click.echo(json.dumps(result, indent=1))
        return
    if json_to:
        write_text(json.dumps(result, indent=1) + "\n", json_to, "--json")
    before, after = (100 * e for e in fit.scored_error)
    click.echo(text + f"\nmedian error on {fit.n_scored} runs not fitted: {before:.1f} % before, {after:.1f} % after")
