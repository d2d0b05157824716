"""From a published row to a plan: ranks, sharding, uneven stages, offload, and what is said when a row lacks something."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from roofplan.calibrate.training_model import CannotPriceError
from roofplan.calibrate.training_plan import setting_of, uneven_layers
from roofplan.calibrate.training_rows import TrainingRun, read_runs
from roofplan.calibrate.training_sources import RULES, rule_of
from roofplan.scenarios import registry

RUNS = {run.id: run for run in read_runs(Path(__file__).parent / "data" / "training" / "small.csv")}
NANOTRON, KORTHIKANTI, ALST, BRIDGE = RUNS["T01282"], RUNS["T00606"], RUNS["T01248"], RUNS["T00387"]


def but(run: TrainingRun, **cells: object) -> TrainingRun:
    return dataclasses.replace(run, **cells)  # type: ignore[arg-type]


def test_stated_cells_are_taken_as_they_stand() -> None:
    s = setting_of(KORTHIKANTI)
    p = s.plan
    assert (p.dp, p.tp, p.pp, p.vpp, p.cp, p.micro_batch, p.grad_accum) == (1, 8, 8, 3, 1, 1, 64)
    assert (p.schedule, p.recompute, p.attention, p.sequence_parallel, p.precision) == ("interleaved", "full", "unfused", 0, "fp16")
    assert (s.work.seq_tokens, s.work.global_batch, s.published_step_s, s.published_peak_bytes) == (2048, 64, 18.13, None)
    assert s.cluster.name == "selene"
    assert s.model.n_layers == 96


@pytest.mark.parametrize(
    ("word", "sharding", "stage"),
    [("none", "ddp", 0), ("zero1", "zero", 1), ("distopt", "zero", 1), ("zero2", "zero", 2), ("zero3", "zero", 3), ("fsdp", "fsdp", 3)],
)
def test_sharding_words(word: str, sharding: str, stage: int) -> None:
    plan = setting_of(but(NANOTRON, sharding=word)).plan
    assert (plan.sharding, plan.zero_stage) == (sharding, stage)


def test_hsdp_shares_one_copy_inside_a_node() -> None:
    plan = setting_of(but(RUNS["T00001"], sharding="hsdp")).plan
    assert (plan.sharding, plan.zero_stage, plan.hsdp_group) == ("hsdp", 3, 8)


def test_an_empty_cell_takes_the_rule_of_its_source() -> None:
    vtrain = setting_of(RUNS["T00879"])
    assert vtrain.model.vocab == 51200
    assert (vtrain.plan.attention, vtrain.plan.sharding, vtrain.cluster.name) == ("unfused", "ddp", "vtrain-a100")
    assert setting_of(NANOTRON).plan.sequence_parallel == 1
    assert setting_of(BRIDGE).plan.sequence_parallel == 1  # tp > 1
    assert setting_of(but(BRIDGE, tp=1, pp=8, dp=8)).plan.sequence_parallel == 0


@pytest.mark.parametrize(
    ("cell", "kind"), [("ring", "zigzag"), ("ulysses", "ulysses"), ("a2a", "ulysses"), ("", "zigzag"), ("allgather", "allgather")]
)
def test_context_parallel_kinds(cell: str, kind: str) -> None:
    assert setting_of(but(BRIDGE, cp=2, dp=1, cp_kind=cell)).plan.cp_kind == kind


@pytest.mark.parametrize(("cell", "precision"), [("FP8-CS", "fp8"), ("MXFP8", "mxfp8"), ("nvfp4", "nvfp4"), ("bf16", "bf16"), ("", "bf16")])
def test_precision_words(cell: str, precision: str) -> None:
    assert setting_of(but(NANOTRON, precision=cell)).plan.precision == precision


def test_the_registry_knows_what_the_table_does_not() -> None:
    spec = setting_of(RUNS["T00395"]).model  # DeepSeek-V3: MLA sizes are in no column
    assert (spec.kv_lora_rank, spec.n_dense_layers) == (512, 3)
    other = setting_of(but(BRIDGE, hidden=4096, heads=32)).model  # the name lies about the size: the cells win
    assert (other.name, other.hidden, other.head_dim) == ("llama3-70b", 4096, 128)
    assert setting_of(but(BRIDGE, model="llama3-70b-sft")).model == registry.model("llama3-70b")


@pytest.mark.parametrize(
    ("model", "pp", "first", "last"),
    [("nanotron-1b", 1, 0, 0), ("nanotron-1b", 2, 10, 6), ("nanotron-1b", 4, 5, 1), ("nanotron-3b", 2, 16, 12), ("nanotron-3b", 4, 8, 4)],
)
def test_nanotron_balances_weights_with_the_head(model: str, pp: int, first: int, last: int) -> None:
    """1B: a layer has 67.1 M weights and the head 268 M, four layers' worth: 16 + 4 = 20 units, 10 a stage at pp = 2."""
    assert uneven_layers(NANOTRON, rule_of(NANOTRON.source), registry.model(model), pp) == (first, last)


