"""Scores predicted training runs by source: errors before and after one scalar, rank order and regret in measured grids, memory labels."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scenarios import registry
from .framework_fit import is_fitted
from .training_price import Priced
from .training_published import failed_unclear

Array = NDArray[np.float64]
NOT_LAYOUT = {
    "line",
    "id",
    "source",
    "notes",
    "tflops_per_gpu",
    "tokens_per_s_per_gpu",
    "step_time_s",
    "peak_mem_gb",
    "interconnect",
}
"""Cells that do not tell two configurations apart: repeats over software containers differ only in these."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a source, repeats collapsed to their median published value."""

    grid: tuple[Any, ...]
    layout: str
    published: float
    predicted: float


def points(rows: Iterable[Priced], published: Callable[[Priced], float | None], predicted: Callable[[Priced], float]) -> list[Point]:
    """Collapse repeats: rows equal in every configuration cell (see NOT_LAYOUT) count once, at the median of their published values."""
    same: dict[tuple[Any, ...], list[Priced]] = defaultdict(list)
    for row in rows:
        if published(row):
            same[tuple(getattr(row.setting.run, f.name) for f in dataclasses.fields(row.setting.run) if f.name not in NOT_LAYOUT)].append(
                row
            )
    out = []
    for group in same.values():
        run = group[0].setting.run
        values = [published(row) or 0.0 for row in group]
        out.append(
            Point(
                grid=(run.model, run.gpu, run.num_gpus, run.global_batch_seqs, run.seq_len, run.precision),
                layout=layout_text(group[0]),
                published=float(np.median(values)),
                predicted=float(np.median([predicted(row) for row in group])),
            )
        )
    return out


def layout_text(row: Priced) -> str:
    """The layout in one line: ``dp4 tp2 pp1 cp1 ep1 mb2 zero1``."""
    p = row.setting.plan
    vpp = f" vpp{p.vpp}" if np.any(np.asarray(p.vpp) > 1) else ""
    return f"dp{p.dp} tp{p.tp} pp{p.pp}{vpp} cp{p.cp} ep{p.ep} mb{p.micro_batch} {p.sharding}{p.zero_stage}"


