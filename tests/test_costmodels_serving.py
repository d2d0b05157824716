"""Serving step times and memory: physical floors, published pools and weights, and the shape of the curves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.params import count_params
from roofplan.costmodels.serving import Reach, launched_kernels, step_times
from roofplan.costmodels.serving_attention import decode_attention_s
from roofplan.costmodels.serving_memory import kv_bytes_per_token, serve_memory, weights_bytes
from roofplan.costmodels.serving_ops import gemm_s, sequence_s, serve_system, tp_all_reduce_s
from roofplan.costmodels.step_times import PS
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.load import names
from roofplan.scenarios.serving import EnginePlan, ServeWorkload, serving_engine

REACH = Reach(tokens=2304, chunk=2048, seqs=256)


def system_of(gpu: str, n: int = 8, engine: str = "vllm"):
    return serve_system(registry.cluster(gpu, n), serving_engine(engine))


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "h200", "b200", "rtx4090", "l40s"])
@pytest.mark.parametrize(("model", "tp"), [("llama3-8b", 1), ("llama3.1-70b", 8), ("mixtral-8x7b", 4)])
def test_no_step_beats_the_card(gpu, model, tp):
    """A decode step reads its weights and its KV once; a prefill step does 2 FLOPs a weight and token."""
    spec, system, plan = registry.model(model), system_of(gpu), EnginePlan(tp=tp)
    card, params = system.accelerator, count_params(registry.model(model))
    times = step_times(spec, plan, system, REACH)
    read = 2 * (params.total - params.embedding) / tp
    if not spec.n_experts:
        assert times.step_ps(1, 1000, []) / PS > read / card.hbm_bytes_per_s
        kv = 100_000 * kv_bytes_per_token(spec, plan)
        assert times.step_ps(64, 100_000, []) / PS > (read + kv) / card.hbm_bytes_per_s
    busy = 2 * (params.active - params.embedding - params.head) * 2048 / tp
    assert times.step_ps(0, 0, [(2048, 0)]) / PS > busy / card.bf16_flops_per_s


@pytest.mark.parametrize("model", ["llama3-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b"])
def test_more_work_takes_longer(model):
    spec = registry.model(model)
    times = step_times(spec, EnginePlan(tp=8, ep=8 if spec.n_experts else 1), system_of("h200"), REACH)
    decode = [times.step_ps(n, 1000 * n, []) for n in (1, 8, 64, 256)]
    assert decode == sorted(decode)
    chunks = [times.step_ps(0, 0, [(c, 0)]) for c in (16, 128, 512, 2048)]
    assert chunks == sorted(chunks)
    assert times.step_ps(0, 0, [(512, 4096)]) > times.step_ps(0, 0, [(512, 0)])
    assert times.linear[0] == times.decode_slope[0] == times.prefill[0] == 0


def test_kv_pool_of_a_real_engine():
    """vLLM 0.19.0 reported 2,588 blocks of 16 for Llama-3.1-8B on an RTX 4090 at 0.9 of 25,250,627,584 bytes."""
    model, engine, card = registry.model("llama3.1-8b"), serving_engine("vllm"), registry.accelerator("rtx4090")
    memory = serve_memory(model, EnginePlan(), engine, card, 2048, 256, 16)
    assert memory.kv_blocks == pytest.approx(2588, rel=0.05)
    assert memory.weights_bytes == pytest.approx(2 * 8.03e9, rel=0.002)
    assert memory.kv_bytes_per_token == 131_072


@pytest.mark.parametrize(("model", "kv"), [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama3.1-405b", 516_096)])
def test_kv_bytes_per_token_as_published(model, kv):
    """Insights into DeepSeek-V3 (ISCA 2025), table 1: KV-cache bytes per token in BF16."""
    assert kv_bytes_per_token(registry.model(model), EnginePlan()) == kv


def test_weights_split_and_formats():
    dense, moe = registry.model("llama3.1-70b"), registry.model("gpt-oss-120b")
    assert weights_bytes(dense, EnginePlan(tp=8)) == pytest.approx(weights_bytes(dense, EnginePlan()) / 8, rel=0.01)
    assert weights_bytes(dense, EnginePlan(weight_dtype="fp8")) == pytest.approx(0.5 * weights_bytes(dense, EnginePlan()), rel=0.04)
    assert weights_bytes(moe, EnginePlan(expert_dtype="mxfp4")) == pytest.approx(63e9, rel=0.12)


def test_swap_is_bytes_over_the_host_link():
    system = system_of("a100-80gb-sxm", 1)
    times = step_times(registry.model("llama3-8b"), EnginePlan(), system, REACH)
    assert times.swap / PS > 16 * 131_072 / system.roofline.host_link_bytes_per_s


def test_steps_pad_to_graphs_and_dp_splits_the_cache():
    system = system_of("h200")
    times = step_times(registry.model("llama3-8b"), EnginePlan(), system, REACH)
    assert times.linear[9] == times.linear[16] < times.linear[17]
    latent = registry.model("deepseek-v3")
    alone = step_times(latent, EnginePlan(tp=8, weight_dtype="fp8"), system, REACH)
    spread = step_times(latent, EnginePlan(tp=1, dp=8, ep=8, weight_dtype="fp8"), system, REACH)
    assert spread.decode_slope[128] < 0.3 * alone.decode_slope[128]


def test_weight_only_formats_read_fewer_bytes_but_compute_in_16_bits():
    system = system_of("h100-sxm")
    few, many = np.array([1.0]), np.array([8192.0])
    assert gemm_s(system, few, 8192, 8192, "int4")[0] < 0.6 * gemm_s(system, few, 8192, 8192, "bf16")[0]
    assert gemm_s(system, many, 8192, 8192, "int4")[0] >= 2 * 8192**3 / system.accelerator.bf16_flops_per_s


def test_own_all_reduce_is_used_where_it_was_measured_and_cheaper():
    """vLLM's kernel in a CUDA graph, H100, 8 ranks: 5.1 us at 8 KiB, 5.6 us at 32 KiB; NCCL takes over for large messages."""
    system = system_of("h100-sxm")
    small, large = np.array([16384.0]), np.array([1e9])
    base = replace(system.network.calibration, families={k: v for k, v in system.network.calibration.families.items() if "custom" not in k})
    without = replace(system, network=replace(system.network, calibration=base))
    assert tp_all_reduce_s(without, small, 8) == pytest.approx(system.network.all_reduce_s(small, 8, 1))
    assert tp_all_reduce_s(system, small, 8) == pytest.approx(system.network.custom_all_reduce_s(small, 8))
    assert tp_all_reduce_s(system, small, 8)[0] < 0.8 * system.network.all_reduce_s(small, 8, 1)[0]
    assert tp_all_reduce_s(system, large, 8)[0] <= system.network.all_reduce_s(large, 8, 1)[0]
    assert tp_all_reduce_s(system, small, 1)[0] == 0


