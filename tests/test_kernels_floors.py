"""The floors beside each kernel: exact against counting, against hand-worked numbers, and never negative."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="kernels need torch")
pytest.importorskip("triton", reason="kernels need triton")
from roofplan.kernels import attention, matmul, mla, moe, sparse_attention
from roofplan.kernels.bench import candidates
from roofplan.kernels.draw import Draw
from roofplan.kernels.spec import Shape, all_specs


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 4), length=st.integers(1, 70), prefix=st.integers(0, 60), window=st.integers(0, 50), sink=st.integers(0, 20),
    ragged=st.integers(0, 1),
)  # fmt: skip
def test_visible_pairs_of_attention_are_counted_exactly(batch: int, length: int, prefix: int, window: int, sink: int, ragged: int) -> None:
    shape: Shape = {
        "batch_size": batch, "seq_len": length, "num_heads": 2, "num_kv_heads": 1, "head_dim": 64, "prefix_len": prefix,
        "window_size": window, "sink_tokens": sink if window else 0, "ragged": ragged,
    }  # fmt: skip
    inputs = attention.make_inputs(shape, "float16", Draw(0, "meta"))
    lengths = [max(1, length - (length * i) // (2 * batch)) if ragged else length for i in range(batch)]
    counted = sum(int(attention.visible(n, n + prefix, window, sink if window else 0).sum()) for n in lengths)
    assert attention.n_pairs(shape) == counted
    assert attention.flops(shape, "float16") == 4 * counted * 2 * 64
    moved = sum(inputs[name].numel() * inputs[name].element_size() for name in ("q", "k", "v", "out", "lse"))
    assert attention.moved_bytes(shape, "float16") == moved


@pytest.mark.parametrize("pattern", ["a_shape", "vertical_slash", "block_topk"])
@pytest.mark.parametrize("length", [64, 200, 321, 512])
@pytest.mark.parametrize("kept", [64, 192])
def test_pairs_kept_by_a_sparse_pattern_are_counted_exactly(pattern: str, length: int, kept: int) -> None:
    columns = 50 if pattern == "vertical_slash" else 0
    shape: Shape = {"pattern": pattern, "seq_len": length, "kept_tokens": kept, "num_heads": 1, "num_kv_heads": 1, "head_dim": 64,
                    "vertical_columns": columns}  # fmt: skip
    inputs = sparse_attention.SPECS[0].make_inputs(shape, "float32", Draw(0, "cpu"))
    counted = 0
    for tile, (blocks, singles) in enumerate(zip(inputs["blocks"][0].tolist(), inputs["columns"][0].tolist(), strict=True)):
        for row in range(tile * 64, min(length, tile * 64 + 64)):
            keys = {k for b in blocks if b >= 0 for k in range(64 * b, 64 * b + 64)} | {c for c in singles if c >= 0}
            counted += sum(k <= row for k in keys)
    assert sparse_attention.n_pairs(pattern, length, kept, columns) == counted


def test_hand_worked_floors() -> None:
    assert matmul.flops({"m": 4096, "n": 4096, "k": 4096}, "bfloat16") == 2 * 4096**3
    assert matmul.moved_bytes({"m": 4096, "n": 4096, "k": 4096}, "bfloat16") == 3 * 4096 * 4096 * 2
    assert matmul.moved_bytes({"m": 1, "n": 4096, "k": 4096}, "fp8") == 4096 + 4096**2 + 2 * 4096
    causal: Shape = {"batch_size": 1, "seq_len": 8192, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    assert attention.flops(causal, "bfloat16") == pytest.approx(2 * 8192**2 * 32 * 128, rel=2e-4)
    latent = all_specs()["mla_decode"]
    shape: Shape = {"batch_size": 8, "kv_len": 1000, "num_heads": 128}
    assert latent.flops(shape, "bfloat16") == 2 * 8 * 1000 * 128 * (512 + 64 + 512)
    assert latent.moved_bytes(shape, "bfloat16") == 2 * 8 * (1000 * 576 + 128 * (2 * 512 + 64))
    assert mla.NOPE + mla.ROPE == 192
    layer = moe.SPECS[0]
    assert layer.flops({"num_tokens": 10, "topk": 2, "hidden_size": 64, "inter_size": 32}, "bfloat16") == 10 * 2 * 3 * 2 * 64 * 32
    adamw = all_specs()["adamw"]
    assert adamw.moved_bytes({"num_params": 1000}, "bfloat16") == 28_000


@pytest.mark.parametrize("name", sorted(all_specs()))
def test_every_shape_of_every_kernel_has_a_floor_and_fits_its_columns(name: str) -> None:
    spec = all_specs()[name]
    assert spec.shapes
    assert spec.checks
    assert set(spec.outputs)
    for dtype in spec.dtypes:
        for shape in spec.shapes:
            flops, moved = spec.flops(shape, dtype), spec.moved_bytes(shape, dtype)
            assert flops >= 0
            assert moved >= 0
            assert flops + moved > 0 or spec.family == "launch"
        assert all(spec.configs(shape, dtype) for shape in (*spec.shapes, *spec.checks, *spec.gpu_checks))
    for shape in spec.checks:
        assert max([int(v) for k, v in shape.items() if isinstance(v, int) and k in ("m", "n", "k", "seq_len", "kv_len")] or [0]) <= 256


def test_the_registry_holds_every_kernel_asked_for() -> None:
    wanted = {
        "gemm", "gemm_fp8_block", "gemm_int4", "cublas_gemm",
        "attention", "attention_varlen", "attention_backward", "chunked_prefill", "streaming_attention", "paged_decode", "mla_prefill",
        "mla_decode", "sparse_attention", "linear_attention", "gated_delta_rule", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn",
        "grouped_gemm", "moe_router", "moe_permute", "moe_layer",
        "rms_norm", "rope", "swiglu", "cross_entropy", "adamw",
        "kv_quantise", "kv_dequantise", "kv_quantise_fp8", "kv_dequantise_fp8",
        "device_copy", "host_copy_up", "host_copy_down", "host_copy_both", "launch_torch", "launch_triton",
    }  # fmt: skip
    assert wanted <= set(all_specs())


def test_candidates_are_unique_and_shrink_on_old_cards() -> None:
    new, old = candidates(90), candidates(80)
    assert len({p.key for p in new}) == len(new) > len(old)
    assert not any("fp8" in p.dtype for p in old)
