"""What a serving run leaves: when each request's first and last token left, and what pools, links and caches did."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..costmodels.pipeline_times import PipelineTimes
from ..costmodels.serving_memory import ServeMemory
from ..costmodels.step_times import PS
from ..scenarios.serving import Floats64, Ints64, ServeWorkload
from .engine import Replica
from .gaps import GapHistogram
from .links import FairLinks
from .replica_kind import ReplicaModel
from .requests import Requests
from .step_log import StepLog
from .stores import tier_use
from .tiers import TierUse


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """One pool of equal replicas: its name, GPUs of each replica, how long each was busy (s), its steps, and one replica's memory.

    ``bubble_s`` is how long each replica's pipeline stages idled between their first and last work, summed over them.
    """

    name: str
    gpus_each: int
    busy_s: tuple[float, ...]
    n_steps: int
    memory: ServeMemory
    n_stages: int = 1
    bubble_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """What one link carried in a run and the share of the run it would have needed for that at full rate."""

    name: str
    bytes_per_s: float
    n_bytes: float
    busy_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeResult:
    """One run. Times are seconds from the trace's start, NaN for requests that were rejected (larger than the KV pool).

    ``gpu_s`` are the GPU-seconds paid for: all GPUs from start to end, less where autoscaling let some go. ``scaled`` are the moments at
    which a pool grew or shrank as (s, replicas paid for). ``logs`` are the replicas' steps by name where they were asked for. ``tiers``
    is what HBM and each KV tier saved and moved where the prefix cache is on.
    """

    work: ServeWorkload
    first_s: Floats64
    finish_s: Floats64
    rejected: Ints64
    gaps: GapHistogram
    n_steps: int
    n_preempted: int
    busy_s: float
    end_s: float
    n_gpus: int
    n_replicas: int
    memory: ServeMemory
    seed: int
    cache_hit_frac: float = 0.0
    gpu_s: float = 0.0
    pools: tuple[PoolUse, ...] = ()
    links: tuple[LinkUse, ...] = ()
    scaled: tuple[tuple[float, int], ...] = ()
    logs: Mapping[str, StepLog] = field(default_factory=dict)
    tiers: tuple[TierUse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Replicas of one kind under one name, as a run holds them."""

    name: str
    kind: ReplicaModel
    gpus_each: int
    replicas: list[Replica]


def collect(
    work: ServeWorkload,
    requests: Requests,
    pools: list[Pool],
    n_gpus: int,
    seed: int,
    *,
    links: FairLinks | None = None,
) -> ServeResult:
    """The result of a run that has ended; the memory is that of the last pool (the one that decodes), links are those that were used."""
    replicas = [replica for pool in pools for replica in pool.replicas]
    gaps = GapHistogram()
    for replica in replicas:
        gaps.merge(replica.gaps)
    stores = [replica.store for replica in replicas if replica.store is not None]
    end_s = max(r.now for r in replicas) / PS
    return ServeResult(
        work=work,
        first_s=_seconds(requests.first),
        finish_s=_seconds(requests.finish),
        rejected=np.array(requests.rejected, np.int64),
        gaps=gaps,
        n_steps=sum(r.n_steps for r in replicas),
        n_preempted=sum(r.n_preempted for r in replicas),
        busy_s=sum(r.busy_ps for r in replicas) / PS,
        end_s=end_s,
        n_gpus=n_gpus,
        n_replicas=len(replicas),
        memory=pools[-1].kind.memory,
        seed=seed,
        cache_hit_frac=sum(s.hit_tokens for s in stores) / max(sum(s.prompt_tokens for s in stores), 1),
        gpu_s=n_gpus * end_s,
        pools=tuple(_use(pool) for pool in pools),
        links=() if links is None else _links(links, end_s),
        tiers=tier_use(stores),
        logs={f"{pool.name} {i}": r.log for pool in pools for i, r in enumerate(pool.replicas) if r.log is not None},
    )


def _use(pool: Pool) -> PoolUse:
    return PoolUse(
        name=pool.name,
        gpus_each=pool.gpus_each,
        busy_s=tuple(r.busy_ps / PS for r in pool.replicas),
        n_steps=sum(r.n_steps for r in pool.replicas),
        memory=pool.kind.memory,
        n_stages=len(pool.kind.times.layers) if isinstance(pool.kind.times, PipelineTimes) else 1,
        bubble_s=tuple(r.bubble_ps() / PS for r in pool.replicas),
    )


def _links(links: FairLinks, end_s: float) -> tuple[LinkUse, ...]:
    rows = zip(links.names, links.bytes_per_s, links.carried, strict=True)
    return tuple(LinkUse(name=name, bytes_per_s=rate, n_bytes=n, busy_frac=n / rate / max(end_s, 1e-12)) for name, rate, n in rows if n)


def _seconds(ticks: array[int]) -> Floats64:
    at = np.frombuffer(ticks, np.int64) / PS
    return np.where(at < 0, np.nan, at)
