"""The space of layouts against plain loops over the rules, and its arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.planner.engines import DEEPSPEED, ENGINES, FSDP2, MEGATRON, TORCHTITAN, Engine, engines
from roofplan.planner.prune import pick
from roofplan.planner.space import Asked, Batch, Rejections, candidates, cross, divisors, shapes, take
from roofplan.scenarios.errors import UnknownName
from roofplan.scenarios.hardware import Cluster
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.plan import ParallelPlan

CLUSTER = Cluster(
    name="c", gpu="h100-sxm", gpus_per_node=4, intra="a", inter="b", nics_per_node=4, host_link="h", host_ram_bytes=1e12,
    host_bytes_per_s=1e11, host_cores=64, n_gpus=8,
)  # fmt: skip
DENSE = ModelSpec(name="d", source="made up", n_layers=6, hidden=64, n_heads=8, n_kv_heads=2, head_dim=8, ffn_hidden=96, vocab=100)
MOE = replace(DENSE, name="m", n_experts=4, top_k=2, moe_ffn_hidden=32, n_layers=4)


def asked(engine: Engine, model: ModelSpec = DENSE, n_gpus: int = 8, seq: int = 64, batch: int = 16) -> Asked:
    return Asked(model=model, cluster=CLUSTER.with_gpus(n_gpus), engines=(engine,), seq_tokens=seq, global_batch=batch)


def plans(question: Asked) -> list[ParallelPlan]:
    found: list[Batch] = list(candidates(question, Rejections()))
    return [pick(batch, row)[0] for batch in found for row in range(batch.n)]


def legal(question: Asked, engine: Engine, p: dict[str, int], kind: str, schedule: str) -> bool:
    """The rules once more, one plan at a time, as a person would say them."""
    m, n = question.model, question.cluster.n_gpus
    tp, pp, cp, dp, vpp, ep, etp = (p[x] for x in ("tp", "pp", "cp", "dp", "vpp", "ep", "expert_tp"))
    if tp * pp * cp * dp != n or (kind == "none") != (cp == 1) or (pp > 1 and schedule not in engine.schedules):
        return False
    if pp == 1 and schedule != "1f1b":
        return False
    if tp > 1 and (not engine.tp or (engine.dense_tp_only and m.n_experts)):
        return False
    if m.n_heads % tp or m.n_kv_heads % tp or question.cluster.gpus_per_node % tp or m.ffn_hidden % tp:
        return False
    if m.n_layers % (pp * vpp) and not (vpp == 1 and engine.uneven_pp and pp <= m.n_layers and uneven_works(m.n_layers, pp)):
        return False
    if (vpp > 1) != (schedule == "interleaved"):
        return False
    if question.global_batch % dp or question.global_batch // dp != p["micro_batch"] * p["grad_accum"]:
        return False
    chunks = cp * (2 if kind in ("zigzag", "allgather", "ulysses-ring") else 1)
    if question.seq_tokens % chunks or question.seq_tokens % (cp * tp):
        return False
    inner, heads, kv = p["cp_inner"], m.n_heads // tp, m.n_kv_heads // tp
    if (kind == "ulysses" and inner != cp) or (kind not in ("ulysses", "ulysses-ring") and inner != 1):
        return False
    if kind == "ulysses-ring" and not (1 < inner < cp and cp % inner == 0):
        return False
    if heads % inner or (kv % inner and not (engine.ulysses_replicates_kv and inner % kv == 0)):
        return False
    if schedule == "interleaved" and p["grad_accum"] % pp:
        return False
    if schedule == "zb1p" and p["grad_accum"] < 2 * pp:
        return False
    if m.n_experts and engine.ep:
        if m.n_experts % ep or (dp * cp * tp) % (ep * etp) or etp not in (1, tp) or m.moe_ffn_hidden % etp:
            return False
    elif ep > 1 or etp > 1:
        return False
    return True


def uneven_works(n_layers: int, pp: int) -> bool:
    rest = n_layers - -(-n_layers // pp) * max(pp - 2, 0)
    return rest >= 2


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda e: e.name)
@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda m: m.name)
def test_the_space_is_exactly_what_the_rules_allow(engine: Engine, model: ModelSpec) -> None:
    question = asked(engine, model)
    axes = ("tp", "pp", "cp", "dp", "vpp", "ep", "expert_tp", "cp_inner", "micro_batch", "grad_accum")
    found = {(p.cp_kind, p.schedule, *(getattr(p, a) for a in axes)) for p in plans(question)}
    expected = set()
    ones = divisors(8)
    for kind, schedule in itertools.product(("none", *engine.cp_kinds), dict.fromkeys(("1f1b", *engine.schedules))):
        for tp, pp, cp in itertools.product(ones, repeat=3):
            if 8 % (tp * pp * cp):
                continue
            rest = itertools.product((1, 2, 3, 4, 6), (1, 2, 4) if model.n_experts else (1,), {1, tp}, ones, divisors(16), divisors(16))
            for vpp, ep, etp, inner, micro, accum in rest:
                row = (tp, pp, cp, 8 // tp // pp // cp, vpp, ep, etp, inner, micro, accum)
                if legal(question, engine, dict(zip(axes, row, strict=True)), kind, schedule):
                    expected.add((kind, schedule, *row))
    assert found == expected


def test_every_switch_is_crossed_once() -> None:
    """DeepSpeed without context parallelism on one GPU: ZeRO stages x legal offloads x policies x tiling x loss."""
    found = plans(asked(DEEPSPEED, n_gpus=1, batch=1))
    assert len(found) == len({repr(p) for p in found})
    per_policy = (1 + 2 + 2 + 4) * 2 * 2  # stage 0: nothing offloaded; 1, 2: optimizer; 3: optimizer and parameters; tiled, fused
    assert len(found) == per_policy * (1 + 2 + 2)  # none; full and remat with and without checkpoints on the host


def test_only_what_a_framework_has() -> None:
    assert {p.tp for p in plans(asked(DEEPSPEED))} == {1}
    assert {p.pp for p in plans(asked(FSDP2))} == {1}
    assert {p.offload_params for p in plans(asked(MEGATRON))} == {0}
    assert {p.zero_stage for p in plans(asked(TORCHTITAN))} == {3}
    assert {p.zero_stage for p in plans(asked(DEEPSPEED)) if p.offload_params} == {3}
    assert 0 not in {p.zero_stage for p in plans(asked(DEEPSPEED)) if p.offload_optimizer}
    assert {(p.offload_optimizer, p.offload_params) for p in plans(asked(FSDP2))} == {(0, 0), (1, 1)}


def test_hsdp_shards_inside_the_node_and_copies_between_nodes() -> None:
    found = [p for p in plans(asked(FSDP2)) if p.sharding == "hsdp"]
    assert found
    assert {(p.tp, p.dp, p.hsdp_group) for p in found} == {(1, 8, 4), (2, 4, 2)}


def test_uneven_stages_add_up() -> None:
    found = [p for p in plans(asked(MEGATRON, replace(DENSE, n_layers=61), n_gpus=8, batch=16)) if p.layers_first]
    assert {p.pp for p in found} >= {2, 4, 8}
    for p in found:
        middle = 61 - p.layers_first - p.layers_last
        assert p.pp == 2 or middle % (p.pp - 2) == 0
        assert p.layers_last >= 1
        assert middle >= 0


def test_a_free_batch_runs_one_sequence_per_data_rank() -> None:
    for batch in candidates(asked(DEEPSPEED, batch=0, seq=0), Rejections()):
        assert np.all(np.equal(batch.work.global_batch, batch.plan.dp))
        assert np.all(np.equal(batch.plan.micro_batch, 1))
        assert np.all(np.equal(batch.plan.grad_accum, 1))


def test_a_given_micro_batch_is_the_only_one() -> None:
    question = replace(asked(DEEPSPEED), micro_batch=2)
    assert {p.micro_batch for p in plans(question)} == {2}


def test_rejections_are_counted_with_an_example() -> None:
    rejections = Rejections()
    list(candidates(asked(MEGATRON, batch=12), rejections))
    rows = {row["reason"]: row for row in rejections.rows()}
    assert rows["dp_divides_batch"]["example"] == "dp=8 does not divide global_batch=12; legal: 1, 2, 3, 4, 6, 12"
    assert rows["tp_divides_kv_heads"]["example"] == "tp=4 does not divide n_kv_heads=2 of d; legal: 1, 2"
    counts = [int(str(row["count"])) for row in rejections.rows()]
    assert counts == sorted(counts, reverse=True)


def test_unknown_framework() -> None:
    with pytest.raises(UnknownName, match="unknown framework 'colossal'"):
        engines("colossal")
    assert len(engines("auto")) == len(ENGINES)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 5000))
def test_shapes_are_all_ordered_factorisations(n: int) -> None:
    found = shapes(n)
    assert np.all(found.prod(axis=1) == n)
    assert len({tuple(row) for row in found}) == len(found)
    exponents, m, p = [], n, 2
    while m > 1:
        if m % p == 0:
            k = 0
            while m % p == 0:
                m, k = m // p, k + 1
            exponents.append(k)
        p += 1
    ways = 1
    for k in exponents:
        ways *= (k + 3) * (k + 2) * (k + 1) // 6  # stars and bars over four axes
    assert len(found) == ways
    assert divisors(n) == tuple(d for d in range(1, n + 1) if n % d == 0)


def test_cross_and_take() -> None:
    columns = cross({"a": np.array([1, 2])}, b=(10, 20, 30))
    assert columns["a"].tolist() == [1, 1, 1, 2, 2, 2]
    assert columns["b"].tolist() == [10, 20, 30, 10, 20, 30]
    assert take(columns, columns["b"] > 10)["a"].tolist() == [1, 1, 2, 2]
