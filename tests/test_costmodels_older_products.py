"""Products in the libraries of 2024: factors by hand, against Vidur's table, and on the engines of that time alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from roofplan.costmodels.older_products import FACTORS, ROWS, older_factor
from roofplan.costmodels.serving_ops import gemm_s, serve_system
from roofplan.scenarios import registry
from roofplan.scenarios.serving import serving_engine


def test_factors_by_hand() -> None:
    """A100: 0.937 up to 32 rows, 1.194 from 4,096 on, halfway between two nodes in octaves their mean; other cards are left alone."""
    assert older_factor("ampere", np.array([1.0, 32.0, 1e5])) == pytest.approx([0.937, 0.937, 1.194])
    assert older_factor("ampere", np.array([64 * 2**0.5])) == pytest.approx((0.972 + 1.004) / 2)
    assert np.array_equal(older_factor("ada", np.array([1.0, 1e4])), [1.0, 1.0])


def test_engines_of_their_time_and_16_bits_alone() -> None:
    """A product of 4,096 rows on A100 takes 1.194 times as long in vLLM 0.6 as in 0.19, in 16 bits; none takes less than its floor."""
    old, new = (serve_system(registry.cluster("a100-80gb-sxm", 1), serving_engine(e)) for e in ("vllm-0.6", "vllm"))
    rows = np.array([16.0, 4096.0])
    assert gemm_s(old, rows, 8192, 8192, "bf16") / gemm_s(new, rows, 8192, 8192, "bf16") == pytest.approx([0.937, 1.194])
    assert np.array_equal(gemm_s(old, rows, 8192, 8192, "int8"), gemm_s(new, rows, 8192, 8192, "int8"))
    close = replace(old, roofline=replace(old.roofline, gpu=replace(old.accelerator, hbm_bytes_per_s=1.5e12)))
    floor = close.roofline.gemm_floor_s(rows, 8192, 8192, "bf16")
    assert np.all(gemm_s(close, rows, 8192, 8192, "bf16") >= floor)


@pytest.mark.parametrize(("device", "card", "arch"), [("a100", "a100-80gb-sxm", "ampere"), ("h100", "h100-sxm", "hopper")])
def test_factors_are_medians_of_vidurs_table(data_dir, device: str, card: str, arch: str) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.read_csv(data_dir / "kernels" / "vidur_mlp.csv")
    v = table[table.device == device]
    shapes = {
        "attn_pre_proj_us": ((v.q_heads + 2 * v.kv_heads) * v.hidden / v.q_heads / v.tp, v.hidden),
        "attn_post_proj_us": (v.hidden, v.hidden / v.tp),
        "mlp_up_proj_us": (2 * v.ffn_hidden / v.tp, v.hidden),
        "mlp_down_proj_us": (v.hidden, v.ffn_hidden / v.tp),
    }
    each = [pd.DataFrame({"m": v.num_tokens, "n": n, "k": k, "us": v[column]}) for column, (n, k) in shapes.items()]
    d = pd.concat(each).dropna().astype(float)
    d = d[d.n * d.k * 2 > 30e6]
    roofline = serve_system(registry.cluster(card, 1), serving_engine("vllm")).roofline
    ratio = d.us * 1e-6 / roofline.gemm_s(d.m.to_numpy(), d.n.to_numpy(), d.k.to_numpy())
    low = [0.0, *(r / 2**0.5 for r in ROWS[1:])]
    high = [ROWS[0], *(r * 2**0.5 for r in ROWS[1:-1]), np.inf]
    found = [ratio[(d.m > a) & (d.m <= b)].median() for a, b in zip(low, high, strict=True)]
    assert found == pytest.approx(FACTORS[arch], abs=0.002)
