"""Fitting a correction to scattered residuals: recovers a smooth table, holds what it has not seen, ignores outliers."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.calibrate.grid_fit import fit_table, interpolation, nodes_of, stiffness
from roofplan.costmodels.grid_curve import GridCurve

AXES = [[float(2**i) for i in range(10)], [float(2**i) for i in range(6)]]


def truth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.1 * np.log2(x) - 0.02 * np.log2(y) * np.log2(x)


def points(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 2.0 ** rng.integers(0, 10, n), 2.0 ** rng.integers(0, 6, n)


def test_interpolation_agrees_with_the_curve() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(size=(10, 6))
    x, y = 2 ** rng.uniform(-1, 11, 200), 2 ** rng.uniform(-1, 7, 200)
    assert interpolation(AXES, (x, y)) @ table.ravel() == pytest.approx(GridCurve.of(AXES, table).log_factor(x, y), abs=1e-4)


def test_recovers_nodes_it_has_not_seen() -> None:
    x, y = points(150)
    table = fit_table(AXES, (x, y), truth(x, y), (0.01, 0.01), (0.0, 0.0))
    grid = np.meshgrid(*map(np.array, AXES), indexing="ij")
    assert np.abs(table - truth(*grid)).max() < 0.08


def test_one_outlier_moves_little() -> None:
    x, y = points(400)
    residual = truth(x, y)
    residual[7] += 3.0
    clean = fit_table(AXES, (x, y), truth(x, y), (0.02, 0.02), (0.0, 0.0))
    assert np.abs(fit_table(AXES, (x, y), residual, (0.02, 0.02), (0.0, 0.0)) - clean).max() < 0.15


def test_stiffness_by_hand() -> None:
    form = stiffness([[1.0, 2.0, 8.0]], (2.0,), (0.0,)).toarray()
    g = np.array([0.0, 1.0, 5.0])
    assert g @ form @ g == pytest.approx(2 * (1**2 / 1 + 4**2 / 2))
    bend = stiffness([[1.0, 2.0, 4.0]], (0.0,), (3.0,)).toarray()
    assert g @ bend @ g == pytest.approx(3 * (5 - 2 * 1 + 0) ** 2)


def test_nodes_drop_close_neighbours() -> None:
    assert nodes_of(np.array([128.0, 129.0, 64.0, 256.0, 128.0])) == [64, 128, 256]
