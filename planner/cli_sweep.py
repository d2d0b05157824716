"""``roofplan sweep``: the best plan at every point of a grid, as tidy CSV or JSON."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.scenario import parse_seq, read_scenario
from ..scenarios.store import check_place, write_text
from .answer import write_json
from .cli import scenario_flags, split_allow
from .whatif import COLUMNS, sweep_rows

T = TypeVar("T")
MAX_POINTS = 2_000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@scenario_flags
@click.option("--seq", "seqs", default="8K", show_default=True, help="Sequence lengths, comma-separated; max for the longest.")
@click.option("--gpus", "counts", default="8", show_default=True, help="Numbers of GPUs, comma-separated.")
@click.option("--csv", "csv_to", metavar="FILE|-", default="-", show_default=True, help="Where the rows go as CSV.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the rows as JSON instead; `-` prints them and nothing else.")
def sweep(seqs: str, counts: str, csv_to: str, json_to: str | None, **flags: Any) -> None:
    """Plan every combination of --seq, --gpus and --gpu (each a comma-separated list)."""
    flags["allow"] = split_allow(flags["allow"])
    gpus = _each(flags.pop("gpu") or "h100-sxm", "gpu", _gpu)
    lengths = _each(seqs, "seq", parse_seq)
    sizes = _each(counts, "gpus", _count)
    if flags["model"]:
        registry.model(flags["model"])
    points = [(gpu, n, seq) for gpu in gpus for n in sizes for seq in lengths]
    if len(points) > MAX_POINTS:
        raise BadInput(f"the grid has {len(points):,} points, over the limit of {MAX_POINTS:,}; split it")
    check_place(json_to, "--json")
    check_place(csv_to, "--csv")
    scenarios = [read_scenario(None, flags | {"gpu": gpu, "n_gpus": n, "seq_tokens": seq}) for gpu, n, seq in points]
    with click.progressbar(scenarios, label="planning", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        rows = sweep_rows(bar)
    if json_to:
        write_json({"rows": rows}, json_to)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), csv_to, "--csv")


def _each(text: str, flag: str, parse: Callable[[str], T]) -> list[T]:
    """The values of a comma-separated flag, each once; BadInput names the flag."""
    try:
        return list(dict.fromkeys(parse(word.strip()) for word in text.split(",")))
    except BadInput as error:
        raise BadInput(f"--{flag} {text[:80]}: {error}") from None


def _gpu(word: str) -> str:
    """A GPU or cluster that the registry knows; UnknownName otherwise."""
    registry.cluster(word, 1)
    return word


def _count(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise BadInput(f"{word!r} is not a whole number; write 8 or 8,16,32") from None