def test_sailor_lists_its_stages() -> None:
    run = RUNS["T01023"]
    assert "[7, 9, 9, 9]" in run.notes  # embedding and head counted as layers
    plan = setting_of(run).plan
    assert (plan.layers_first, plan.layers_last) == (6, 8)


@pytest.mark.parametrize(
    ("run_id", "notes", "offload", "params", "activations", "fused", "tiled"),
    [
        ("T01248", "HF baseline; (+param offload on 1 GPU)", "optimizer", 1, 0, 0, 0),
        ("T01266", "ok; optimizer CPU offload always", "both", 0, 1, 1, 1),
        ("T01266", "ulysses+liger, no tiled MLP, no act offload", "optimizer", 0, 0, 1, 0),
        ("T01266", "tiled MLP, no act offload: max seq", "optimizer", 0, 0, 1, 1),
        ("T01269", "liger+act offload+param offload", "both", 1, 1, 1, 0),
        ("T01269", "liger+act offload+tiled MLP+param offload", "both", 1, 1, 1, 1),
    ],
)
def test_alst_recipes_in_their_own_words(
    run_id: str, notes: str, offload: str, params: int, activations: int, fused: int, tiled: int
) -> None:
    p = setting_of(but(RUNS[run_id], notes=notes, offload=offload)).plan
    assert (p.offload_optimizer, p.offload_params, p.offload_activations, p.fused_loss, p.tiled_mlp) == (
        1,
        params,
        activations,
        fused,
        tiled,
    )


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"num_gpus": None}, "number of GPUs not stated"),
        ({"tp": 3}, "tp*pp*cp = 24 does not divide num_gpus=64"),
        ({"dp": 5}, "tp*pp*cp*dp = 320, but num_gpus=64"),
        ({"global_batch_seqs": None}, "global batch not stated"),
        ({"seq_len": None}, "sequence length not stated"),
        ({"precision": "int3"}, "precision='int3' is unknown; known: nvfp4"),
        ({"model": "x", "hidden": None, "ffn": None}, "shape not stated (hidden, ffn) and x is not in the registry"),
        ({"model": "x", "vocab": None, "source": "somebody"}, "vocabulary not stated"),
        ({"model": "x", "heads": 97}, "heads=97 does not divide hidden=12288"),
        ({"model": "x", "layers": 10**12}, "layers=1,000,000,000,000 is over the limit of 10,000"),
        ({"model": "x", "num_experts": 8, "kv_heads": None}, "MLA sizes not stated and the model is not in the registry"),
        ({"model": "x", "num_experts": 8}, "expert sizes not stated and the model is not in the registry"),
        ({"notes": "hybrid Mamba MoE"}, "hybrid Mamba layers: the cost model has none"),
        ({"notes": "GA=7"}, "dp*micro_batch*GA = 7 contradicts global_batch_seqs=64"),
    ],
)
def test_what_is_missing_is_said(cells: dict[str, object], said: str) -> None:
    with pytest.raises(CannotPriceError) as error:
        setting_of(but(KORTHIKANTI, **cells))
    assert said in str(error.value)


def test_every_source_has_one_rule_and_any_other_the_last() -> None:
    assert rule_of("Korthikanti2022-Fig1-mem").computed
    assert not rule_of("Korthikanti2022-Table5").computed
    assert rule_of("a source nobody has seen") is RULES[-1]
    for rule in RULES:
        assert registry.framework(rule.framework).name == rule.framework
        assert not rule.cluster or registry.find("clusters", rule.cluster)


def test_nodes_of_an_nvl72_are_its_domain() -> None:
    cluster = setting_of(RUNS["T00395"]).cluster
    assert (cluster.name, cluster.gpus_per_node) == ("gb200", 64)  # 256 GPUs fill four domains of 64 of the 72
