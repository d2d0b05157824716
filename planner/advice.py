"""When nothing fits: the nearest changes that do, each tried with a real search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..scenarios import registry
from ..scenarios.errors import RoofplanError
from ..scenarios.scenario import Scenario
from ..scenarios.units import show_bytes, show_tokens
from .decide import Searched
from .longest import GRANULE_TOKENS, longest
from .prune import Prices, uses
from .scenario_io import Problem, resolve
from .space import Batch, Rejections, candidates

MAX_GROWTH = 1024
BIGGER_CARDS = ("h200", "b200")


def nearest_changes(found: Searched) -> list[str]:
    """One sentence per kind of change that makes the scenario fit: a shorter sequence, more GPUs or host RAM, a bigger card."""
    ways: tuple[Callable[[Searched], str | None], ...] = (_shorter, _more_gpus, _more_host_ram, _bigger_card, _smaller_state)
    return [sentence for way in ways if (sentence := way(found))] or ["no single change of GPUs, sequence, host RAM or card makes it fit"]


def _more_gpus(found: Searched) -> str | None:
    for scenario in _grown(found.problem.scenario):
        if _fits(scenario):
            return f"--gpus {scenario.n_gpus} fits"
    return None


def _grown(scenario: Scenario) -> Iterator[Scenario]:
    factor = 2
    while factor <= MAX_GROWTH and scenario.n_gpus * factor <= 1_000_000:
        yield replace(scenario, n_gpus=scenario.n_gpus * factor, global_batch=scenario.global_batch * factor)
        factor *= 2


def _shorter(found: Searched) -> str | None:
    """The longest sequence that fits, with one sequence per data rank."""
    problem = found.problem
    if not problem.seq_tokens:
        return None
    free = replace(problem, seq_tokens=0, global_batch=0)
    best, batch = 0, 0
    for fitted in longest(candidates(free.asked, Rejections()), free.prices):
        row = int(np.argmax(fitted.work.seq_tokens))
        if int(np.max(fitted.work.seq_tokens)) > best:
            best, batch = int(np.max(fitted.work.seq_tokens)), int(np.broadcast_to(fitted.work.global_batch, fitted.n)[row])
    if not best:
        return None
    if best >= problem.seq_tokens:
        return _other_split(problem, batch)
    return f"--seq {best} fits: {show_tokens(best)} tokens, {best / problem.seq_tokens:.0%} of what was asked"


def _other_split(problem: Problem, batch: int) -> str | None:
    """The length would fit, but not with this batch, or not cut into equal chunks."""
    if _fits(replace(problem.scenario, global_batch=batch)):
        return f"--global-batch {batch} fits (the batch asked for, {problem.global_batch}, does not)"
    step = math.lcm(GRANULE_TOKENS, 2 * problem.cluster.n_gpus)
    near = problem.seq_tokens // step * step
    if near and _fits(replace(problem.scenario, seq_tokens=near, global_batch=batch)):
        return f"--seq {near} --global-batch {batch} fits: a multiple of {step:,} can be cut into equal chunks"
    return None


def _more_host_ram(found: Searched) -> str | None:
    """The least host RAM with which a layout that breaks only that limit would fit."""
    table, problem = found.table, found.problem
    only = table.breaks_only("host_ram")
    if not only.any():
        return None
    need = float(table.use["host_ram"][only].min()) * problem.cluster.host_ram_bytes
    return f"--host-ram {int(-(-need // 2**30))}GiB per host fits, instead of {show_bytes(problem.cluster.host_ram_bytes)}"


def _bigger_card(found: Searched) -> str | None:
    problem = found.problem
    for name in BIGGER_CARDS:
        if registry.accelerator(name).hbm_bytes <= problem.accelerator.hbm_bytes:
            continue
        if _fits(replace(problem.scenario, gpu=name, cluster="", gpus_per_node=0)):
            return f"--gpu {name} fits on as many GPUs"
    return None


def _smaller_state(found: Searched) -> str | None:
    if found.problem.scenario.optimizer != "adamw":
        return None
    fits = _fits(replace(found.problem.scenario, optimizer="adamw-8bit"))
    return "--optimizer adamw-8bit fits (8-bit moments change the numerics)" if fits else None


def _fits(scenario: Scenario) -> bool:
    """Whether any uniform layout fits, by memory alone; a scenario that cannot even be resolved does not."""
    try:
        problem = resolve(scenario)
        if not problem.seq_tokens:
            return any(True for _ in longest(candidates(problem.asked, Rejections()), problem.prices))
        return any(_any_within(batch, problem.prices) for batch in candidates(problem.asked, Rejections()))
    except RoofplanError:
        return False


def _any_within(batch: Batch, prices: Prices) -> bool:
    need = uses(batch.plan, batch.work, prices, batch.n)
    return bool(np.logical_and.reduce([use <= 1.0 for use in need.values()]).any())
