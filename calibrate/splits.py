"""Scores the way calibrations are fitted: rows, whole shapes, largest sizes or a whole GPU left out, against the errors aimed at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import Array
from ..scenarios import registry
from ..scenarios.calibration import Calibration, transfer
from ..scenarios.hardware import Accelerator
from .check import interval, price
from .fit import holdout
from .fitting import measured_gpus
from .foreign import engines
from .gpu_fit import assemble, fit_parts
from .parallel import in_parallel
from .rows import bind, enough, gpus_of, load_tables, split
from .tables import columns_of

SPLITS = ("rows", "shapes", "size", "gpu")
"""What is left out: a quarter of the rows, a quarter of the shapes, the two largest octaves of size, all rows of a GPU."""

FRAC = 0.25


@dataclass(frozen=True, slots=True)
class Bar:
    """The largest median error aimed at for rows of some families under one split; ``p90`` of 0: none was set."""

    split: str
    name: str
    prefixes: tuple[str, ...]
    median_frac: float
    p90_frac: float = 0.0
    coverage: bool = False


BARS = (
    Bar("rows", "GEMM bf16", ("gemm.bf16",), 0.04, 0.18, True),
    Bar("rows", "GEMM fp8", ("gemm.fp8",), 0.05, 0.18, True),
    Bar("rows", "GEMM fp8_block", ("gemm.fp8_block",), 0.06, 0.18, True),
    Bar("rows", "GEMM nvfp4", ("gemm.nvfp4",), 0.06, 0.18, True),
    Bar("rows", "prefill attention", ("attention.prefill.",), 0.05, 0.25, True),
    Bar("rows", "decode attention", ("attention.decode.",), 0.02, 0.25, True),
    Bar("rows", "MLA prefill", ("mla.prefill",), 0.04, 0.25, True),
    Bar("rows", "MLA decode", ("mla.decode",), 0.04, 0.25, True),
    Bar("rows", "MoE", ("moe.",), 0.03, 0.20, True),
    Bar("rows", "MoE all-to-all", ("moe_alltoall.",), 0.08, 0.20, True),
    Bar("rows", "NCCL", ("collective.all_", "collective.reduce_"), 0.04, 0.20, True),
    Bar("rows", "custom all-reduce", ("custom_allreduce.",), 0.03, 0.20, True),
    Bar("shapes", "GEMM (n, k) pairs", ("gemm.",), 0.07),
    Bar("shapes", "attention heads", ("attention.",), 0.09),
    Bar("shapes", "MoE expert shapes", ("moe.",), 0.08),
    *(Bar("size", f"GEMM {d}", (f"gemm.{d}",), 0.08) for d in ("bf16", "fp8", "fp8_block", "nvfp4")),
    Bar("size", "prefill attention", ("attention.prefill.",), 0.08),
    Bar("size", "decode attention", ("attention.decode.",), 0.08),
    Bar("size", "MLA", ("mla.",), 0.08),
    Bar("gpu", "GEMM bf16", ("gemm.bf16",), 0.15),
    Bar("gpu", "prefill attention", ("attention.prefill.",), 0.20),
    Bar("gpu", "decode attention", ("attention.decode.",), 0.20),
)
"""What the project asks of unseen rows, over the rows of all GPUs; a whole GPU is asked of each one in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Rows of one family and GPU that a fit did not see: relative errors (signed), and whether their 80 % interval held them."""

    split: str
    gpu: str
    family: str
    error: Array
    held: NDArray[np.bool_]


def score(
    folder: Path,
    wanted: Sequence[str] = (),
    kinds: Sequence[str] = SPLITS,
    seed: int = 0,
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> list[Left]:
    """Fit without the rows each split leaves out and price those rows by the calls a plan makes."""
    cards = measured_gpus(folder, wanted)
    tasks = [(folder, card, kind, seed) for kind in kinds if kind != "gpu" for card in cards]
    if "gpu" in kinds and len(measured_gpus(folder, ())) > 1:
        tasks += [(folder, card, "gpu", seed) for card in cards]
    return [left for part in in_parallel(_score_one, tasks, jobs, lambda t: say(f"{t[2]} {t[1]}")) for left in part]


def _score_one(folder: Path, card: str, kind: str, seed: int) -> list[Left]:
    tables = load_tables(folder)
    gpu, found = registry.accelerator(card), gpus_of(tables)
    parts = list(_parts(tables, gpu, found[card]))
    if kind == "gpu":
        donor = nearest(gpu, [registry.accelerator(n) for n in measured_gpus(folder, ()) if n != card])
        own = [(t, k, f) for t, k, f in _parts(tables, donor, found[donor.name]) if k.startswith(("gemm.bf16", "attention."))]
        lent = transfer(_fit(donor, own, seed, errors=False), donor, gpu)
        return list(_priced(kind, gpu, lent, [(k, f) for _, k, f in parts if k in lent.families]))
    train, test = [], []
    for table, key, frame in parts:
        out = holdout(bind(key, frame, gpu, _link(gpu), table), kind, FRAC, seed)
        if out.any() and not out.all() and enough(bind(key, frame[~out], gpu, _link(gpu), table)):
            train.append((table, key, frame[~out]))
            test.append((key, frame[out]))
    return list(_priced(kind, gpu, _fit(gpu, train, seed, errors=kind == "rows"), test))


def _parts(tables: dict[str, Any], gpu: Accelerator, spellings: list[str]) -> Iterable[tuple[str, str, Any]]:
    """Table, family and rows of everything measured on a card that a bar asks about."""
    for table, frame in tables.items():
        for key, part in split(table, frame[frame["gpu"].isin(spellings)], gpu):
            if len(part) and any(key.startswith(p) for bar in BARS for p in bar.prefixes):
                yield table, key, part


def _fit(gpu: Accelerator, parts: list[tuple[str, str, Any]], seed: int, errors: bool) -> Calibration:
    return assemble(gpu, fit_parts((bind(key, frame, gpu, _link(gpu), table) for table, key, frame in parts), seed, errors), {})


def _link(gpu: Accelerator) -> Any:
    return registry.link(registry.cluster(gpu.name, 1).intra)


def _priced(kind: str, gpu: Accelerator, fits: Calibration, rows: Iterable[tuple[str, Any]]) -> Iterable[Left]:
    roofline, network = engines(gpu, fits)
    for key, frame in rows:
        columns = columns_of(frame)
        predicted = price(key, columns, roofline, network)
        error = predicted / (columns["latency_us"] * 1e-6) - 1
        held = np.abs(error) <= interval(key, frame, predicted, roofline, network)
        yield Left(split=kind, gpu=gpu.name, family=key, error=error, held=held)


def nearest(gpu: Accelerator, others: Sequence[Accelerator]) -> Accelerator:
    """The measured card to borrow from: of the same architecture, else nearest in peak and bandwidth (octaves)."""

    def distance(other: Accelerator) -> tuple[bool, float]:
        peaks = log(other.bf16_flops_per_s / gpu.bf16_flops_per_s)
        return other.arch != gpu.arch, abs(peaks) + abs(log(other.hbm_bytes_per_s / gpu.hbm_bytes_per_s))

    return min(others, key=distance)


def verdicts(scored: Sequence[Left]) -> list[dict[str, Any]]:
    """One line per bar that has rows: medians, 90th percentiles and coverage over all GPUs (for left-out GPUs: one line each)."""
    lines = []
    for bar in BARS:
        mine = [s for s in scored if s.split == bar.split and _of(s.family, bar.prefixes)]
        groups = [[s for s in mine if s.gpu == g] for g in dict.fromkeys(s.gpu for s in mine)] if bar.split == "gpu" else [mine]
        for group in filter(None, groups):
            ape = np.abs(np.concatenate([s.error for s in group]))
            held = float(np.mean(np.concatenate([s.held for s in group])))
            line: dict[str, Any] = {
                "split": bar.split, "what": bar.name + (f" of {group[0].gpu}" if bar.split == "gpu" else ""), "n": len(ape),
                "median_ape": float(np.median(ape)), "p90_ape": float(np.quantile(ape, 0.9)), "coverage": held if bar.coverage else None,
                "median_bar": bar.median_frac, "p90_bar": bar.p90_frac or None,
            }  # fmt: skip
            line["holds"] = line["median_ape"] <= bar.median_frac and (not bar.p90_frac or line["p90_ape"] <= bar.p90_frac)
            line["holds"] = line["holds"] and (not bar.coverage or 0.75 <= held <= 0.85)
            lines.append(line)
    return lines


def _of(family: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a family is one of these; a prefix ending in a dot or underscore takes all below it, ``mla.`` ones their fp8 caches too."""
    return any(family in (p, f"{p}.fp8") or (p[-1] in "._" and family.startswith(p)) for p in prefixes)
