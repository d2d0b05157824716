"""The rules a layout must obey, each one function with its formula; a layout that breaks one is counted with an example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scenarios.hardware import Cluster
from ..scenarios.model import ModelSpec
from ..scenarios.plan import CpKind, Schedule
from .engines import Engine

Columns = dict[str, NDArray[np.int64]]
"""Candidate layouts as equally long arrays, one per field of ParallelPlan."""
Mask = NDArray[np.bool_]
Numbers = int | NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at besides the columns. ``seq_tokens`` or ``global_batch`` of 0: free, the search will choose it."""

    model: ModelSpec
    cluster: Cluster
    engine: Engine
    seq_tokens: int
    global_batch: int
    cp_kind: CpKind
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: ``holds`` says which rows obey; ``sentence`` is the error, with ``field`` the number a user would change."""

    name: str
    field: str
    template: str
    holds: Callable[[Facts, Columns], Mask]

    def sentence(self, facts: Facts, columns: Columns, row: int) -> str:
        """The error for one row, with the values of ``field`` that would be legal there."""
        m, one = facts.model, {key: int(column[row]) for key, column in columns.items()}
        values = {
            "model": m.name, "n_heads": m.n_heads, "n_kv_heads": m.n_kv_heads, "n_layers": m.n_layers, "ffn_hidden": m.ffn_hidden,
            "moe_ffn": m.moe_ffn_hidden, "seq": facts.seq_tokens, "global_batch": facts.global_batch, "cp_kind": facts.cp_kind,
            "per_node": facts.cluster.gpus_per_node, "engine": facts.engine.name, "schedule": facts.schedule,
        }  # fmt: skip
        text = self.template.format(**(values | one))
        legal = self.legal_values(facts, one)
        return f"{text}; legal: {', '.join(map(str, legal))}" if legal else text

    def legal_values(self, facts: Facts, one: dict[str, int]) -> list[int]:
        """Up to eight values of ``field`` from 1 to 1024 that obey the rule, all else equal."""
        tried = np.arange(1, 1025, dtype=np.int64)
        columns = {key: np.full(tried.size, value, np.int64) for key, value in one.items()} | {self.field: tried}
        return [int(v) for v in tried[self.holds(facts, columns)][:8]]


SHAPE_RULES: list[Rule] = []
"""Rules on dp, tp, pp, cp alone, in the order they are tried."""
OPTION_RULES: list[Rule] = []
"""Rules that need the options too (vpp, ep, micro-batch, ZeRO stage)."""


def _rule(rules: list[Rule], field: str, template: str) -> Callable[[Callable[[Facts, Columns], Mask]], Callable[[Facts, Columns], Mask]]:
    def add(holds: Callable[[Facts, Columns], Mask]) -> Callable[[Facts, Columns], Mask]:
        rules.append(Rule(name=holds.__name__, field=field, template=template, holds=holds))
        return holds

    return add


def _divides(by: Numbers, number: Numbers) -> Mask:
    return np.asarray(np.mod(number, by) == 0)


def _heads(facts: Facts) -> tuple[int, int]:
    """Query and KV heads; under MLA every head has its own key and value."""
    m = facts.model
    return m.n_heads, (m.n_heads if m.is_mla else m.n_kv_heads)


@_rule(SHAPE_RULES, "tp", "tp={tp} does not divide n_heads={n_heads} of {model}")
def tp_divides_heads(f: Facts, c: Columns) -> Mask:
    """``n_heads mod tp = 0``: attention heads are never cut."""
    return _divides(c["tp"], _heads(f)[0])


@_rule(SHAPE_RULES, "tp", "tp={tp} does not divide n_kv_heads={n_kv_heads} of {model}")
def tp_divides_kv_heads(f: Facts, c: Columns) -> Mask:
    """``n_kv_heads mod tp = 0``: no training framework replicates KV heads over tensor ranks (megatron-core refuses it)."""
    return _divides(c["tp"], _heads(f)[1])


@_rule(SHAPE_RULES, "tp", "tp={tp} does not divide ffn_hidden={ffn_hidden} of {model}")
def tp_divides_ffn(f: Facts, c: Columns) -> Mask:
    """``ffn_hidden mod tp = 0`` wherever the model has a dense FFN."""
    return _divides(c["tp"], f.model.ffn_hidden) | (f.model.n_moe_layers == f.model.n_layers)


@_rule(SHAPE_RULES, "tp", "tp={tp} does not fit into a node of {per_node} GPUs")
def tp_within_node(f: Facts, c: Columns) -> Mask:
    """``gpus_per_node mod tp = 0``: tensor parallelism across nodes never pays at today's link speeds."""
    return _divides(c["tp"], f.cluster.gpus_per_node)


@_rule(SHAPE_RULES, "pp", "pp={pp} does not split n_layers={n_layers} of {model} under {engine}")
def pp_splits_layers(f: Facts, c: Columns) -> Mask:
    """``n_layers mod pp = 0``, or an uneven first and last stage of at least one layer each where the framework has them."""
    first, last = outer_layers(f.model.n_layers, c["pp"])
    uneven = np.asarray((first >= 1) & (last >= 1) & (c["pp"] <= f.model.n_layers))
    return _divides(c["pp"], f.model.n_layers) | (uneven & f.engine.uneven_pp)


@_rule(SHAPE_RULES, "dp", "dp={dp} does not divide global_batch={global_batch}")
def dp_divides_batch(f: Facts, c: Columns) -> Mask:
    """``global_batch mod dp = 0``: every data rank gets the same number of sequences."""
    return _divides(c["dp"], f.global_batch)


