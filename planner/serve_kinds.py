"""Every kind of replica that may serve a question, priced once per layout, with its closed-form limits; and what they may be joined to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..costmodels.serving_memory import ServeMemory, serve_memory
from ..costmodels.serving_ops import ServeSystem
from ..costmodels.speculation_time import gamma_table, memory_with_draft
from ..scenarios.deployment import Deployment
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan
from ..sim.replica_kind import ReplicaModel, replica_model
from . import serve_space as space
from .serve_ask import ServeAsk
from .serve_bound import Bounds, Load, serve_bounds

MAX_GROUP_NODES = 4
"""A group of prefill and decode replicas spans at most so many nodes; more GPUs hold more groups."""
SAMPLE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One replica: its plan with every limit filled in, its price tables and its bounds."""

    plan: EnginePlan
    model: ReplicaModel
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One replica that does everything, or a group of prefill and decode replicas; ``bound_per_s`` is what it can never carry more than."""

    serve: Kind
    prefill: Kind | None = None
    n_prefill: int = 0
    n_decode: int = 1
    bound_per_s: float

    @property
    def n_gpus(self) -> int:
        first = self.prefill.plan.n_gpus * self.n_prefill if self.prefill else 0
        return first + self.n_decode * self.serve.plan.n_gpus

    @property
    def kinds(self) -> dict[str, ReplicaModel]:
        """Replica models by the pool they are for."""
        return {"prefill": self.prefill.model, "decode": self.serve.model} if self.prefill else {"serve": self.serve.model}

    @property
    def e2e_s(self) -> float:
        """No mean latency can be lower."""
        if self.prefill is None:
            return self.serve.bounds.e2e_s
        return self.serve.bounds.e2e_s - self.serve.bounds.ttft_s + self.prefill.bounds.ttft_s

    def deployment(self, copies: int = 1) -> Deployment:
        """So many of this replica or group as one deployment; SGLang sets room aside on the decode side before a prompt is computed."""
        first = self.prefill.plan if self.prefill else None
        return Deployment(
            plan=self.serve.plan, n_replicas=copies * self.n_decode, prefill=first, n_prefill=copies * self.n_prefill,
            decode_first=first is not None and first.engine == "sglang" and _plain(first),
        )  # fmt: skip

    def describe(self) -> str:
        """In a few words."""
        if self.prefill is None:
            return space.describe(self.serve.plan)
        return f"{self.n_prefill}P ({space.describe(self.prefill.plan)}) + {self.n_decode}D ({space.describe(self.serve.plan)})"


def _plain(plan: EnginePlan) -> bool:
    """Whether the simulator can keep the attention ranks of a prefill replica apart."""
    return plan.pp == 1 and plan.speculation is None and not plan.prefix_cache


class Rejected:
    """Reasons with counts and the first example of each."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.example: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """``count`` more for this reason."""
        self.count[reason] = self.count.get(reason, 0) + count
        self.example.setdefault(reason, example)

    def rows(self) -> tuple[tuple[str, int, str], ...]:
        """(reason, how many, example)."""
        return tuple((reason, n, self.example[reason]) for reason, n in self.count.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """What may serve: replicas for both phases, for prompts alone and for answers alone; how many were looked at."""

    mixed: tuple[Kind, ...]
    prefill: tuple[Kind, ...]
    decode: tuple[Kind, ...]
    n_candidates: int


def kinds_of(ask: ServeAsk, system: ServeSystem, rejected: Rejected) -> Kinds:
    """Price every legal layout once, then bound it at every budget and number of seats; what cannot serve is counted with its reason."""
    load = Load(ask.requests(SAMPLE))
    mixed: list[Kind] = []
    prefill: list[Kind] = []
    decode: list[Kind] = []
    n = 0
    for degrees, rule in space.parallel(ask):
        if rule:
            rejected.add("layout", f"{space.describe(degrees)}: {rule}")
            continue
        for plan in space.options(ask, degrees):
            sizes = space.budgets(ask, plan.dp)
            n += len(sizes)
            try:
                priced, plan = _priced(ask, system, load, plan, sizes[-1])
            except BadInput as error:
                rejected.add("memory" if "no room" in str(error) else "limits", f"{space.describe(plan)}: {error}", len(sizes))
                continue
            for budget in sizes:
                kind = _kind(ask, system, load, dataclasses.replace(plan, token_budget=budget), priced)
                if isinstance(kind, str):
                    rejected.add(kind.partition(":")[0], f"{space.describe(plan)}: {kind.partition(': ')[2]}")
                    continue
                mixed.append(kind)
                if budget == space.prefill_budget(ask, plan.dp):
                    decode += [_decoder(ask, load, kind)] if not plan.kv_tiers else []
                    prefill.append(kind)
    return Kinds(mixed=tuple(mixed), prefill=tuple(prefill), decode=tuple(decode), n_candidates=n)


def _priced(ask: ServeAsk, system: ServeSystem, load: Load, plan: EnginePlan, budget: int) -> tuple[ReplicaModel, EnginePlan]:
    """The replica's tables as far as any budget reaches, and the plan with its seats and, where it speculates, its γ(B).

    Seats are more than the engine's default where the KV pool holds more.
    """
    plan = dataclasses.replace(plan, token_budget=budget, max_num_seqs=space.SEATS * plan.dp)
    memory = _memory(ask, system, plan, system.engine.block_tokens)
    if memory.kv_blocks * system.engine.block_tokens >= 1.5 * plan.max_num_seqs * float((load.prompt + load.steps).mean()):
        plan = dataclasses.replace(plan, max_num_seqs=space.MANY_SEATS * plan.dp)
    priced = replica_model(ask.model, plan, system, load.work)
    guess = plan.speculation
    if guess and priced.verify and guess.controller == "fixed" and not guess.gamma_by_batch:
        table = gamma_table(priced.verify, guess, priced.limits.max_seqs, float((load.prompt + load.steps / 2).mean()))
        plan = dataclasses.replace(plan, speculation=dataclasses.replace(guess, gamma_by_batch=table))
    return priced, plan


def _kind(ask: ServeAsk, system: ServeSystem, load: Load, plan: EnginePlan, priced: ReplicaModel) -> Kind | str:
    """One budget of a priced layout: its own memory and limits over the same tables; or the promise it cannot keep."""
    plan = dataclasses.replace(plan, max_num_seqs=min(plan.max_num_seqs, plan.token_budget, priced.limits.max_seqs))
    block = priced.limits.block_tokens
    memory = _memory(ask, system, plan, block)
    plan = dataclasses.replace(plan, max_num_seqs=memory.max_seqs)
    limits = dataclasses.replace(priced.limits, budget=plan.token_budget, max_seqs=plan.max_num_seqs, blocks=memory.kv_blocks)
    model = dataclasses.replace(priced, memory=memory, limits=limits)
    bounds = serve_bounds(load, plan, model, ask.slo)
    return bounds.why or Kind(plan=plan, model=model, bounds=bounds)


def _memory(ask: ServeAsk, system: ServeSystem, plan: EnginePlan, block: int) -> ServeMemory:
    memory = serve_memory(ask.model, plan, system.engine, system.accelerator, plan.token_budget, plan.max_num_seqs, block)
    return memory_with_draft(memory, plan, block)


def _decoder(ask: ServeAsk, load: Load, kind: Kind) -> Kind:
    """The replica as it decodes what others prefilled: without a prefix cache, which only prompts use."""
    if not kind.plan.prefix_cache:
        return kind
    plan = dataclasses.replace(kind.plan, prefix_cache=False)
    return Kind(plan=plan, model=kind.model, bounds=serve_bounds(load, plan, kind.model, dataclasses.replace(ask.slo, ttft_s=math.inf)))


def candidates(ask: ServeAsk, kinds: Kinds) -> list[Candidate]:
    """Every replica that does both, and every group xPyD of two layouts in the same formats, with its bound."""
    found = [Candidate(serve=k, bound_per_s=k.bounds.mixed_per_s) for k in kinds.mixed]
    sizes = group_sizes(ask)
    for first in kinds.prefill:
        for second in kinds.decode:
            if space.one_pair(first.plan, second.plan):
                found += _groups(first, second, sizes)
    return found


def group_sizes(ask: ServeAsk) -> list[int]:
    """GPUs a group may fill: any number inside one node; equal parts of a node, or whole nodes, where there are several."""
    n, node = ask.cluster.n_gpus, ask.cluster.gpus_per_node
    if n <= node:
        return list(range(2, n + 1))
    inside = [g for g in range(2, node + 1) if node % g == 0]
    return inside + [k * node for k in range(2, min(n // node, MAX_GROUP_NODES) + 1)]


def _groups(first: Kind, second: Kind, sizes: list[int]) -> Iterator[Candidate]:
    """The two best splits of each group size: ``min(x·prefill, y·decode)`` requests a second."""
    p, d = first.plan.n_gpus, second.plan.n_gpus
    for size in sizes:
        splits = [(x, (size - x * p) // d) for x in range(1, (size - d) // p + 1) if (size - x * p) % d == 0]
        bound = {(x, y): min(x * first.bounds.prefill_per_s, y * second.bounds.decode_per_s) for x, y in splits}
        for x, y in sorted(bound, key=lambda s: -bound[s])[:2]:
            if math.gcd(x, y) == 1 or size == sizes[-1]:
                yield Candidate(serve=second, prefill=first, n_prefill=x, n_decode=y, bound_per_s=bound[x, y])
