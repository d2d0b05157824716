"""From a scenario to a problem the planner can search: names resolved, defaults filled in, the cost model bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..costmodels.distinct import Memo
from ..costmodels.memory import MemoryBreakdown, stage_memory, train_memory
from ..costmodels.system import System, make_system
from ..costmodels.training import StepCost, check_trainable, train_step
from ..scenarios import registry
from ..scenarios.calibration import read_calibration
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator, Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.plan import Optimizer, ParallelPlan
from ..scenarios.scenario import MAX_SEQ, Scenario
from ..scenarios.units import show_tokens
from ..scenarios.workload import TrainWorkload
from .engines import ENGINES, Engine, engines, why_not
from .prune import Prices
from .space import Asked

RESEARCH_ONLY = "mezo"
"""The optimizer that is priced although no framework has a switch for it."""
BATCH_TOKENS = 4 * 1024**2
BATCH_TOKENS_PER_GPU = 1024
"""Default batch: 4 Mi tokens, or 1,024 per GPU on large clusters. Source: Llama 3 (2024), Table 4: 16 M tokens on 16,384 GPUs."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A scenario with every name looked up. ``seq_tokens = 0``: find the longest; ``global_batch = 0``: one sequence per data rank."""

    scenario: Scenario
    model: ModelSpec
    cluster: Cluster
    accelerator: Accelerator
    engines: tuple[Engine, ...]
    precisions: tuple[str, ...]
    seq_tokens: int
    global_batch: int
    notes: tuple[str, ...] = ()

    @cached_property
    def system(self) -> System:
        """The calibrated system under the first framework; the others share its roofline and network."""
        path = self.scenario.calibration
        found = make_system(self.cluster, self.engines[0].priced_as, read_calibration(Path(path)) if path else None)
        usable = found.accelerator.usable_hbm_frac * (1 - self.scenario.memory_margin_frac)
        return replace(found, accelerator=replace(found.accelerator, usable_hbm_frac=usable))

    @cached_property
    def _systems(self) -> dict[str, System]:
        return {e.name: replace(self.system, framework=registry.framework(e.priced_as)) for e in self.engines}

    @cached_property
    def _memos(self) -> dict[str, Memo]:
        return {e.name: {} for e in self.engines}

    def system_of(self, plan: ParallelPlan) -> System:
        """The system under the framework this plan is for."""
        return self._systems[plan.framework]

    def step(self, plan: ParallelPlan, work: TrainWorkload) -> StepCost:
        """Price a (batched) plan's step."""
        return train_step(self.model, plan, work, self.system_of(plan), self._memos[plan.framework])

    def memory(self, plan: ParallelPlan, work: TrainWorkload) -> MemoryBreakdown:
        """Price a (batched) plan's memory."""
        return train_memory(self.model, plan, work, self.system_of(plan))

    def stage_bytes(self, plan: ParallelPlan, work: TrainWorkload, role: str) -> Any:
        """Device memory of a rank of the ``"first"`` or ``"last"`` stage."""
        return stage_memory(self.model, plan, work, self.system_of(plan), role)["total"]

    @property
    def prices(self) -> Prices:
        """The cost model for the planner's search."""
        bits = self.scenario.index_bits
        return Prices(model=self.model, step=self.step, memory=self.memory, stage_bytes=self.stage_bytes, index_bits=bits)

    @property
    def asked(self) -> Asked:
        """What the space of layouts is built from."""
        return Asked(
            model=self.model, cluster=self.cluster, engines=self.engines, seq_tokens=self.seq_tokens, global_batch=self.global_batch,
            micro_batch=self.scenario.micro_batch, precisions=self.precisions, optimizer=cast(Optimizer, self.scenario.optimizer),
        )  # fmt: skip

    @property
    def usd_per_s(self) -> float:
        """Price of the whole cluster per second; 0 when no price is known."""
        return self.cluster.on_demand_usd_per_h / 3600 * self.cluster.n_gpus


