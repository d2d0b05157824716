"""A layer's ops against closed forms: FLOPs of whole models, dual messages, bytes of each parallel scheme."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.flops import attention_flops, linear_flops_per_token, train_flops
from roofplan.costmodels.layer_time import layer_mix
from roofplan.costmodels.op import Collective, Floats, Gemm, Op, flops
from roofplan.costmodels.params import count_params
from roofplan.costmodels.shard import shard
from roofplan.costmodels.transformer import backward, layer_ops
from roofplan.scenarios import registry
from roofplan.scenarios.plan import ParallelPlan
from roofplan.scenarios.workload import TrainWorkload

FW = registry.framework("deepspeed")


def total_flops(ops: tuple[Op, ...]) -> float:
    return float(sum(np.sum(op.count * flops(op.work)) for op in ops))


def model_ops(name: str, plan: ParallelPlan, seq: int) -> list[tuple[float, tuple[Op, ...]]]:
    model = registry.model(name)
    cut = shard(model, plan, TrainWorkload(seq_tokens=seq))
    return [(share * model.n_layers, layer_ops(model, plan, cut, FW, moe=moe, window_tokens=w)) for share, moe, w in layer_mix(model)]


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.1-70b", "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gemma2-9b"])
def test_a_layers_matmuls_are_the_models_parameters(name: str) -> None:
    """Forward FLOPs of all layers = 2 x active matmul parameters x tokens + attention, exactly (norms and biases excluded)."""
    model, seq = registry.model(name), 4096
    got = sum(n * total_flops(ops) for n, ops in model_ops(name, ParallelPlan(), seq))
    head = 2.0 * model.vocab * model.hidden * seq
    expected = linear_flops_per_token(model) * seq - head + attention_flops(model, float(seq))
    assert got == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    "plan",
    [
        ParallelPlan(tp=8),
        ParallelPlan(cp=4, cp_kind="ulysses"),
        ParallelPlan(cp=8, cp_kind="zigzag"),
        ParallelPlan(tp=2, cp=4, cp_kind="allgather"),
    ],
)
def test_every_split_shares_the_work_evenly(plan: ParallelPlan) -> None:
    whole = sum(n * total_flops(ops) for n, ops in model_ops("llama3-8b", ParallelPlan(), 65536))
    part = sum(n * total_flops(ops) for n, ops in model_ops("llama3-8b", plan, 65536))
    ranks = int(plan.n_gpus)
    assert part * ranks == pytest.approx(whole, rel=5e-3)


def test_a_naive_ring_does_almost_twice_the_balanced_work_on_its_last_rank() -> None:
    def attention(kind: str) -> float:
        plan = ParallelPlan(cp=8, cp_kind=kind)  # type: ignore[arg-type]
        return sum(total_flops(tuple(o for o in ops if o.name == "attention")) for _, ops in model_ops("llama3-8b", plan, 65536))

    # own block n²/2 and 7 more: n² each against n²/2 each -> 7.5 / 4
    assert attention("ring") / attention("zigzag") == pytest.approx(7.5 / 4, rel=1e-3)


def test_backward_of_matmuls_doubles_them_and_of_attention_is_two_and_a_half() -> None:
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(), 4096)
    forward_linear = sum(float(np.sum(flops(o.work))) for o in ops if isinstance(o.work, Gemm))
    forward_attention = total_flops(ops) - forward_linear
    assert total_flops(backward(ops)) == pytest.approx(2 * forward_linear + 2.5 * forward_attention)
    assert total_flops(backward(ops, train_weights=False)) == pytest.approx(forward_linear + 2.5 * forward_attention)


def lane_bytes(ops: tuple[Op, ...], lane: str) -> Floats:
    return sum(o.count * o.work.n_bytes for o in ops if o.lane == lane and isinstance(o.work, Collective))


def test_bytes_of_tensor_and_context_parallelism() -> None:
    """Per layer, forward: 4 N h e around two blocks under tp; Ulysses (N/P)(2 q + 2 kv) e; ring 2 (N/P) kv e per hop."""
    model, n = registry.model("llama3-8b"), 65536
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(tp=8), n)
    assert lane_bytes(ops, "tp") == 4 * n * model.hidden * 2
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(cp=8, cp_kind="ulysses"), n)
    assert lane_bytes(ops, "cp") == n / 8 * 2 * (2 * 4096 + 2 * 1024)
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(cp=16, cp_kind="ulysses"), n)  # 8 kv heads on 16 ranks: replicated
    assert lane_bytes(ops, "cp") == n / 16 * 2 * (2 * 4096 + 2 * 2048)
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(cp=8, cp_kind="zigzag"), n)
    assert lane_bytes(ops, "cp") == 7 * 2 * n / 8 * 1024 * 2
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(cp=8, cp_kind="allgather"), n)
    assert lane_bytes(ops, "cp") == 2 * n * 1024 * 2


def test_sequence_parallelism_gathers_its_input_again_for_weight_gradients() -> None:
    (_, ops), *_ = model_ops("llama3-8b", ParallelPlan(tp=8), 8192)
    once = lane_bytes(ops, "tp")
    assert lane_bytes(backward(ops), "tp") == 1.5 * once
    assert lane_bytes(backward(ops, train_weights=False), "tp") == once


def test_train_flops_conventions() -> None:
    model = registry.model("llama3-8b")
    count = count_params(model)
    linear = 6.0 * (count.total - count.embedding) * 8192
    assert train_flops(model, 8192, 1, convention="linear") == pytest.approx(linear, rel=1e-4)
    full = train_flops(model, 8192, 1, convention="noncausal") - train_flops(model, 8192, 1, convention="linear")
    assert full == pytest.approx(12.0 * 32 * 4096 * 8192**2)
    causal = train_flops(model, 8192, 1) - train_flops(model, 8192, 1, convention="linear")
    assert causal == pytest.approx(full / 2, rel=2e-4)
    # Megatron-Bridge prints 51.47 GFLOPs a token for this model at 8,192: causal, LM head, no embedding
    assert train_flops(model, 8192, 1) / 8192 / 1e9 == pytest.approx(51.47, rel=2e-3)
