"""``roofplan models``, ``roofplan gpus`` and ``roofplan techniques``: what the registry knows."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from ..costmodels.params import count_params
from ..scenarios.hardware import Accelerator
from ..scenarios.load import load, names
from ..scenarios.model import ModelSpec
from ..scenarios.technique import LEVELS
from ..scenarios.technique import techniques as all_techniques
from .answer import write_json


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_to", metavar="FILE|-", help="Write the list as JSON; `-` prints it and nothing else.")
@click.argument("words", nargs=-1)
def models(json_to: str | None, words: tuple[str, ...]) -> None:
    """List the models, or those whose name has all WORDS."""
    found = [load(ModelSpec, path) for stem, path in names("models").items() if all(w.lower() in stem for w in words)]
    rows = [_model_row(m) for m in found]
    columns = {"name": "name", "params": "params", "active": "active_params", "layers": "n_layers", "hidden": "hidden",
               "heads": "n_heads", "KV": "n_kv_heads", "context": "max_seq_tokens"}  # fmt: skip
    _show({"models": rows}, rows, columns, json_to)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_to", metavar="FILE|-", help="Write the list as JSON; `-` prints it and nothing else.")
@click.argument("words", nargs=-1)
def gpus(json_to: str | None, words: tuple[str, ...]) -> None:
    """List the GPUs, or those whose name has all WORDS, and whether their efficiencies were measured."""
    measured = set(names("calibrations"))
    found = [load(Accelerator, path) for stem, path in names("hardware").items() if all(w.lower() in stem for w in words)]
    rows = [dataclasses.asdict(gpu) | {"efficiencies": "measured" if gpu.name in measured else f"from {gpu.kin}"} for gpu in found]
    columns = {"name": "name", "memory": "hbm_bytes", "bandwidth": "hbm_bytes_per_s", "bf16": "bf16_flops_per_s", "fp8": "fp8_flops_per_s",
               "efficiencies": "efficiencies"}  # fmt: skip
    _show({"gpus": rows}, rows, columns, json_to)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_to", metavar="FILE|-", help="Write the list as JSON; `-` prints it and nothing else.")
@click.argument("words", nargs=-1)
def techniques(json_to: str | None, words: tuple[str, ...]) -> None:
    """List the published techniques whose name, title or family has all WORDS, with what each loses and what switches it on."""
    rows = [
        dataclasses.asdict(row)
        | {
            "status": row.status,
            "exactness": ", ".join(LEVELS[level].partition(" (")[0] for level in row.levels),
            "switched_on_in": ", ".join(row.deploy) or "research code only",
        }
        for row in all_techniques().values()
        if all(w.lower() in f"{row.name} {row.title} {row.family}".lower() for w in words)
    ]
    columns = {"name": "name", "exactness": "exactness", "switched on in": "switched_on_in"}
    _show({"techniques": rows}, rows, columns, json_to)


def _model_row(model: ModelSpec) -> dict[str, Any]:
    count = count_params(model)
    return dataclasses.asdict(model) | {"params": float(count.total), "active_params": float(count.active)}


def _show(data: dict[str, Any], rows: list[dict[str, Any]], columns: dict[str, str], json_to: str | None) -> None:
    if json_to:
        write_json(data, json_to)
    if json_to == "-":
        return
    from rich.table import Table

    from ..scenarios.terminal import print_table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in columns:
        table.add_column(
            title, justify="left" if title in ("name", "efficiencies", "exactness", "switched on in") else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in columns.values()))
    print_table(table)


def _cell(key: str, value: Any) -> str:
    """A number with its unit, short."""
    if key.endswith("params"):
        return f"{value / 1e9:,.4g}B"
    units = {"_bytes": (1e9, "GB"), "_bytes_per_s": (1e12, "TB/s"), "_flops_per_s": (1e12, "T")}
    for suffix, (scale, unit) in units.items():
        if key.endswith(suffix):
            return f"{value / scale:,.4g}{unit}" if value else "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
