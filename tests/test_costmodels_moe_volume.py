"""All-to-all bytes, narrow exchanges and pyramids of experts, computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.costmodels import moe_volume as v


def test_bytes_by_hand() -> None:
    """10 tokens of width 4 to 2 experts each in 3 layers over 5 ranks: 4 messages of 10*4*2*3 numbers of 2 bytes, 4/5 of which leave."""
    assert v.all_to_all_bytes(10, 4, 2, 3, 5) == pytest.approx(4 * 2 * 10 * 4 * 2 * 3 * 4 / 5)
    assert v.all_to_all_bytes(10, 4, 2, 3, 1) == 0


@given(st.floats(0.05, 1), st.integers(1, 8))
def test_volume_is_linear_in_width_and_experts(scale: float, top_k: int) -> None:
    whole = v.all_to_all_bytes(4096, 2048, 1, 24, 32)
    assert v.all_to_all_bytes(4096, 2048, top_k, 24, 32, dim_scale=scale) == pytest.approx(top_k * scale * whole)


def test_narrow_projections_by_hand() -> None:
    """Two h x h/4 matrices a layer: 2 * 24 * 2048 * 512 = 50.3 M, 6 FLOPs each per token."""
    assert v.narrow_params(2048, 24, dim_scale=0.25) == 2 * 24 * 2048 * 512
    assert v.narrow_flops(10, 2048, 24, dim_scale=0.25) == 6 * 10 * 2 * 24 * 2048 * 512


def test_pyramid_by_hand() -> None:
    """h = 10: an FFN is 800. Experts 4 and 8 in place of one each: 3 + 7 = 10 more; two more when the dense FFNs stay."""
    assert v.pyramid_params(1000, 10, [4, 8]) == 1000 + 10 * 800
    assert v.pyramid_params(1000, 10, [4, 8], residual=True) == 1000 + 12 * 800
