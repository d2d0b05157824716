"""Fits calibrations to a folder of measurement tables, several GPUs at a time, or scores fits on rows they did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..scenarios import registry
from ..scenarios.calibration import Calibration, borrowed, load_calibration
from ..scenarios.errors import BadFile, BadInput
from ..scenarios.load import names
from . import errors_model
from .fit import left_out
from .gpu_fit import Part, assemble, borrow, complete, fit_parts
from .own_runs import is_run
from .parallel import in_parallel
from .rows import families, gpus_of, load_tables
from .tables import digest

Say = Callable[[str], None]
Scores = dict[str, dict[str, dict[str, float]]]


def fit_folder(folder: Path, wanted: Sequence[str], seed: int, jobs: int, say: Say = lambda _: None) -> list[Calibration]:
    """One calibration per GPU with measured products in the folder; kinds of work nobody measured on it come from its kin.

    The same tables and seed give the same calibrations, whatever ``jobs``.
    """
    gpus, tables = measured_gpus(folder, wanted), load_tables(folder)
    tasks = [(folder, gpu, table, seed) for gpu in gpus for table in tables]
    done = in_parallel(_fit_table, tasks, jobs, lambda task: say(f"{task[1]} {task[2]}"))
    found = gpus_of(tables)
    fitted = []
    for name in gpus:
        parts = [part for task, some in zip(tasks, done, strict=True) if task[1] == name for part in some]
        sources = {t: provenance(folder, t, frame) for t, frame in tables.items() if frame["gpu"].isin(found[name]).any()}
        default = {"default": "measured kernel times, by table; see each family"}
        fitted.append(assemble(registry.accelerator(name), parts, {**default, **sources}))
    return [_complete(c, [d for d in fitted if d.name != c.name]) for c in fitted]


@cache
def _tables(folder: Path) -> dict[str, Any]:
    return load_tables(folder)


def _fit_table(folder: Path, name: str, table: str, seed: int) -> list[Part]:
    """The families of one table on one GPU."""
    tables = _tables(folder)
    return fit_parts(families({table: tables[table]}, registry.accelerator(name), gpus_of(tables)[name]), seed)


def measured_gpus(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Names of the GPUs whose products the folder measures, or the wanted ones; BadInput if one is not there."""
    tables = load_tables(folder)
    found = gpus_of(tables)
    gemm = tables.get("aic_gemm")
    have = [g for g, spellings in found.items() if gemm is not None and gemm["gpu"].isin(spellings).any()]
    names_wanted = [registry.accelerator(g).name for g in wanted]
    missing = [g for g in names_wanted if g not in have]
    if missing:
        raise BadInput(f"{folder} has no aic_gemm rows of {', '.join(missing)}; it has {', '.join(have) or 'none of any GPU'}")
    if not have:
        raise BadFile(f"{folder}: no aic_gemm rows of a known GPU, so there is nothing to fit a calibration on")
    return names_wanted or have


def provenance(folder: Path, table: str, frame: Any) -> str:
    """Where a table's rows come from: framework and version as recorded in it, and the digest of the file read."""
    columns = frame.columns
    versions = ""
    if "framework_version" in columns:
        pairs = frame[["framework", "framework_version"]].drop_duplicates()
        versions = ", ".join(sorted(f"{a} {b}" for a, b in pairs.itertuples(index=False)))
    path = next((p for p in (folder / f"{table}.parquet", folder / f"{table}.csv") if p.exists()), None)
    if path is None:
        runs = [p for p in sorted(folder.glob("*.parquet")) if is_run(p)]
        return "calibrate run; sha256 " + ", ".join(digest(p) for p in runs)
    origin = {"aic": "AIConfigurator 0.12.0 (Apache-2.0)", "vidur": "Vidur 7d47513 (MIT)"}.get(table.split("_")[0], "own measurements")
    if "origin" in columns:
        origin = ", ".join(sorted(map(str, frame["origin"].unique())))
    return f"{origin}{'; ' + versions if versions else ''}; sha256 {digest(path)}"


def _complete(calibration: Calibration, others: list[Calibration]) -> Calibration:
    """Borrow missing kinds: from its kin, where the card names one; else from cards of the same architecture, then from the others."""
    gpu = registry.accelerator(calibration.name)
    lender = borrowed(gpu)
    if lender is not None:
        return complete(calibration, gpu, lender)
    near = sorted(others, key=lambda c: (registry.accelerator(c.name).arch != gpu.arch, -len(c.families)))
    if gpu.name in names("calibrations"):
        near.append(replace(load_calibration(gpu), name=f"the installed {gpu.name}"))
    return borrow(calibration, gpu, near)


def score_folder(folder: Path, wanted: Sequence[str], split: str, frac: float, seed: int, say: Say = lambda _: None) -> Scores:
    """Errors of fits on rows they did not see, by GPU and family, and how many of them their intervals held."""
    tables = load_tables(folder)
    out: Scores = {}
    for name in measured_gpus(folder, wanted):
        gpu = registry.accelerator(name)
        for bound in families(tables, gpu, gpus_of(tables)[name]):
            say(f"{name} {bound.key}")
            error, at = left_out(bound, split, frac, seed)
            if not len(error):
                continue
            ape = np.abs(np.expm1(error))
            predicted = bound.seconds[at] * np.exp(error)
            model = errors_model.learn(predicted[::2], error[::2], np.zeros(0), np.zeros(0))
            held = errors_model.coverage(predicted[1::2], error[1::2], model) if len(error) > 1 else 1.0
            out.setdefault(name, {})[bound.key] = {
                "n": len(error), "median_ape": float(np.median(ape)), "p90_ape": float(np.quantile(ape, 0.9)), "coverage": held,
            }  # fmt: skip
    return out
