"""Fitting families: errors on rows not seen, floors kept, tables packed and unpacked, splits that leave out what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from roofplan.calibrate import curves
from roofplan.calibrate.fit import PARTS, Table, each_left_out, fit_family, holdout, left_out
from roofplan.calibrate.rows import families, gpus_of, load_tables
from roofplan.costmodels.gemm_curve import gemm_trend_s
from roofplan.scenarios import registry

H100 = registry.accelerator("h100-sxm")
TRUE = {
    "launch_s": 3e-6, "compute_frac": 0.8, "memory_frac": 0.85, "k_fill": 150.0, "narrow": 0.1, "split": 2.0, "spill": 0.02, "l2_frac": 1.0,
    "sharpness": 4.0,
}  # fmt: skip


def made_up(n: int = 1500) -> curves.Bound:
    """Products priced by a known trend times a smooth correction, with 1 % noise."""
    rng = np.random.default_rng(0)
    m, nn, k = (rng.choice(2.0 ** np.arange(5, 15), n) for _ in range(3))
    smooth = np.exp(0.05 * np.sin(np.log2(m)) + 0.03 * (np.log2(k) - 10) + rng.normal(size=n) * 0.01)
    seconds = gemm_trend_s(m, nn, k, "bf16", H100, TRUE) * smooth
    return curves.gemm("gemm.bf16", "bf16", {"m": m, "n": nn, "k": k, "seconds": seconds}, H100, "made up")


def test_recovers_a_known_surface() -> None:
    bound = made_up()
    error, at = left_out(bound, "rows")
    assert len(at) == pytest.approx(len(bound.seconds) / 4, rel=0.2)
    assert np.median(np.abs(error)) < 0.025
    beyond, _ = left_out(bound, "size")
    assert np.median(np.abs(beyond)) < 0.08


def test_predictions_keep_the_floor() -> None:
    bound = made_up(400)
    fitted = fit_family(bound, np.arange(400))
    assert np.all(fitted.predict(bound, np.arange(400)) >= bound.floor_s)


def test_one_seed_one_result() -> None:
    bound = made_up(300)
    one, two = (fit_family(bound, np.arange(300), seed=5) for _ in range(2))
    assert one.coefficients == two.coefficients
    assert np.array_equal(one.table.codes, two.table.codes)


def test_splits() -> None:
    bound = made_up()
    shapes = holdout(bound, "shapes", 0.25, 0)
    assert not set(bound.shapes[shapes]) & set(bound.shapes[~shapes])
    size = holdout(bound, "size", 0.25, 0)
    assert bound.size[size].min() == bound.size[~size].max() * 2 == 8192
    assert not np.array_equal(holdout(bound, "rows", 0.25, 0), holdout(bound, "rows", 0.25, 1))


def test_each_row_is_left_out_once() -> None:
    bound = made_up(120)
    error, at = each_left_out(bound, seed=1)
    assert at.tolist() == list(range(120))
    part = np.random.default_rng([1, 120]).permutation(120) % PARTS == 3
    unseen = fit_family(bound, np.nonzero(~part)[0], 1).predict(bound, np.nonzero(part)[0])
    assert np.array_equal(error[part], np.log(unseen / bound.seconds[part]))
    assert [len(x) for x in each_left_out(made_up(10))] == [0, 0]


def test_packing_wraps_and_unwraps() -> None:
    codes = np.array([[127, -127, 3], [-5, -5, 100]], np.int8)
    packed = Table(((1.0, 2.0), (1.0, 2.0, 4.0)), codes, 0.01).packed()
    assert np.array_equal(np.cumsum(packed.reshape(2, 3), axis=0, dtype=np.int8), codes)


def test_small_sample_of_real_rows() -> None:
    tables = load_tables(Path(__file__).parent / "data" / "kernels")
    for bound in families(tables, H100, gpus_of(tables)["h100-sxm"]):
        fitted = fit_family(bound, np.arange(len(bound.seconds)))
        error = fitted.predict(bound, np.arange(len(bound.seconds))) / bound.seconds - 1
        assert np.median(np.abs(error)) < 0.15, bound.key
