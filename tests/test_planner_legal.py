"""Each rule's sentence: what, which value, what is legal."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.planner.engines import DEEPSPEED, MEGATRON, TORCHTITAN, Engine
from roofplan.planner.legal import OPTION_RULES, SHAPE_RULES, Columns, Facts, outer_layers
from roofplan.scenarios import registry
from roofplan.scenarios.plan import CpKind, Schedule

RULES = {rule.name: rule for rule in (*SHAPE_RULES, *OPTION_RULES)}
ONES = dict.fromkeys(("dp", "tp", "pp", "cp", "cp_inner", "vpp", "ep", "expert_tp", "zero_stage", "micro_batch"), 1) | {"grad_accum": 4}


def facts(
    model: str = "llama3-8b", engine: Engine = MEGATRON, kind: CpKind = "none", schedule: Schedule = "1f1b", seq: int = 8192
) -> Facts:
    return Facts(
        model=registry.model(model), cluster=registry.cluster("h100-sxm", 16), engine=engine, seq_tokens=seq, global_batch=12,
        cp_kind=kind, schedule=schedule,
    )  # fmt: skip


def columns(**values: int) -> Columns:
    return {key: np.array([value], np.int64) for key, value in (ONES | values).items()}


CASES = [
    ("tp_divides_heads", facts(), {"tp": 3}, "tp=3 does not divide n_heads=32 of llama3-8b; legal: 1, 2, 4, 8, 16, 32"),
    ("tp_divides_kv_heads", facts(), {"tp": 3}, "tp=3 does not divide n_kv_heads=8 of llama3-8b; legal: 1, 2, 4, 8"),
    ("tp_divides_ffn", facts(), {"tp": 5}, "tp=5 does not divide ffn_hidden=14336 of llama3-8b; legal: 1, 2, 4, 7, 8, 14, 16, 28"),
    ("tp_within_node", facts(), {"tp": 16}, "tp=16 does not fit into a node of 8 GPUs; legal: 1, 2, 4, 8"),
    (
        "pp_splits_layers", facts(engine=TORCHTITAN), {"pp": 5},
        "pp=5 does not split n_layers=32 of llama3-8b under torchtitan; legal: 1, 2, 4, 8, 16, 32",
    ),
    ("dp_divides_batch", facts(), {"dp": 8}, "dp=8 does not divide global_batch=12; legal: 1, 2, 3, 4, 6, 12"),
    (
        "cp_splits_sequence", facts(kind="zigzag", seq=8200), {"cp": 8},
        "cp=8 does not split seq=8200 into equal zigzag chunks; legal: 1, 2, 4, 5, 10, 20, 25, 41",
    ),
    (
        "tp_splits_shard", facts(kind="ulysses", seq=40), {"cp": 4, "tp": 4},
        "tp=4 does not divide the ulysses shard of seq=40 at cp=4 (sequence parallelism); legal: 1, 2, 5, 10",
    ),
    (
        "ulysses_divides_heads", facts(kind="ulysses"), {"cp": 24, "cp_inner": 24, "tp": 2},
        "Ulysses degree 24 does not divide n_heads/tp = 32/2 of llama3-8b; legal: 1, 2, 4, 8, 16",
    ),
    (
        "ulysses_divides_kv_heads", facts(kind="ulysses"), {"cp": 16, "cp_inner": 16},
        "Ulysses degree 16 does not divide n_kv_heads/tp = 8/1 of llama3-8b under megatron; legal: 1, 2, 4, 8",
    ),
    (
        "dualpipe_pairs_stages", facts(schedule="dualpipe"), {"pp": 3},
        "pp=3 is odd; dualpipe runs two directions through pairs of stages; legal: 2, 4, 6, 8, 10, 12, 14, 16",
    ),
    (
        "experts_within_ranks", facts("mixtral-8x7b"), {"ep": 8, "dp": 2, "cp": 2, "tp": 1},
        "ep=8 with expert_tp=1 does not divide dp*cp*tp = 2*2*1; legal: 1, 2, 4",
    ),
    (
        "expert_tp_divides_ffn", facts("mixtral-8x7b"), {"expert_tp": 3},
        "expert_tp=3 does not divide moe_ffn_hidden=14336 of mixtral-8x7b; legal: 1, 2, 4, 7, 8, 14, 16, 28",
    ),
    (
        "pipeline_limits_zero", facts(), {"pp": 2, "zero_stage": 3},
        "zero_stage=3 does not go with a pipeline (pp=2) under megatron; legal: 1",
    ),
    (
        "interleaving_needs_rounds", facts(schedule="interleaved"), {"pp": 8, "grad_accum": 12},
        "grad_accum=12 is not a multiple of pp=8, as interleaving needs; legal: 8, 16, 24, 32, 40, 48, 56, 64",
    ),
    (
        "zero_bubble_needs_batches", facts(schedule="zb1p"), {"pp": 4, "grad_accum": 6},
        "grad_accum=6 is under 2*pp = 2*4, as zb1p needs; legal: 8, 9, 10, 11, 12, 13, 14, 15",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "f", "values", "sentence"), CASES, ids=[case[0] for case in CASES])
def test_each_rule_says_what_is_legal(name: str, f: Facts, values: dict[str, int], sentence: str) -> None:
    rule, broken = RULES[name], columns(**values)
    assert not rule.holds(f, broken)[0]
    assert rule.sentence(f, broken, 0) == sentence


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(RULES)


def test_replicated_kv_heads_are_legal_where_the_framework_copies_them() -> None:
    f = facts(engine=DEEPSPEED, kind="ulysses")
    assert RULES["ulysses_divides_kv_heads"].holds(f, columns(cp=16, cp_inner=16))[0]
    assert not RULES["ulysses_divides_kv_heads"].holds(f, columns(cp=12, cp_inner=12))[0]


def test_latent_attention_has_a_key_per_head() -> None:
    f = facts("deepseek-v3")
    assert RULES["tp_divides_kv_heads"].holds(f, columns(tp=8))[0]


def test_outer_layers_of_published_pipelines() -> None:
    """Llama 3 405B: 126 layers on 16 stages are 7, 14 x 8, 7 (one fewer on the first and last, Llama 3 2024 §3.3.2)."""
    first, last = outer_layers(126, np.array([16, 2, 1]))
    assert (first.tolist(), last.tolist()) == ([7, 63, 63], [7, 63, 63])