@pytest.mark.parametrize("name", sorted(names("engines")))
def test_every_engine_profile_says_where_its_figures_come_from(name):
    engine = serving_engine(name)
    assert engine.sources["default"]
    assert 0 < engine.memory_utilization_frac <= 1
    assert engine.max_num_seqs <= engine.token_budget


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnginePlan(tp=0), "tp=0 must be between 1 and 1,024"),
        (lambda: EnginePlan(tp=4, ep=3), "ep=3 does not divide the replica's 4 GPUs"),
        (lambda: EnginePlan(preemption="drop"), "preemption='drop' is not known"),
        (lambda: ServeWorkload(arrival_s=np.zeros(0), prompt_tokens=np.zeros(0), output_tokens=np.zeros(0)), "0 requests"),
        (
            lambda: ServeWorkload(arrival_s=np.array([1.0, 0.5]), prompt_tokens=np.ones(2), output_tokens=np.ones(2)),
            "backwards at request 1",
        ),
        (
            lambda: ServeWorkload(arrival_s=np.zeros(2), prompt_tokens=np.array([1, 0]), output_tokens=np.ones(2)),
            "prompt_tokens of request 1 is 0",
        ),
    ],
)
def test_plans_and_workloads_that_cannot_be(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_fused_quantisation_saves_a_pass_but_never_beats_the_floor():
    plain, fused = system_of("h100-sxm"), system_of("h100-sxm", engine="trtllm-0.15")
    m = np.array([1.0, 64.0, 4096.0])
    saved = gemm_s(plain, m, 8192, 8192, "fp8") - gemm_s(fused, m, 8192, 8192, "fp8")
    assert np.all(saved >= 0)
    assert saved[2] == pytest.approx(plain.roofline.quantise_s(4096, 8192, "fp8"), rel=1e-6)
    assert saved[2] > 3.0 * 4096 * 8192 / plain.accelerator.hbm_bytes_per_s  # it reads 16 bits and writes 8
    assert plain.roofline.quantise_s(4096, 8192, "bf16") == 0
    assert np.all(gemm_s(fused, m, 8192, 8192, "fp8") >= plain.roofline.gemm_floor_s(m, 8192, 8192, "fp8"))
    assert gemm_s(fused, m, 8192, 8192, "bf16") == pytest.approx(gemm_s(plain, m, 8192, 8192, "bf16"))


def test_block_scaled_linears_are_not_priced_at_the_hosts_launch_time():
    """The measured block-scaled linear takes 180 us on B200 whatever its size: a Python launch, which a CUDA graph does not pay."""
    system = system_of("b200")
    small = np.array([16.0])
    assert system.roofline.gemm_s(small, 3072, 1536, "fp8_block")[0] > 1.0e-4
    assert gemm_s(system, small, 3072, 1536, "fp8_block")[0] < 2.0e-5


def test_kernels_that_start_late_cost_their_gap_each():
    """Llama-3-8B launches 12 kernels in each of 32 layers: a gap of 9.3 us adds 3.6 ms to every step."""
    model, system = registry.model("llama3-8b"), system_of("mi300x", engine="vllm-0.6-rocm")
    none = replace(system, engine=replace(system.engine, kernel_gap_s=0.0))
    late, soon = (step_times(model, EnginePlan(), s, REACH) for s in (system, none))
    for step in ((8, 800, []), (0, 0, [(100, 0)])):
        assert (late.step_ps(*step) - soon.step_ps(*step)) / PS == pytest.approx(12 * 32 * 9.3e-6)


MI300X_PRODUCTS = (
    (13312, 17792, 118.96), (76032, 13312, 497.12), (38016, 13312, 255.54), (35584, 13312, 244.15), (19968, 13312, 131.58),
    (19008, 13312, 121.30), (17792, 13312, 123.39), (9984, 13312, 72.50), (8896, 13312, 71.12), (4992, 13312, 43.31),
    (8192, 12288, 61.53), (4096, 11008, 32.77), (13312, 8896, 71.85), (76032, 8192, 315.77),
)  # fmt: skip
"""n, k, us of a 16-bit product of one row by hipBLASLt on MI300X. Source: ROCm/rocm-libraries pull request 12329."""


def test_the_gap_of_rocm_kernels_is_what_measured_products_take_beyond_the_lent_ones():
    """14 products are a gap and a multiple of the lent time within 10 % each: the least squares' gap is the engine's."""
    system = system_of("mi300x", engine="vllm-0.6-rocm")
    lent = np.array([gemm_s(system, np.ones(1), n, k, "bf16")[0] for n, k, _ in MI300X_PRODUCTS])
    measured = np.array([us * 1e-6 for _, _, us in MI300X_PRODUCTS])
    rows = np.c_[np.ones_like(lent), lent] / measured[:, None]
    (gap_s, frac), *_ = np.linalg.lstsq(rows, np.ones_like(lent))
    assert gap_s == pytest.approx(system.engine.kernel_gap_s, rel=0.02)
    assert 1 < frac < system.engine.kernel_frac
    assert rows @ (gap_s, frac) == pytest.approx(np.ones_like(lent), abs=0.1)


def test_steps_over_several_ranks_pay_for_handing_them_out():
    """vLLM V0 on two GPUs: each step takes ``ranks_cpu_s`` more than without it; on one GPU nothing changes."""
    model, system = registry.model("llama3-8b"), system_of("h100-sxm", engine="vllm-0.6")
    free = replace(system, engine=replace(system.engine, ranks_cpu_s=0.0))
    for tp, more in ((1, 0.0), (2, system.engine.ranks_cpu_s)):
        with_it, without = (step_times(model, EnginePlan(tp=tp), s, REACH).step_ps(8, 800, []) for s in (system, free))
        assert (with_it - without) / PS == pytest.approx(more, abs=1e-9)


def test_sequences_cost_more_where_linears_quantise_their_activations() -> None:
    """vLLM: 18 us for each of 64 sequences with 8- and 4-bit linears, nothing in 16 bits, with weight-only formats, or on cards without."""
    engine = replace(serving_engine("vllm"), sequence_cpu_s=1e-6, quantised_sequence_s=18e-6)
    for gpu, dtype, cost in (
        ("h200", "bf16", 1e-6), ("h200", "fp8", 19e-6), ("h200", "fp8_block", 19e-6), ("b200", "nvfp4", 19e-6), ("h200", "int4", 1e-6),
        ("a100-80gb-sxm", "fp8", 1e-6),
    ):  # fmt: skip
        assert sequence_s(EnginePlan(weight_dtype=dtype), serve_system(registry.cluster(gpu, 1), engine)) == pytest.approx(cost)


def test_eager_steps_wait_for_the_host_and_decode_only_graphs_make_prompts_eager():
    system, model = system_of("h200", engine="trtllm"), registry.model("gpt-oss-120b")
    reach = Reach(tokens=2048, chunk=1024, seqs=16)
    kernels = launched_kernels(model, system.engine.kernels_per_layer)
    assert kernels == 36 * 12 + 36 * 5
    times = step_times(model, EnginePlan(tp=8, expert_dtype="mxfp4"), system, reach)
    assert times.linear[17] / PS >= system.engine.launch_s * kernels * 0.999
    assert times.linear[16] / PS < system.engine.launch_s * kernels


def test_memory_share_of_what_is_free():
    """TensorRT-LLM gives its KV cache 0.9 of what weights leave, vLLM all but the weights of 0.9 of the card."""
    model, card = registry.model("llama3.1-70b"), registry.accelerator("h100-sxm")
    free = serve_memory(model, EnginePlan(tp=2), serving_engine("trtllm"), card, 8192, 64, 32)
    left = card.hbm_bytes - free.weights_bytes - free.activations_bytes - free.context_bytes
    assert free.kv_bytes == pytest.approx(0.9 * left, rel=0.01)
    assert free.kv_blocks * 32 > 2 * serve_memory(model, EnginePlan(tp=2), serving_engine("vllm"), card, 8192, 64, 16).kv_blocks * 16


@pytest.mark.parametrize(
    ("engine", "gpu", "limits"),
    [
        ("vllm", "h100-sxm", (8192, 1024)),
        ("vllm", "a100-80gb-sxm", (2048, 256)),
        ("vllm", "rtx4090", (2048, 256)),
        ("sglang", "b200", (16384, 1024)),
        ("sglang", "h100-sxm", (8192, 1024)),
    ],
)
def test_engines_start_with_larger_steps_on_larger_cards(engine, gpu, limits):
    card = registry.accelerator(gpu)
    assert serving_engine(engine).limits_on(card.name, card.hbm_bytes) == limits


def test_latents_of_8_bits_cost_no_more_than_of_16_and_no_less_than_their_bytes():
    """Hopper's measured 8-bit kernel takes four times its 16-bit one; on Blackwell the 8-bit one is the faster and stays."""
    model, n, kv = registry.model("deepseek-v3"), np.array([32.0, 256.0]), 8192
    for gpu in ("h200", "b200"):
        system = serve_system(registry.cluster(gpu, 8), serving_engine("trtllm"))
        narrow, wide = (decode_attention_s(model, EnginePlan(dp=8, ep=8, kv_dtype=kv_dtype), system, n, kv) for kv_dtype in ("fp8", "bf16"))
        assert np.all(narrow <= wide)
        assert np.all(narrow >= n / 8 * kv * 576 * 61 / system.accelerator.hbm_bytes_per_s)
    assert np.all(narrow < wide)


def test_an_engines_own_attention_kernel_slows_prompts_alone():
    """``prefill_attention_frac`` multiplies a prompt's attention, at any past; linears and decodes stay."""
    model, plan, system = registry.model("llama3.1-8b"), EnginePlan(), system_of("h100-sxm")
    own = step_times(model, plan, system, REACH)
    slow = replace(system, engine=replace(system.engine, prefill_attention_frac=3.0))
    theirs = step_times(model, plan, slow, REACH)
    assert theirs.prefill[1500] == pytest.approx(3 * own.prefill[1500], rel=1e-9)
    assert theirs.prefill_slope[1500] == pytest.approx(3 * own.prefill_slope[1500], rel=1e-6)
    assert (theirs.linear, theirs.decode, theirs.decode_slope) == (own.linear, own.decode, own.decode_slope)
