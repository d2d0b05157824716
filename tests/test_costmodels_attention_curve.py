"""Attention: pairs counted by brute force, floors by hand, trends that follow span, sharing of caches and windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.attention_curve import (
    AttentionWork,
    attention_floor_s,
    attention_work,
    causal_pairs,
    decode_coordinates,
    decode_trend_s,
    prefill_coordinates,
    prefill_trend_s,
)
from roofplan.scenarios import registry

H100 = registry.accelerator("h100-sxm")
PEAK = H100.bf16_flops_per_s
PREFILL = {"launch_s": 0.0, "compute_frac": 1.0, "memory_frac": 1.0, "small_head": 0.0, "sharpness": 4.0}
DECODE = {"launch_s": 0.0, "compute_frac": 1.0, "memory_frac": 1.0, "wave_s": 0.0, "per_key_s": 0.0, "serial_key_s": 0.0, "sharpness": 4.0}


def work(**changes: float) -> AttentionWork:
    given = {"batch": 1, "q": 4096, "kv": 4096, "heads": 32, "kv_heads": 8, "qk": 128, "v": 128, "window": 0, "kv_bytes": 2}
    return attention_work(**(given | changes), causal=True, peak=PEAK)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 50))
def test_pairs_by_brute_force(q: int, before: int, window: int) -> None:
    kv = q + before
    want = sum(1 for i in range(before, kv) for j in range(kv) if j <= i and (window == 0 or i - j < window))
    assert causal_pairs(q, kv, window) == want


def test_floor_by_hand() -> None:
    pairs = 4096 * 4097 / 2
    assert attention_floor_s(work(), H100) == pytest.approx(2 * 32 * pairs * 256 / PEAK)
    one = attention_floor_s(work(q=1, kv=100_000), H100)
    assert one == pytest.approx((2 * 32 * 256 + 2 * 100_000 * 8 * 256) / H100.hbm_bytes_per_s)


def test_latents_are_cached_once() -> None:
    latent = work(q=1, kv=1000, heads=128, kv_heads=1, qk=576, v=512)
    assert latent.kv_width == 576
    assert work().kv_width == 256


def test_long_prefill_reaches_its_efficiency() -> None:
    half = {**PREFILL, "compute_frac": 0.5}
    price = prefill_trend_s(work(q=131072, kv=131072), H100, half)
    assert price == pytest.approx(2 * attention_floor_s(work(q=131072, kv=131072), H100), rel=0.01)


def test_one_sequence_of_few_heads_waits_for_its_longest_tile() -> None:
    few = prefill_trend_s(work(heads=1, kv_heads=1, q=1024, kv=1024), H100, PREFILL)
    assert few > 10 * attention_floor_s(work(heads=1, kv_heads=1, q=1024, kv=1024), H100)


def test_decode_reads_the_cache_once_and_windows_cap_it() -> None:
    price = decode_trend_s(work(q=1, kv=65536, batch=16), H100, DECODE)
    assert price == pytest.approx(16 * 65536 * 8 * 256 * 2 / H100.hbm_bytes_per_s, rel=0.01)
    assert decode_trend_s(work(q=1, kv=65536, batch=16, window=1024), H100, DECODE) < price / 40
    assert decode_trend_s(work(q=1, kv=65536, batch=16, kv_bytes=1), H100, DECODE) < 0.6 * price


def test_unsplit_heads_stream_their_own_caches() -> None:
    serial = {**DECODE, "serial_key_s": 1e-8}
    alone = decode_trend_s(work(q=1, kv=10_000, heads=8, kv_heads=8), H100, serial)
    assert alone == pytest.approx(1e-4, rel=0.05)
    assert decode_trend_s(work(q=1, kv=10_000, heads=8, kv_heads=1), H100, serial) < 0.2 * alone


def test_coordinates() -> None:
    length, batch, kv_heads, group = prefill_coordinates(work(q=1000, kv=3000, batch=4))
    assert (length**2, batch, kv_heads, group) == (pytest.approx(1000 * 5000), 4, 8, 4)
    assert [float(x) for x in decode_coordinates(work(q=1, kv=77, batch=3))] == [77, 3, 8, 4]
    assert [float(x) for x in decode_coordinates(work(q=1, kv=77, batch=3), most_kv_heads=2)] == [77, 12, 2, 4]
    assert np.shape(prefill_coordinates(work())[0]) == ()


def test_a_block_that_sees_all_keys_is_measured_by_its_pairs() -> None:
    """Half of a ring's block: as many pairs as a causal prompt of the same queries, so the same length in the correction."""
    whole = prefill_coordinates(work(q=4096, kv=4096))[0]
    block = attention_work(batch=1, q=4096, kv=2048, heads=32, kv_heads=8, qk=128, v=128, window=0, kv_bytes=2, causal=False, peak=PEAK)
    assert prefill_coordinates(block)[0] == pytest.approx(whole)
