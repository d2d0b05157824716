"""``roofplan calibrate``: measure a GPU, import public measurements, fit a calibration to them, check one against them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..scenarios import registry
from ..scenarios.calibration import Calibration, load_calibration, read_calibration
from ..scenarios.errors import BadInput
from ..scenarios.load import DATA_DIR
from ..scenarios.store import check_folder, check_place, write_files, write_text
from ..scenarios.terminal import print_table
from .check import Checked, check_rows, coverage, reasons, summary, unpriced_tables
from .fitting import fit_folder, score_folder
from .framework_cli import framework_command
from .imports import import_tables
from .provenance import save
from .rows import gpus_of, load_tables
from .run_cli import run_command

KERNELS = click.option("--kernels", type=click.Path(path_type=Path), required=True, help="Folder of measurement tables.")
GPU = click.option("--gpu", multiple=True, help="Only this GPU (repeatable; default: every GPU in the tables).")
JSON = click.option(
    "--json", "json_to", metavar="FILE|-", help="Write the result as JSON; '-' writes it to standard output and nothing else."
)


@click.group()
def calibrate() -> None:
    """Measure a GPU, import measurements, fit the cost model to them, and check it."""


calibrate.add_command(run_command, "run")
calibrate.add_command(framework_command, "framework")


@calibrate.command("import", short_help="Read public measurements into tables.")
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the measurement tables to.")
@click.option("--framework", default="vllm", show_default=True, help="Whose kernels to take where a package holds several.")
@click.option("--origin", default="", help="Whose measurements they are (project, version, licence), for the calibration's provenance.")
def import_command(source: Path | None, out: Path, framework: str, origin: str) -> None:
    """Read measurements from SOURCE (default: the installed aiconfigurator-core package) and write them as tables for fit and check."""
    check_folder(out, "--out")
    with _bar("import") as say:
        written = import_tables(source, out, framework, say, origin)
    for name, rows in written.items():
        click.echo(f"{name}: {rows:,} rows")


@calibrate.command("fit", short_help="Fit a calibration per GPU to such tables.")
@KERNELS
@GPU
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the calibrations (default: the package's own).")
@click.option("--holdout", type=click.FloatRange(0.05, 0.5), help="Only score: fit without this part of the rows and predict it.")
@click.option(
    "--split", type=click.Choice(["rows", "shapes", "size"]), default="rows", show_default=True, help="What --holdout leaves out."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="GPUs fitted at the same time.")
@JSON
def fit_command(
    kernels: Path, gpu: tuple[str, ...], out: Path | None, holdout: float | None, split: str, seed: int, jobs: int, json_to: str | None
) -> None:
    """Fit a calibration per GPU to the measurement tables of a folder and store it with its residuals."""
    check_place(json_to, "--json")
    if holdout is not None and not holdout <= 0.5:
        raise BadInput(f"--holdout {holdout} must be from 0.05 to 0.5")
    if holdout is not None:
        with _bar("score") as say:
            scores = score_folder(kernels, gpu, split, holdout, seed, say)
        _show(_score_table(scores), {"split": split, "holdout": holdout, "seed": seed, "families": scores}, json_to)
        return
    check_folder(out or DATA_DIR / "calibrations", "--out")
    with _bar("fit") as say:
        fitted = fit_folder(kernels, gpu, seed, jobs, say)
    paths = [save(c, out or DATA_DIR / "calibrations") for c in fitted]
    rows = {c.name: {"families": len(c.families), "n_rows": sum(_own_rows(c)), "path": str(p)} for c, p in zip(fitted, paths, strict=True)}
    _show(_plain(rows), {"calibrations": rows}, json_to)


@calibrate.command("check", short_help="Price every measured row and report the errors.")
@KERNELS
@GPU
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="A calibration file to check instead of the card's own (with one --gpu)."
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write a page of figures (HTML): parity, efficiency, worst shapes, coverage."
)
@click.option(
    "--splits", is_flag=True, help="Check the way of fitting instead: rows, shapes, sizes or a GPU left out, against the errors aimed at."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which rows and shapes --splits leaves out.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes of --splits.")
@JSON
def check_command(
    kernels: Path,
    gpu: tuple[str, ...],
    calibration: Path | None,
    report: Path | None,
    splits: bool,
    seed: int,
    jobs: int,
    json_to: str | None,
) -> None:
    """Price every measured row with the calibration in use and report the errors by table and GPU."""
    for place, flag in ((json_to, "--json"), (report, "--report")):
        check_place(place, flag)
    if splits:
        from .splits import score, verdicts

        with _bar("splits") as say:
            lines = verdicts(score(kernels, gpu, seed=seed, jobs=jobs, say=say))
        _show(_split_table(lines), {"seed": seed, "splits": lines}, json_to)
        return
    checked = _checked(kernels, gpu, calibration)
    result: dict[str, Any] = {"tables": summary(checked), "coverage": coverage(checked), "skipped": reasons(checked)}
    if report is not None:
        from .report import page

        write_files({report: page(checked).encode()}, "--report")
    _show(_check_table(result["tables"]), result, json_to)
    if json_to != "-":
        for line in result["skipped"]:
            click.echo(f"{line['table']} {line['gpu']}: {line['n']:,} rows skipped: {line['reason']}")


def _checked(kernels: Path, wanted: Sequence[str], calibration: Path | None) -> list[Checked]:
    tables = load_tables(kernels, foreign=True)
    found = gpus_of(tables)
    names = [registry.accelerator(g).name for g in wanted] or list(found)
    if calibration is not None and len(names) != 1:
        raise BadInput(f"--calibration prices one GPU, the tables hold {', '.join(names)}; name one with --gpu")
    missing = [n for n in names if n not in found]
    if missing:
        raise BadInput(f"no measurements of {', '.join(missing)} in {kernels}; it has {', '.join(found)}")
    fits = read_calibration(calibration) if calibration is not None else None
    checked: list[Checked] = []
    with _bar("check") as say:
        for name in names:
            gpu = registry.accelerator(name)
            for part in check_rows(tables, gpu, found[name], fits or load_calibration(gpu)):
                say(f"{name} {part.family}")
                checked.append(part)
    return checked + ([] if wanted else list(unpriced_tables(tables, kernels)))


def _own_rows(calibration: Calibration) -> list[int]:
    return [f.n_rows for f in calibration.families.values() if f.coefficients]


def _check_table(tables: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table("table", "gpu", "rows", "skipped", "median", "mean", "p90", title="Errors of predicted kernel times")
    for name, gpus in tables.items():
        for gpu, row in gpus.items():
            errors = [f"{100 * row[k]:.1f} %" if row["n"] else "" for k in ("median_ape", "mape", "p90_ape")]
            table.add_row(name, gpu, f"{row['n']:,}", f"{row['n_skipped']:,}", *errors)
    return table


def _score_table(scores: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table("gpu", "family", "rows", "median", "p90", "80 % interval holds", title="Errors on rows left out of the fit")
    for gpu, families in scores.items():
        for family, row in families.items():
            table.add_row(
                gpu,
                family,
                f"{row['n']:,}",
                f"{100 * row['median_ape']:.1f} %",
                f"{100 * row['p90_ape']:.1f} %",
                f"{100 * row['coverage']:.0f} %",
            )
    return table


def _split_table(lines: Sequence[dict[str, Any]]) -> Table:
    table = Table("left out", "of", "rows", "median (aim)", "p90 (aim)", "in 80 % interval", "", title="Errors on rows left out of the fit")
    for line in lines:
        aims = [f" ({100 * line[k]:.0f})" if line[k] else "" for k in ("median_bar", "p90_bar")]
        held = "" if line["coverage"] is None else f"{100 * line['coverage']:.0f} %"
        errors = [f"{100 * line[k]:.2f}{aim} %" for k, aim in zip(("median_ape", "p90_ape"), aims, strict=True)]
        table.add_row(line["split"], line["what"], f"{line['n']:,}", *errors, held, "" if line["holds"] else "missed")
    return table


def _plain(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table("calibration", *next(iter(rows.values())), title="Calibrations written")
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    return table


def _show(table: Table, result: dict[str, Any], json_to: str | None) -> None:
    text = json.dumps(result, indent=1)
    if json_to == "-":
        click.echo(text)
        return
    if json_to:
        write_text(text, json_to, "--json")
    print_table(table)


class _bar:  # noqa: N801  (a context manager used like a function)
    """A line on stderr that names what is being worked on."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Any:
        self.progress.start()
        task = self.progress.add_task("", total=None)
        return lambda text: self.progress.update(task, description=text, advance=1)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
