"""Time of one micro-batch of a pipelined replica, stage by stage, as tables of whole picoseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .arrays import as_integers
from .serving import Reach, step_parts, whole_ps
from .serving_memory import kv_bytes_per_token
from .serving_ops import ServeSystem
from .step_times import PS, StepTimes


@dataclass(frozen=True, kw_only=True)
class PipelineTimes:
    """A micro-batch takes ``host[n]``, then ``work·layers[i]/Σ layers`` on stage ``i``, ``hop[tokens]`` between, ``head[n]`` on the last.

    ``work`` is that of all layers, ``StepTimes`` without head and host: ``linear[tokens] + decode[n] + decode_slope[n]·kv + attention``. A
    hop delays a micro-batch and occupies no stage. ``swap`` is a KV block over the host link, on each stage its own part at once.
    ``in_turn``: no micro-batch starts before the one before it has left the last stage, and each may hold all seats.
    """

    work: StepTimes
    head: Sequence[int]
    host: Sequence[int]
    hop: Sequence[int]
    layers: tuple[int, ...]
    in_turn: bool = False

    @property
    def swap(self) -> int:
        return self.work.swap

    def stages_ps(self, work_ps: int, n_decodes: int) -> list[int]:
        """Time on each stage of a micro-batch whose layers take ``work_ps`` in all; the last also has the rounding."""
        total = sum(self.layers)
        out = [work_ps * n // total for n in self.layers]
        out[-1] += work_ps - sum(out) + self.head[n_decodes]
        return out

    @cached_property
    def whole(self) -> StepTimes:
        """A micro-batch that meets no other, hops left out: every stage in turn, head and host."""
        decode = np.array(self.work.decode) + np.array(self.head) + np.array(self.host)
        return dataclasses.replace(self.work, decode=as_integers(decode))

    def stage(self, i: int) -> StepTimes:
        """What a micro-batch takes of stage ``i`` alone, rounded down."""
        w, n, total = self.work, self.layers[i], sum(self.layers)
        linear, decode, slope, prefill, prefill_slope, own, beside, beside_slope, idle = (
            as_integers(np.array(table, np.int64) * n // total)
            for table in (
                w.linear, w.decode, w.decode_slope, w.prefill, w.prefill_slope, w.own, w.beside, w.beside_slope, w.idle,
            )
        )  # fmt: skip
        if i in (len(self.layers) - 1, -1):
            decode = as_integers(np.array(decode) + np.array(self.head))
        return StepTimes(
            linear=linear, decode=decode, decode_slope=slope, prefill=prefill, prefill_slope=prefill_slope, swap=w.swap, ranks=w.ranks,
            own=own, beside=beside, beside_slope=beside_slope, idle=idle,
        )  # fmt: skip


def stage_layers(n_layers: int, n_stages: int) -> tuple[int, ...]:
    """Layers of each stage: equal, and what is left over one each to the stages before the last, from the back.

    Source: vLLM, distributed/utils.py, get_pp_indices: the last stage also has the head.
    """
    each, left = divmod(n_layers, n_stages)
    return tuple(each + (n_stages - 1 - left <= i < n_stages - 1) for i in range(n_stages))


def pipeline_times(model: ModelSpec, plan: EnginePlan, system: ServeSystem, reach: Reach) -> PipelineTimes:
    """Tables of a replica of ``plan.pp`` stages for every micro-batch up to ``reach``."""
    whole = dataclasses.replace(plan, pp=1)
    parts = step_parts(model, whole, system, reach)
    block_bytes = kv_bytes_per_token(model, plan) * (plan.block_tokens or system.engine.block_tokens)
    tokens = np.ceil(np.arange(reach.tokens + 1) / (plan.dp * plan.cp))
    hop = system.network.p2p_s(2 * tokens * model.hidden, plan.tp * plan.dp * plan.cp)
    work = parts.tables(parts.fixed, plan.dp)
    return PipelineTimes(
        work=dataclasses.replace(work, swap=round(float(system.roofline.host_copy_s(block_bytes)) * PS)),
        head=whole_ps(parts.head),
        host=whole_ps(parts.host),
        hop=whole_ps(hop),
        layers=stage_layers(model.n_layers, plan.pp),
        in_turn=system.engine.stages_in_turn,
    )
