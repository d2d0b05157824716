"""Fits a framework's few constants on one measured run in five; the other four judge them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.memory import train_memory
from ..costmodels.system import make_system
from ..costmodels.training import train_step
from ..scenarios.errors import BadInput
from ..scenarios.framework import Framework
from ..scenarios.workload import TrainWorkload
from .grid_fit import scipy_sparse
from .training_plan import Setting
from .training_price import batch_of, group_key, measured_bytes

FOLDS = 5
BOUNDS: dict[str, tuple[float, float]] = {
    "step_overhead_s": (0.0, 0.3),
    "host_layer_s": (1e-4, 6e-3),
    "host_layer_tp_s": (0.0, 6e-3),
    "host_contention_s": (0.0, 4e-3),
    "overlap_dp_frac": (0.0, 1.0),
    "overlap_shard_frac": (0.0, 1.0),
    "overlap_tp_frac": (0.0, 1.0),
    "overlap_tp_backward_frac": (0.0, 1.0),
    "overlap_ep_frac": (0.0, 1.0),
    "sustained_frac": (0.6, 1.0),
    "attention_frac": (0.2, 1.0),
    "elementwise_passes": (1.0, 6.0),
    "loss_passes": (1.0, 8.0),
    "accumulate_passes": (0.0, 3.0),
    "saved_hidden": (2.0, 14.0),
    "saved_attention": (1.0, 3.0),
    "saved_ffn": (1.0, 3.0),
    "logits_bytes_per_element": (2.0, 16.0),
    "buffer_bytes": (0.0, 6e9),
    "context_bytes": (2e8, 3e9),
    "fragmentation_frac": (0.0, 0.6),
}
"""What may be fitted, and the range in which it keeps its physical meaning."""


def is_fitted(run_id: str) -> bool:
    """Whether constants may be fitted on this run: one id in five, by a hash, the same on every machine."""
    return zlib.crc32(run_id.encode()) % FOLDS == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkFit:
    """A fitted framework and its median absolute errors on the runs it was and was not fitted on, before and after."""

    framework: Framework
    n_fitted: int
    n_scored: int
    fitted_error: tuple[float, float]
    scored_error: tuple[float, float]


def fit_framework(start: Framework, settings: Iterable[Setting], free: Sequence[str], *, memory: bool = False) -> FrameworkFit:
    """Least squares of ``log(predicted / published)`` over the constants in ``free``, softened against broken runs.

    ``memory`` fits peak memory instead of step time. Raises BadInput for a constant that cannot be fitted or too few runs.
    """
    scipy_sparse()
    from scipy.optimize import least_squares

    for name in free:
        if name not in BOUNDS:
            raise BadInput(f"{name!r} is not a constant of a framework that can be fitted; legal: {', '.join(BOUNDS)}")
    usable = [s for s in settings if not s.tuned and (s.published_peak_bytes if memory else s.published_step_s)]
    inside, outside = (_groups(s for s in usable if is_fitted(s.run.id) is chosen) for chosen in (True, False))
    n_fitted, n_scored = sum(map(len, inside)), sum(map(len, outside))
    if n_fitted < 2 * len(free):
        raise BadInput(f"{n_fitted} runs of the fitted fifth cannot settle {len(free)} constants; at least {2 * len(free)} are needed")
    low, high = (np.array([BOUNDS[name][i] for name in free]) for i in (0, 1))

    def at(unit: NDArray[np.float64]) -> Framework:
        values: dict[str, Any] = dict(zip(free, map(float, low + unit * (high - low)), strict=True))
        return dataclasses.replace(start, **values)

    def residuals(unit: NDArray[np.float64]) -> NDArray[np.float64]:
        return _log_errors(inside, at(unit), memory)

    first = (np.array([float(getattr(start, name)) for name in free]) - low) / (high - low)
    found = least_squares(
        residuals, np.clip(first, 1e-3, 1 - 1e-3), bounds=(0, 1), loss="soft_l1", f_scale=0.05, diff_step=0.02, max_nfev=80
    )
    best = at(found.x)

    def median(groups: list[list[Setting]], framework: Framework) -> float:
        return float(np.median(np.abs(np.expm1(_log_errors(groups, framework, memory))))) if groups else float("nan")

    return FrameworkFit(
        framework=best,
        n_fitted=n_fitted,
        n_scored=n_scored,
        fitted_error=(median(inside, start), median(inside, best)),
        scored_error=(median(outside, start), median(outside, best)),
    )


def to_toml(framework: Framework, free: Sequence[str], source: str) -> str:
    """The fitted constants as lines of a framework's TOML file, each with its source."""
    lines = [f"{name.removesuffix('_s') if name.endswith('_s') else name} = {_quantity(name, getattr(framework, name))}" for name in free]
    return "\n".join([*lines, "", "[sources]", *(f'{name} = "{source}"' for name in free)]) + "\n"


def _quantity(name: str, value: float) -> str:
    units: Mapping[str, tuple[float, str]] = {"_s": (1e3, "ms"), "_frac": (100.0, "%"), "_bytes": (1e-9, "GB")}
    for suffix, (scale, unit) in units.items():
        if name.endswith(suffix):
            return f'"{value * scale:.3g} {unit}"'
    return f"{value:.3g}"


def _groups(settings: Iterable[Setting]) -> list[list[Setting]]:
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for s in settings:
        groups.setdefault(group_key(s), []).append(s)
    return list(groups.values())


def _log_errors(groups: list[list[Setting]], framework: Framework, memory: bool) -> NDArray[np.float64]:
    out = []
    for group in groups:
        plan = batch_of([s.plan for s in group])
        work = TrainWorkload(
            seq_tokens=np.array([s.work.seq_tokens for s in group], np.int64),
            global_batch=np.array([s.work.global_batch for s in group], np.int64),
        )
        cluster = dataclasses.replace(group[0].cluster, n_gpus=max(s.cluster.n_gpus for s in group))
        system = make_system(cluster, framework)
        if memory:
            got = measured_bytes(train_memory(group[0].model, plan, work, system), group[0].rule.measures)
            want = np.array([s.published_peak_bytes for s in group], float)
        else:
            got = np.asarray(train_step(group[0].model, plan, work, system).step_time_s)
            want = np.array([s.published_step_s for s in group], float)
        out.append(np.log(np.broadcast_to(got, want.shape) / want))
    return np.concatenate(out)
