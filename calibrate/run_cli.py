"""``roofplan calibrate run``: measure the GPU of this machine within a stated time."""

from __future__ import annotations

from pathlib import Path

import click

from ..scenarios.errors import BadInput
from ..scenarios.store import check_folder
from .run import Bench, Journal, calibrate_run, find_bench


@click.command("run", short_help="Measure this machine's GPU.")
@click.option("--minutes", type=float, default=5.0, show_default=True, help="Minutes to spend in all; 30 gives a full calibration.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Table to write (.parquet); its journal lies beside it.")
def run_command(minutes: float, out: Path) -> None:
    """Measure this machine's GPU: copy and matmul ceilings first, then the kernels and shapes known least well.

    Stop it at any time and run it again with the same --out: it goes on where it was, losing at most the point in flight. A larger
    --minutes later adds points to the same table.
    """
    if out.suffix != ".parquet":
        raise BadInput(f"--out {out} must end in .parquet: the table is written in that form")
    check_folder(out.parent, "--out")
    journal = _with_bar(out, minutes, find_bench())
    found = f"{len(journal.rows)} rows of {len(journal.done)} points in {out}"
    click.echo(f"{found}; {len(journal.failed)} points cannot run on this card", err=True)


def _with_bar(out: Path, minutes: float, bench: Bench) -> Journal:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=60 * minutes)

        def note(text: str, spent_s: float) -> None:
            progress.update(task, completed=spent_s, description=text[:60])

        return calibrate_run(out, minutes, bench, note=note)