def resolve(scenario: Scenario) -> Problem:
    """Look up model, GPU, cluster and frameworks and fill in the defaults; BadInput names what is unknown or cannot be."""
    model = registry.model(scenario.model)
    check_trainable(model)
    cluster = registry.cluster(scenario.cluster or scenario.gpu, scenario.n_gpus, scenario.gpus_per_node or None)
    if scenario.host_ram_bytes:
        cluster = replace(cluster, host_ram_bytes=scenario.host_ram_bytes)
    if scenario.price_usd_per_h:
        cluster = replace(cluster, on_demand_usd_per_h=scenario.price_usd_per_h)
    if scenario.objective == "cost" and not cluster.on_demand_usd_per_h:
        raise BadInput(f"no public price of {cluster.gpu} is known, so cost cannot be minimised; add --price USD_PER_GPU_HOUR")
    accelerator = registry.accelerator(cluster.gpu)
    precisions = _precisions(scenario, accelerator)
    seq = scenario.seq_tokens
    batch = scenario.global_batch or (0 if seq == MAX_SEQ else default_batch(seq, cluster.n_gpus))
    _check_batch(scenario, batch)
    usable, notes = _engines(scenario, model, cluster, precisions)
    return Problem(
        scenario=scenario, model=model, cluster=cluster, accelerator=accelerator, engines=usable, precisions=precisions, seq_tokens=seq,
        global_batch=batch, notes=(*notes, *_cautions(scenario, model, seq)),
    )  # fmt: skip


def _cautions(scenario: Scenario, model: ModelSpec, seq: int) -> list[str]:
    """What the user should know about the question itself."""
    out = []
    if seq > model.max_seq_tokens and model.position in ("rope", "learned"):
        out.append(f"{show_tokens(seq)} tokens are beyond the {show_tokens(model.max_seq_tokens)} that {model.name} was trained on")
    if any(word.startswith("lossy") or word == "retrain" for word in scenario.allow):
        out.append("no lossy or retrained technique is searched for training in this version; only --allow quant has an effect")
    return out


def default_batch(seq_tokens: int, n_gpus: int) -> int:
    """Sequences per step: about ``max(4 Mi, 1,024 * n_gpus)`` tokens, as a count that many layouts can divide.

    At least one per GPU: ``n_gpus * 2^k`` nearest to the budget; fewer: the largest divisor of ``n_gpus`` within it.
    """
    wanted = max(BATCH_TOKENS, BATCH_TOKENS_PER_GPU * n_gpus) / seq_tokens
    if wanted >= n_gpus:
        return int(n_gpus * 2 ** round(math.log2(wanted / n_gpus)))
    return max(d for d in range(1, max(int(wanted), 1) + 1) if n_gpus % d == 0)


def _precisions(scenario: Scenario, accelerator: Accelerator) -> tuple[str, ...]:
    accelerator.peak_flops_per_s(scenario.precision)
    if scenario.allows_quant and scenario.precision == "bf16" and accelerator.fp8_flops_per_s > 0:
        return ("bf16", "fp8")
    return (scenario.precision,)


def _engines(scenario: Scenario, model: ModelSpec, cluster: Cluster, precisions: tuple[str, ...]) -> tuple[tuple[Engine, ...], list[str]]:
    """The frameworks that can train this at all, and notes on why the others cannot; BadInput if none can.

    An optimizer that no framework has a switch for is priced as DeepSpeed would run it, and the note says it is research-only.
    """
    accelerator = registry.accelerator(cluster.gpu)
    usable, notes = [], []
    for engine in engines(scenario.framework):
        if not set(engine.precisions) & set(precisions):
            reason = f"no {scenario.precision} training; legal: {_having('precisions', scenario.precision)}"
        elif scenario.optimizer not in engine.optimizers and scenario.optimizer != RESEARCH_ONLY:
            reason = f"no switch for optimizer={scenario.optimizer}; legal: {_having('optimizers', scenario.optimizer)}"
        else:
            reason = why_not(engine, model, cluster, accelerator)
        if not reason:
            usable.append(engine)
        elif scenario.framework != "auto":
            raise BadInput(f"framework={engine.name} cannot train this: {reason}")
        else:
            notes.append(f"{engine.name} left out: {reason}")
    if not usable:
        raise BadInput(f"no framework can train this: {'; '.join(notes)}")
    if scenario.optimizer == RESEARCH_ONLY:
        notes.append(f"optimizer={RESEARCH_ONLY} is research-only: no framework here has a switch for it, so no emitted file runs it")
    return tuple(usable), notes


def _having(field: str, value: str) -> str:
    """Names of the frameworks whose ``field`` holds the value."""
    return ", ".join(e.name for e in ENGINES.values() if value in getattr(e, field)) or "none"


def _check_batch(scenario: Scenario, batch: int) -> None:
    if batch and scenario.micro_batch and batch % scenario.micro_batch:
        raise BadInput(f"micro_batch={scenario.micro_batch} does not divide global_batch={batch}; make one a multiple of the other")
