"""The integer program inside one layout: what each layer keeps, recomputes or sends to the host, and how layers fall into stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulp

GIB = 2.0**30
ROLES = ("first", "middle", "last")
"""The kinds of pipeline stage: all middle stages are alike. A plan without a pipeline has the first only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What a layer may do instead of keeping its activations; per layer: seconds per micro-batch, bytes freed by role, host bytes."""

    name: str
    extra_s: float
    freed_bytes: dict[str, float]
    host_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProblem:
    """One layout as the program sees it. Bytes and seconds per role are affine in the stage's layers: ``fixed + n * per_layer``.

    ``base_s`` is the step time of ``base_layers`` with every layer kept; its slowest stage takes ``base_period_s`` per micro-batch.
    ``edge_s`` is what a role's stage does besides layers. ``partition``: layers may move between stages. ``optimizer_*``: what
    offloading the whole optimizer state frees, needs on the host and costs; ``fractional``: any part of it may go.
    """

    n_layers: int
    n_stages: int
    n_micro: int
    vpp: int
    base_s: float
    base_period_s: float
    base_layers: dict[str, int]
    layer_s: float
    edge_s: dict[str, float]
    fixed_bytes: dict[str, float]
    layer_bytes: dict[str, float]
    hbm_limit_bytes: float
    host_fixed_bytes: float
    host_limit_bytes: float
    options: tuple[Option, ...]
    partition: bool = False
    optimizer_bytes: float = 0.0
    optimizer_host_bytes: float = 0.0
    optimizer_s: float = 0.0
    fractional: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles this many stages have."""
        return {1: ("first",), 2: ("first", "last")}.get(self.n_stages, ROLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """``layers[role]``; ``count[option]``: layers of each stage that take it; ``offload``: the optimizer's host part; ``period``."""

    layers: dict[str, Any]
    count: dict[str, Any]
    offload: Any
    period: Any


def build(p: StageProblem) -> tuple[pulp.LpProblem, Variables]:
    """The whole program: variables, objective, every constraint below."""
    program = pulp.LpProblem("stages", pulp.LpMinimize)
    v = Variables(
        layers={role: program.add_variable(f"layers_{role}", 1, p.n_layers, cat="Integer") for role in p.roles},
        count={o.name: program.add_variable(f"count_{i}", 0, p.n_layers, cat="Integer") for i, o in enumerate(p.options)},
        offload=program.add_variable("offload", 0, 1, cat="Continuous" if p.fractional else "Integer"),
        period=program.add_variable("period", 0),
    )
    program += step_time(p, v)
    layers_sum_to_model(program, p, v)
    for role in p.roles:
        slowest_stage_sets_period(program, p, v, role)
        choices_within_stage(program, p, v, role)
        stage_fits_hbm(program, p, v, role)
    host_fits_ram(program, p, v)
    return program, v


def step_time(p: StageProblem, v: Variables) -> Any:
    """``base + m (T - T0) + (S - 1)/v * sum_o x_o extra_o + f * optimizer_s``: steady state, then fill and drain of mean stages.

    Source: Narayanan et al. 2021, §2.2 (1F1B: ``m + (p - 1)/v`` stage times).
    """
    fill = (p.n_stages - 1) / p.vpp
    return p.base_s + p.n_micro * (v.period - p.base_period_s) + fill * _extra(p, v) + p.optimizer_s * v.offload


def layers_sum_to_model(program: Any, p: StageProblem, v: Variables) -> None:
    """``n_first + (S - 2) n_middle + n_last = L``; without ``partition`` each role keeps its base count."""
    weight = {"first": 1, "middle": p.n_stages - 2, "last": 1}
    program += pulp.lpSum(weight[role] * n for role, n in v.layers.items()) == p.n_layers, "layers_sum_to_model"
    if not p.partition:
        for role, n in v.layers.items():
            program += n == p.base_layers[role], f"layers_of_{role}_as_given"


def slowest_stage_sets_period(program: Any, p: StageProblem, v: Variables, role: str) -> None:
    """``T >= n_r t + sum_o x_o extra_o + edge_r``: no stage is slower than the period."""
    program += v.period >= v.layers[role] * p.layer_s + _extra(p, v) + p.edge_s[role], f"period_of_{role}"


def choices_within_stage(program: Any, p: StageProblem, v: Variables, role: str) -> None:
    """``sum_o x_o <= n_r``: each layer takes at most one option; the same counts hold in every stage, as one flag sets them."""
    program += pulp.lpSum(v.count.values()) <= v.layers[role], f"choices_of_{role}"


def stage_fits_hbm(program: Any, p: StageProblem, v: Variables, role: str) -> None:
    """``fixed_r + n_r per_layer_r - sum_o x_o freed_or - f * optimizer <= HBM`` (in GiB, which keeps the numbers near 1)."""
    need = p.fixed_bytes[role] / GIB + v.layers[role] * (p.layer_bytes[role] / GIB) - v.offload * (p.optimizer_bytes / GIB)
    freed = pulp.lpSum(v.count[o.name] * (o.freed_bytes[role] / GIB) for o in p.options)
    program += need - freed <= p.hbm_limit_bytes / GIB, f"hbm_of_{role}"


def host_fits_ram(program: Any, p: StageProblem, v: Variables) -> None:
    """``fixed + sum_o x_o host_o + f * optimizer_host <= host RAM``, per host."""
    used = pulp.lpSum(v.count[o.name] * (o.host_bytes / GIB) for o in p.options) + v.offload * (p.optimizer_host_bytes / GIB)
    program += used <= (p.host_limit_bytes - p.host_fixed_bytes) / GIB, "host_ram"


def _extra(p: StageProblem, v: Variables) -> Any:
    return pulp.lpSum(v.count[o.name] * o.extra_s for o in p.options)