@_rule(SHAPE_RULES, "cp", "cp={cp} does not split seq={seq} into equal {cp_kind} chunks")
def cp_splits_sequence(f: Facts, c: Columns) -> Mask:
    """``seq mod cp = 0``; the balanced kinds cut ``2 cp`` chunks: ``seq mod 2 cp = 0``."""
    return _divides(c["cp"] * chunks_per_rank(f.cp_kind), f.seq_tokens)


@_rule(SHAPE_RULES, "tp", "tp={tp} does not divide the {cp_kind} shard of seq={seq} at cp={cp} (sequence parallelism)")
def tp_splits_shard(f: Facts, c: Columns) -> Mask:
    """``seq mod (cp tp) = 0``: sequence parallelism cuts each rank's tokens over the tensor ranks."""
    return _divides(c["cp"] * c["tp"], f.seq_tokens)


@_rule(SHAPE_RULES, "cp_inner", "Ulysses degree {cp_inner} does not divide n_heads/tp = {n_heads}/{tp} of {model}")
def ulysses_divides_heads(f: Facts, c: Columns) -> Mask:
    """``(n_heads / tp) mod cp_inner = 0``: the all-to-all trades tokens for whole heads. Source: DeepSpeed-Ulysses §3."""
    return _divides(c["cp_inner"], _heads(f)[0] // c["tp"])


@_rule(SHAPE_RULES, "cp_inner", "Ulysses degree {cp_inner} does not divide n_kv_heads/tp = {n_kv_heads}/{tp} of {model} under {engine}")
def ulysses_divides_kv_heads(f: Facts, c: Columns) -> Mask:
    """``(n_kv_heads / tp) mod cp_inner = 0``, or ``cp_inner mod (n_kv_heads / tp) = 0`` where KV heads are replicated."""
    kv = np.maximum(_heads(f)[1] // c["tp"], 1)
    return _divides(c["cp_inner"], kv) | (_divides(kv, c["cp_inner"]) & f.engine.ulysses_replicates_kv)


@_rule(SHAPE_RULES, "pp", "pp={pp} is odd; {schedule} runs two directions through pairs of stages")
def dualpipe_pairs_stages(f: Facts, c: Columns) -> Mask:
    """``pp mod 2 = 0`` under DualPipe. Source: DeepSeek-V3 §3.2.1."""
    return _divides(2, c["pp"]) | (f.schedule != "dualpipe")


@_rule(OPTION_RULES, "ep", "ep={ep} with expert_tp={expert_tp} does not divide dp*cp*tp = {dp}*{cp}*{tp}")
def experts_within_ranks(f: Facts, c: Columns) -> Mask:
    """``(dp cp tp) mod (ep expert_tp) = 0``: experts live on the same ranks as the rest of their stage."""
    return _divides(c["ep"] * c["expert_tp"], c["dp"] * c["cp"] * c["tp"])


@_rule(OPTION_RULES, "expert_tp", "expert_tp={expert_tp} does not divide moe_ffn_hidden={moe_ffn} of {model}")
def expert_tp_divides_ffn(f: Facts, c: Columns) -> Mask:
    """``moe_ffn_hidden mod expert_tp = 0``: an expert's matrices are cut evenly."""
    return _divides(c["expert_tp"], f.model.moe_ffn_hidden)


@_rule(OPTION_RULES, "zero_stage", "zero_stage={zero_stage} does not go with a pipeline (pp={pp}) under {engine}")
def pipeline_limits_zero(f: Facts, c: Columns) -> Mask:
    """``zero_stage <= max_stage_with_pp`` when pp > 1: sharded gradients would be gathered for every micro-batch."""
    return np.asarray((c["pp"] == 1) | (c["zero_stage"] <= f.engine.max_stage_with_pp))


@_rule(OPTION_RULES, "grad_accum", "grad_accum={grad_accum} is not a multiple of pp={pp}, as interleaving needs")
def interleaving_needs_rounds(f: Facts, c: Columns) -> Mask:
    """``grad_accum mod pp = 0`` under the interleaved schedule. Source: Narayanan et al. 2021 §2.2."""
    return _divides(c["pp"], c["grad_accum"]) | (f.schedule != "interleaved")


@_rule(OPTION_RULES, "grad_accum", "grad_accum={grad_accum} is under 2*pp = 2*{pp}, as {schedule} needs")
def zero_bubble_needs_batches(f: Facts, c: Columns) -> Mask:
    """``grad_accum >= 2 pp`` under the zero-bubble and DualPipe schedules. Source: Qi et al. 2024 §2; DeepSeek-V3 §3.2.1."""
    return np.asarray((c["grad_accum"] >= 2 * c["pp"]) | (f.schedule not in ("zb1p", "dualpipe")))


def chunks_per_rank(cp_kind: CpKind) -> int:
    """Equal chunks of the sequence that each context rank holds: 2 where the causal work is balanced, else 1."""
    return 2 if cp_kind in ("zigzag", "allgather", "ulysses-ring") else 1


def outer_layers(n_layers: int, pp: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Layers of the first and last stage when the ``pp - 2`` middle stages hold ``ceil(n_layers / pp)`` each; may be < 1 (illegal)."""
    rest = n_layers - -(-n_layers // pp) * np.maximum(pp - 2, 0)
    return -(-rest // 2), rest // 2
