"""Correction tables: exact at nodes, multilinear between, held outside; equal to a plain reference on random tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.grid_curve import Axis, GridCurve

AXES = ((1.0, 2.0, 3.0, 16.0, 17.0, 4096.0), (1.0,), (32.0, 64.0, 768.0))


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[len(a) for a in AXES])


def reference(values: np.ndarray, point: tuple[float, ...]) -> float:
    """Multilinear interpolation written the slow way."""
    cells = []
    for nodes, x in zip(AXES, point, strict=True):
        at = np.log2(nodes)
        inside = min(max(np.log2(x), at[0]), at[-1])
        i = max(j for j in range(max(len(at) - 1, 1)) if at[j] <= inside)
        part = 0.0 if len(at) == 1 else (inside - at[i]) / (at[i + 1] - at[i])
        cells.append([(i, 1 - part), (i + 1, part)] if len(at) > 1 else [(0, 1.0)])
    return sum(float(values[tuple(i for i, _ in corner)]) * np.prod([w for _, w in corner]) for corner in itertools.product(*cells))


def test_exact_at_nodes() -> None:
    values = table()
    curve = GridCurve.of(AXES, values)
    for index in np.ndindex(values.shape):
        got = curve.log_factor(*(np.array(a[i]) for a, i in zip(AXES, index, strict=True)))
        assert got == pytest.approx(values[index], abs=1e-5)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e3), st.floats(1, 1e5)), st.integers(0, 3))
def test_equals_the_plain_reference(point: tuple[float, float, float], seed: int) -> None:
    values = table(seed)
    got = GridCurve.of(AXES, values).log_factor(*map(np.array, point))
    assert got == pytest.approx(reference(values, point), abs=2e-4)


def test_held_outside_and_broadcast() -> None:
    values = table()
    curve = GridCurve.of(AXES, values)
    got = curve.log_factor(np.array([[0.5], [1e9]]), np.array(5.0), np.array([1.0, 64.0]))
    assert got.shape == (2, 2)
    assert got == pytest.approx(np.array([[values[0, 0, 0], values[0, 0, 1]], [values[-1, 0, 0], values[-1, 0, 1]]]), abs=1e-5)


def test_constant_table_of_single_nodes() -> None:
    curve = GridCurve.of(((8.0,), (2.0,)), np.array([[0.25]]))
    assert curve.log_factor(np.arange(1.0, 4.0), np.array(1.0)) == pytest.approx([0.25] * 3)


def test_locate_never_leaves_its_cell() -> None:
    axis = Axis.of(AXES[0])
    x = np.linspace(-3, 20, 5000).astype(np.float32)
    cell, part = axis.locate(x)
    assert cell.min() >= 0
    assert cell.max() <= len(AXES[0]) - 2
    assert part.min() >= 0
    assert part.max() <= 1


def test_plain_numbers_slice_the_table() -> None:
    values = table(4)
    curve = GridCurve.of(AXES, values)
    x = np.array([0.3, 2.5, 17.0, 9999.0])
    for z in (1.0, 40.0, 64.0, 5000.0):
        sliced = curve.log_factor(x, np.array(1.0), np.array(z))
        assert sliced == pytest.approx(curve.log_factor(x, np.full(4, 1.0), np.full(4, z)), abs=1e-5)
        assert sliced == pytest.approx(curve.log_factor(x, np.array(1.0), np.array(z)), abs=0)
