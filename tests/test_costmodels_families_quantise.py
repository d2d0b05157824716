"""Bytes follow bits; FLOPs do not."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.quantise import quantise
from tiny_step import tiny_step


def test_bytes_follow_bits() -> None:
    after = quantise(tiny_step(), weight_bits=4.5, kv_bits=8, dtype="fp8")
    assert (after.weight_bytes, after.held_weight_bytes) == pytest.approx((56.25, 56.25))
    assert (after.kv_bytes, after.held_kv_bytes) == (50, 50)
    assert (after.linear_flops, after.dtype) == (1000, "fp8")


def test_sixteen_bits_change_nothing() -> None:
    assert quantise(tiny_step()) == tiny_step()
