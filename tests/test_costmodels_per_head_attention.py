"""Decode attention that reads the cache for each query head: by hand, against shared reads, never under what its bytes take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.per_head_attention import per_head_decode_s, reads_per_head
from roofplan.costmodels.serving_attention import decode_attention_s
from roofplan.costmodels.serving_ops import serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import EnginePlan, serving_engine

H100 = serve_system(registry.cluster("h100-sxm", 1), serving_engine("trtllm-0.11"))
CLOCKED = 132 * registry.accelerator("h100-sxm").clock_hz


def one(batch: float, kv: float, heads: int, kv_heads: int, kv_dtype: str = "fp8") -> float:
    engine = replace(H100.engine, per_head_elements=16)
    price = per_head_decode_s(H100.roofline, engine, np.array([batch]), np.array([kv]), heads, kv_heads, 256, kv_dtype)
    return float(price[0])


def test_groups_of_four_take_as_long_as_heads_of_their_own() -> None:
    """64 sequences of 1,024 tokens, 32 heads of 256 elements: 537 million elements at 16 a clock and SM, whoever shares a key."""
    assert one(64, 1024, 32, 8) == pytest.approx(64 * 1024 * 32 * 256 / (16 * CLOCKED))
    assert one(64, 1024, 32, 16) == one(64, 1024, 32, 8)


def test_no_faster_than_the_cache_streams() -> None:
    """In 16 bits and with heads of their own the bytes bind: 2 x 537 MB at 3.35 TB/s take longer."""
    elements = 64 * 1024 * 32 * 256
    assert one(64, 1024, 32, 32, "bf16") > 2 * elements / 3.35e12 > one(64, 1024, 32, 8, "bf16")


def test_a_lone_sequence_fills_as_many_sms_as_it_has_heads() -> None:
    """32 heads, a block each, on 132 SMs; where heads are split over blocks the whole card works on them."""
    assert one(1, 4096, 32, 8) == pytest.approx(4096 * 256 / (16 * CLOCKED / 132))
    split = replace(H100.engine, per_head_elements=16, unsplit_heads=False)
    alone = per_head_decode_s(H100.roofline, split, np.array([1.0]), np.array([4096.0]), 32, 8, 256, "fp8")
    assert 32 * 4096 * 256 / (16 * CLOCKED) <= alone[0] < 0.3 * one(1, 4096, 32, 8)


def test_only_old_engines_and_groups_without_a_kernel() -> None:
    """Groups of 8 (Llama-2-70B) share reads in TensorRT-LLM 0.11, groups of 4 (Mistral) do not; later ones share all."""
    assert [reads_per_head(H100.engine, heads, 8) for heads in (8, 32, 64)] == [True, True, False]
    assert not reads_per_head(serving_engine("trtllm-0.15"), 32, 8)
    seqs = np.array([64.0])
    for name, slower in (("llama2-70b", False), ("mistral-7b", True)):
        model, plan = registry.model(name), EnginePlan(kv_dtype="fp8")
        old, new = (
            float(decode_attention_s(model, plan, replace(H100, engine=serving_engine(e)), seqs, 2048.0)[0])
            for e in ("trtllm-0.11", "trtllm")
        )
        assert (old > 1.5 * new) if slower else (old == new)


def test_engines_that_read_8_bit_caches_as_well_as_16_bit_ones() -> None:
    """512 sequences of 256 tokens on H100: the measured 8-bit kernel takes nearly the 16-bit one's time."""
    model, plan, seqs = registry.model("llama3.1-8b"), EnginePlan(kv_dtype="fp8"), np.array([512.0])
    fast, slow = serving_engine("trtllm-0.15"), serving_engine("trtllm")
    times = [float(decode_attention_s(model, plan, replace(H100, engine=e), seqs, 256.0)[0]) for e in (fast, slow)]
    half = float(decode_attention_s(model, EnginePlan(), replace(H100, engine=slow), seqs, 128.0)[0])
    assert times[0] == pytest.approx(half)
    assert 512 * 256 * 65536 / 3.35e12 < times[0] < 0.8 * times[1]