def errors(published: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """MAPE and median APE, raw and after the one scalar exp(median log(published/predicted)) that centres the source; and that scalar."""
    true, guess = np.asarray(published, float), np.asarray(predicted, float)
    scalar = float(np.exp(np.median(np.log(true / guess))))
    raw, centred = np.abs(guess / true - 1), np.abs(scalar * guess / true - 1)
    return {
        "n": len(true),
        "mape": float(raw.mean()),
        "median_ape": float(np.median(raw)),
        "mape_after_one_scalar": float(centred.mean()),
        "median_ape_after_one_scalar": float(np.median(centred)),
        "scalar": scalar,
    }


def ranks(values: Array) -> Array:
    """Average ranks, ties shared."""
    order = np.argsort(values, kind="stable")
    out = np.empty(len(values))
    out[order] = np.arange(len(values), dtype=float)
    for value in np.unique(values):
        tied = values == value
        out[tied] = out[tied].mean()
    return out


def spearman(published: Sequence[float], predicted: Sequence[float]) -> float:
    """Rank correlation: Pearson's of the average ranks; NaN when either side is constant."""
    a, b = ranks(np.asarray(published, float)), ranks(np.asarray(predicted, float))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm else float("nan")


def grids(found: Iterable[Point]) -> dict[tuple[Any, ...], list[Point]]:
    """Configurations by (model, GPU, GPU count, global batch, sequence, precision): the choices a planner would have had."""
    out: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    for point in found:
        out[point.grid].append(point)
    return out


def regret(grid: Sequence[Point]) -> float:
    """How much slower the configuration predicted fastest really is than the best measured one, as a fraction of the best."""
    picked = min(grid, key=lambda p: p.predicted)
    return picked.published / min(p.published for p in grid) - 1


def was_fitted(row: Priced) -> bool:
    """Whether a constant of the run's framework was fitted on it: its id is in the fitted fifth, and the framework names its source."""
    run = row.setting.run
    texts = registry.framework(row.setting.rule.framework).sources.values()
    return is_fitted(run.id) and any("fitted" in text and run.source.lower() in text.lower() for text in texts)


def time_summary(rows: Sequence[Priced]) -> dict[str, Any]:
    """Scores of one source's step times: errors over the runs no constant was fitted on; order and regret inside whole grids.

    ``spearman`` is the mean over grids of three or more, weighted by their size. A grid is what a planner would have chosen from, so it
    keeps the fitted runs: a handful of constants shared by a thousand runs cannot know which of them is best.
    """

    def collapsed(chosen: Iterable[Priced]) -> list[Point]:
        return points(chosen, lambda r: r.setting.published_step_s, lambda r: r.step_s)

    found = collapsed(r for r in rows if not was_fitted(r))
    if not found:
        return {}
    summary: dict[str, Any] = errors([p.published for p in found], [p.predicted for p in found])
    summary["n_fitted"] = sum(was_fitted(r) for r in rows if r.setting.published_step_s)
    by_grid = grids(collapsed(rows))
    rho = [(len(g), spearman([p.published for p in g], [p.predicted for p in g])) for g in by_grid.values() if len(g) >= 3]
    rho = [(n, r) for n, r in rho if np.isfinite(r)]
    summary["spearman"] = float(np.average([r for _, r in rho], weights=[n for n, _ in rho])) if rho else None
    lost = {grid: regret(g) for grid, g in by_grid.items() if len(g) >= 2}
    summary["regret"] = float(np.median(list(lost.values()))) if lost else None
    summary["regret_max"] = max(lost.values()) if lost else None
    summary["regret_groups"] = [_regret_row(grid, by_grid[grid], value) for grid, value in lost.items()]
    return summary


def _regret_row(grid: tuple[Any, ...], found: Sequence[Point], value: float) -> dict[str, Any]:
    best, picked = min(found, key=lambda p: p.published), min(found, key=lambda p: p.predicted)
    return {
        "model": grid[0],
        "gpu": grid[1],
        "n_gpus": grid[2],
        "global_batch": grid[3],
        "seq_tokens": grid[4],
        "n": len(found),
        "regret": value,
        "best": best.layout,
        "picked": picked.layout,
    }


def memory_summary(rows: Sequence[Priced]) -> dict[str, Any]:
    """Peak-memory errors of one source, and how its labels compare: of the runs that ran out of memory, how many we call fitting."""
    ran_out = [r for r in rows if r.ran is False]
    found = points(
        [r for r in rows if r.ran is not False and not was_fitted(r)], lambda r: r.setting.published_peak_bytes, lambda r: r.peak_bytes
    )
    summary: dict[str, Any] = errors([p.published for p in found], [p.predicted for p in found]) if found else {}
    ran = [r for r in rows if r.ran]
    summary["ran"], summary["ran_called_not_fitting"] = len(ran), sum(not r.fits for r in ran)
    unclear = [r for r in rows if failed_unclear(r.setting.run)]
    summary["failed_unclear"], summary["failed_unclear_called_not_fitting"] = len(unclear), sum(not r.fits for r in unclear)
    summary["ran_out_of_memory"], summary["ran_out_called_fitting"] = len(ran_out), sum(r.fits for r in ran_out)
    return summary


def summarise(rows: Sequence[Priced]) -> dict[str, dict[str, Any]]:
    """Scores by source in the order of first appearance: step-time keys at the top, memory under ``memory``."""
    by_source: dict[str, list[Priced]] = defaultdict(list)
    for row in rows:
        by_source[row.setting.run.source].append(row)
    return {source: time_summary(group) | {"memory": memory_summary(group)} for source, group in by_source.items()}
