"""Families are found by listing their folder, rows are held to their signatures, and no technique beats physics."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels import families as folder
from roofplan.costmodels.apply import apply, check, families, family, parameters, stage, subject, used
from roofplan.costmodels.rates import rates
from roofplan.costmodels.step import Stage, Step, decode_step, floor_s, prefill_step, seconds, train_pass
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput, UnknownName
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.technique import Technique, technique, techniques
from tiny_step import tiny_step

ROWS = list(techniques().values())
MODELS = ("llama3-8b", "mixtral-8x7b", "deepseek-v2-lite")
TOTALS = ("linear_flops", "attention_flops", "weight_bytes", "kv_bytes", "other_bytes", "host_bytes", "network_bytes", "held_weight_bytes",
          "held_kv_bytes", "held_activation_bytes", "held_state_bytes", "host_held_bytes", "slow_frac", "yield_tokens")  # fmt: skip


def passes(name: str) -> list[Step]:
    model = registry.model(name)
    return [decode_step(model, kv_tokens=65536, n_seqs=4), prefill_step(model, prompt_tokens=65536), train_pass(model, seq_tokens=65536)]


def test_a_family_is_a_file_with_one_public_function_of_its_name() -> None:
    files = {p.stem for p in Path(folder.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(families()) == files
    for name in families():
        module = inspect.getmodule(family(name))
        assert module
        public = [n for n, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__ and not n.startswith("_")]
        assert public == [name]
        first, *others = inspect.signature(family(name)).parameters.values()
        assert first.name == subject(name)
        assert all(p.kind is p.KEYWORD_ONLY for p in others)
        assert stage(name) in (0, *Stage)
        assert (stage(name) > 0) == (subject(name) == "step")


@pytest.mark.parametrize("name", families())
def test_a_family_has_rows_and_a_source(name: str) -> None:
    assert any(row.family == name for row in ROWS)
    assert name == "plan_options" or name == "quantise" or "Source:" in (family(name).__doc__ or "")


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_a_row_fits_its_family(row: Technique) -> None:
    check(row)


@pytest.mark.parametrize("row", [r for r in ROWS if subject(r.family) == "step"], ids=lambda r: r.name)
def test_a_rewritten_pass_is_finite_and_never_beats_the_floor(row: Technique) -> None:
    gpu = registry.accelerator("h100-sxm")
    price = rates(registry.cluster("h100-sxm", 8))
    for model in MODELS:
        for step in passes(model):
            after = apply([row], step)
            for name in TOTALS:
                value = float(getattr(after, name))
                assert math.isfinite(value), name
                assert value >= 0, name
            assert float(seconds(after, price)) >= float(floor_s(replace(after, dtype="bf16"), gpu)) * (1 - 1e-12)


SHARED = ("kv_reuse", "sequence_split")
"""Families that save work exactly: what was computed before, and what another GPU computes."""


@pytest.mark.parametrize("row", [r for r in ROWS if set(r.levels) <= {"L0", "L1"} and subject(r.family) == "step"], ids=lambda r: r.name)
def test_what_is_lossless_drops_no_work_and_no_byte(row: Technique) -> None:
    if row.family in SHARED:
        return
    for model in MODELS:
        for step in passes(model):
            after = apply([row], step)
            n = float(after.yield_tokens) / float(step.yield_tokens)
            assert n <= float(after.q_tokens) / float(step.q_tokens) + 1e-9, "a pass cannot yield more tokens than it checks"
            assert float(after.attention_flops) >= float(step.attention_flops) * min(n, 1) - 1
            assert float(after.linear_flops) >= float(step.linear_flops) * min(n, 1) - 1
            held = float(after.held_weight_bytes + after.held_kv_bytes + after.host_held_bytes)
            assert held >= float(step.held_weight_bytes + step.held_kv_bytes) * (1 - 1e-9)


def test_stages_order_what_is_applied() -> None:
    """The budget of 4096 tokens is of the compressed context, and the cache left then takes half the bytes: order of rows is no matter."""
    model = registry.model("llama3-8b")
    rows = [technique(n) for n in ("kv-fp8", "snapkv", "longcodezip")]
    step = decode_step(model, kv_tokens=65536)
    one, other = (apply(order, step) for order in (rows, rows[::-1]))
    assert one == other
    assert one.kv_bytes == pytest.approx(float(step.kv_bytes) * 0.5 * 0.1786 * 4096 / (65536 * 0.1786))


def test_plan_rows_rewrite_plans_and_leave_steps() -> None:
    plan = apply([technique("ulysses"), technique("kv-fp8")], ParallelPlan(cp=8))
    assert plan.cp_kind == "ulysses"
    assert apply([technique("ulysses")], tiny_step()) == tiny_step()


def test_overrides_are_the_papers_setting() -> None:
    assert apply([technique("h2o")], tiny_step(), keep_frac=0.5, nothing=1).kv_bytes == pytest.approx(50)


def test_arrays_of_contexts_go_through() -> None:
    model, lengths = registry.model("llama3-8b"), np.array([1e4, 1e5, 1e6])
    together = apply([technique("minference")], prefill_step(model, prompt_tokens=lengths))
    for i, n in enumerate(lengths):
        alone = apply([technique("minference")], prefill_step(model, prompt_tokens=n))
        assert np.asarray(together.attention_flops)[i] == pytest.approx(float(alone.attention_flops))


def wrong(**params: object) -> Technique:
    return replace(technique("h2o"), params=params)


def test_parameters_are_held_to_the_signature() -> None:
    with pytest.raises(BadInput, match=r"kv_eviction has no parameter 'keep'; legal: budget_tokens=0, window_tokens=0, keep_frac=1.0"):
        check(wrong(keep=0.2))
    with pytest.raises(BadInput, match=r"keep_frac=1.2 must be a fraction between 0 and 1"):
        check(wrong(keep_frac=1.2))
    with pytest.raises(BadInput, match=r"budget_tokens=1.5 must be a whole number"):
        check(wrong(budget_tokens=1.5))
    with pytest.raises(BadInput, match="budget_tokens=-1 must be a number, not negative"):
        check(wrong(budget_tokens=-1))
    with pytest.raises(BadInput, match="every_step='yes' must be true or false"):
        check(wrong(every_step="yes"))
    with pytest.raises(BadInput, match="kind='rng' must be one of megatron, ulysses"):
        check(replace(technique("token-ring"), params={"ranks": 4, "kind": "rng"}))
    with pytest.raises(BadInput, match=r"speculation needs draft_tokens; legal: draft_tokens, acceptance=0.0"):
        check(replace(technique("eagle-3"), params={}))
    with pytest.raises(BadInput, match="recompute='some' must be one of none, selective"):
        check(replace(technique("full-recompute"), params={"recompute": "some"}))
    with pytest.raises(BadInput, match="dtype=8 must be text"):
        check(replace(technique("fp8-weights"), params={"dtype": 8}))


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown family of techniques 'kv_evict'; nearest: kv_eviction"):
        check(replace(technique("h2o"), family="kv_evict"))


def test_parameters_carry_their_types() -> None:
    assert parameters("quantise")["weight_bits"].annotation is float


def test_a_plan_knows_its_techniques() -> None:
    memory = {"offload_optimizer": 1, "offload_activations": 1, "tiled_mlp": 1, "fused_loss": 1}
    plan = ParallelPlan(cp=8, cp_kind="ulysses", zero_stage=3, recompute="full", **memory)  # type: ignore[arg-type]
    names = {row.name for row in used(plan)}
    assert {"alst", "ulysses", "tiled-mlp", "zero-offload", "full-recompute"} <= names
    assert not names & {"zero-infinity", "lightseq", "flash-attention", "lora"}
    assert used(ParallelPlan()) == []


def values(name: str, p: inspect.Parameter) -> st.SearchStrategy[object]:
    """Legal values of one parameter, by its type and name."""
    if get_origin(p.annotation) is Literal:
        return st.sampled_from(get_args(p.annotation))
    if p.annotation is bool:
        return st.booleans()
    if p.annotation is str:
        return st.just("bf16")
    if p.annotation is int:
        return st.integers(0, 5000)
    return st.floats(0, 1) if name.endswith(("_frac", "acceptance")) else st.floats(0, 100)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.data())
def test_any_legal_parameters_give_a_pass_or_a_sentence(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([f for f in families() if subject(f) == "step"]))
    params = {k: data.draw(values(k, p), label=k) for k, p in parameters(name).items()}
    row = replace(technique("h2o"), family=name, params=params)
    step = data.draw(st.sampled_from(PASSES))
    try:
        after = apply([row], step)
    except BadInput as error:
        assert str(error).startswith(name)
        return
    for total in TOTALS:
        value = float(getattr(after, total))
        assert math.isfinite(value), (total, params)
        assert value >= 0, (total, params)


PASSES = passes("llama3-8b") + passes("deepseek-v2-lite")


def test_what_makes_no_sense_is_one_sentence() -> None:
    with pytest.raises(BadInput, match="sequence_split: ranks=0 must be above 0"):
        apply([technique("token-ring")], tiny_step("prefill"), ranks=0)
    with pytest.raises(BadInput, match="hybrid_attention: window_tokens=9, stride=16, state_dim=0; give exactly one of them"):
        apply([technique("rat")], tiny_step(), window_tokens=9)
    with pytest.raises(BadInput, match=r"acceptance=1.5 must be a fraction between 0 and 1"):
        check(replace(technique("pearl"), params={"acceptance": 1.5, "draft_tokens": 5, "draft_frac": 0.1}))
