"""Where to measure next: the point whose time a small Gaussian process per kernel knows least well, if it still fits the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTH_OCTAVES = 2.0
"""Two points this many doublings apart in one size tell a factor e^-1/2 of what they would at the same place."""
PRIOR_SPREAD = 0.7
"""Expected standard deviation of ``log(time / floor)`` within a kernel nobody measured yet (a factor of 2)."""
NOISE = 0.03
"""Relative error of one measurement."""
LAUNCH_S = 4e-6
"""Least time of any call: keeps the floor of tiny shapes from being zero."""
WEIGHT = {"gemm": 2.0, "attention_context": 2.0, "attention_generation": 2.0, "attention_backward": 2.0, "moe": 1.5}
"""Family -> how much more its uncertainty counts: what most of a step's time is spent in. Others count 1."""
CALLS_A_POINT = 30
"""Calls a long-running point takes (configurations tried, warm-up, samples); short ones take about the same time whatever they are."""


class Candidate(Protocol):
    """What this module needs of a point."""

    @property
    def key(self) -> str:
        """Unique name."""
        ...

    @property
    def family(self) -> str:
        """What the kernel computes."""
        ...

    @property
    def group(self) -> str:
        """Points of one group share a kernel, a dtype and all text columns."""
        ...

    @property
    def sizes(self) -> dict[str, float]:
        """Log sizes by column."""
        ...

    @property
    def flops(self) -> float:
        """Least arithmetic."""
        ...

    @property
    def moved_bytes(self) -> float:
        """Least traffic."""
        ...

    @property
    def channel(self) -> str:
        """What the traffic crosses: ``hbm`` or ``host``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The rates that floors are made of; measured first on the card itself."""

    flops_per_s: float = 1e14
    hbm_bytes_per_s: float = 1e12
    host_bytes_per_s: float = 2e10

    def floor_s(self, point: Candidate) -> float:
        """``max(flops / rate, bytes / rate) + launch``."""
        rate = self.host_bytes_per_s if point.channel == "host" else self.hbm_bytes_per_s
        return max(point.flops / self.flops_per_s, point.moved_bytes / rate) + LAUNCH_S


@dataclass(slots=True)
class _Group:
    points: list[Candidate]
    at: Floats
    seen: dict[int, float] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    spread: Floats = field(default_factory=lambda: np.zeros(0))
    order: list[int] = field(default_factory=list)
    mean: float = math.log(2.0)

    @property
    def weight(self) -> float:
        """How much its uncertainty counts."""
        return WEIGHT.get(self.points[0].family, 1.0)

    def refresh(self) -> None:
        """Posterior standard deviation at every point, and the points left, least known and then most central first."""
        self.spread = self._posterior() if self.seen else np.full(len(self.points), PRIOR_SPREAD)
        off = np.sum((self.at - np.median(self.at, axis=0)) ** 2, axis=1)
        left = [i for i in range(len(self.points)) if i not in self.seen and i not in self.dropped]
        self.order = sorted(left, key=lambda i: (-round(float(self.spread[i]), 6), float(off[i]), self.points[i].key))

    def _posterior(self) -> Floats:
        """``s² (1 − kᵀ (K + noise² I)⁻¹ k)`` with a squared-exponential kernel."""
        index = np.array(sorted(self.seen))
        logs = np.array([self.seen[i] for i in index])
        self.mean = float(np.mean(logs))
        variance = (2 * PRIOR_SPREAD**2 + float(np.sum((logs - self.mean) ** 2))) / (2 + len(logs))
        known = _kernel(self.at[index], self.at[index]) + NOISE**2 / variance * np.eye(len(index))
        cross = _kernel(self.at[index], self.at)
        explained = np.sum(cross * np.linalg.solve(known, cross), axis=0)
        return np.asarray(np.sqrt(variance * np.clip(1.0 - explained, 0.0, None)), dtype=np.float64)


class Sampler:
    """Chooses points one after another; deterministic for equal candidates and equal measured times."""

    def __init__(self, points: Sequence[Candidate], ceilings: Ceilings) -> None:
        self.ceilings = ceilings
        self._groups: dict[str, _Group] = {}
        self._where: dict[str, tuple[str, int]] = {}
        by_group: dict[str, list[Candidate]] = {}
        for point in points:
            by_group.setdefault(point.group, []).append(point)
        for name, members in sorted(by_group.items()):
            columns = sorted({column for p in members for column in p.sizes})
            at = np.array([[p.sizes.get(c, 0.0) for c in columns] for p in members]).reshape(len(members), len(columns))
            self._groups[name] = _Group(points=members, at=at)
            self._groups[name].refresh()
            self._where.update({p.key: (name, i) for i, p in enumerate(members)})
        self.point_s, self.new_group_s = 0.3, 3.0

    def tell(self, key: str, latency_s: float, wall_s: float) -> None:
        """Learn one measured point and how long measuring it took."""
        if key not in self._where:
            return
        name, i = self._where[key]
        group = self._groups[name]
        spare_s = max(0.0, wall_s - CALLS_A_POINT * latency_s)
        if group.seen:
            self.point_s += 0.2 * (spare_s - self.point_s)
        else:
            self.new_group_s += 0.2 * (spare_s - self.point_s - self.new_group_s)
        group.seen[i] = math.log(latency_s / self.ceilings.floor_s(group.points[i]))
        group.refresh()

    def drop(self, key: str) -> None:
        """Never choose this point again: it failed."""
        if key in self._where:
            name, i = self._where[key]
            self._groups[name].dropped.add(i)
            self._groups[name].refresh()

    def cost_s(self, key: str) -> float:
        """Expected seconds to measure a point: inputs, compilation of a new kernel, and the timed calls."""
        name, i = self._where[key]
        group = self._groups[name]
        latency_s = self.ceilings.floor_s(group.points[i]) * math.exp(group.mean)
        return max(0.0, self.point_s) + (0.0 if group.seen else max(0.0, self.new_group_s)) + CALLS_A_POINT * latency_s

    def spread(self, key: str) -> float:
        """Present standard deviation of ``log(time)`` at a point."""
        name, i = self._where[key]
        return float(self._groups[name].spread[i])

    def choose(self, left_s: float) -> Candidate | None:
        """The point of largest weighted spread expected to fit into ``left_s``, None if none is; ties go to the most central."""
        best: tuple[float, str] | None = None
        chosen: Candidate | None = None
        for name, group in self._groups.items():
            for i in group.order:
                rank = (-round(group.weight * float(group.spread[i]), 6), name)
                if best is not None and rank >= best:
                    break
                if self.cost_s(group.points[i].key) <= left_s:
                    best, chosen = rank, group.points[i]
                    break
        return chosen


def _kernel(a: Floats, b: Floats) -> Floats:
    gaps = (a[:, None, :] - b[None, :, :]) / LENGTH_OCTAVES
    return np.asarray(np.exp(-0.5 * np.sum(gaps**2, axis=2)), dtype=np.float64)
