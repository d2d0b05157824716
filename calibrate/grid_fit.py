"""Fits a correction table to scattered residuals: multilinear least squares with a penalty on steps between neighbouring nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import Array
from ..scenarios.errors import BadInput

SHRINK = 1e-4
"""Pull of every node towards zero, so that a table far from data changes nothing."""

MIN_SPACING = 0.25
"""Octaves below which two nodes count no closer: nodes around a tile edge may differ sharply."""

DIRECT_CELLS = 3000
"""Tables up to this size are solved directly, larger ones by conjugate gradients."""

ITERATIONS = 4

OUTLIER = 0.05
"""Residual (in ln) beyond which a row loses weight."""


def scipy_sparse() -> Any:
    """The scipy.sparse module; BadInput with the cure if the ``calibrate`` extra is not installed."""
    try:
        import scipy.sparse
        import scipy.sparse.linalg
    except ImportError:
        raise BadInput("fitting needs scipy; install it with: pip install 'roofplan[calibrate]'") from None
    return scipy.sparse


def nodes_of(values: Array, min_octaves: float = 0.05) -> list[float]:
    """Node values of an axis: the distinct values measured, those within ``min_octaves`` of the one before left out."""
    kept: list[float] = []
    for value in np.unique(np.round(values, 6)):
        if not kept or np.log2(value / kept[-1]) > min_octaves:
            kept.append(float(value))
    return kept


def interpolation(axes: Sequence[Sequence[float]], coordinates: Sequence[Array]) -> Any:
    """Sparse matrix (points × cells) of the multilinear weights of ``GridCurve.log_factor``."""
    sparse = scipy_sparse()
    n = len(coordinates[0])
    flat, weight = np.zeros((1, n), np.int64), np.ones((1, n))
    for nodes, x in zip(axes, coordinates, strict=True):
        if len(nodes) == 1:
            continue
        at = np.log2(np.asarray(nodes))
        inside = np.clip(np.log2(x), at[0], at[-1])
        cell = np.clip(np.searchsorted(at, inside, side="right") - 1, 0, len(at) - 2)
        part = (inside - at[cell]) / (at[cell + 1] - at[cell])
        flat = np.concatenate([flat * len(at) + cell, flat * len(at) + cell + 1])
        weight = np.concatenate([weight * (1 - part), weight * part])
    rows = np.broadcast_to(np.arange(n), flat.shape)
    size = int(np.prod([len(a) for a in axes]))
    kept = weight > 0
    return sparse.csr_matrix((weight[kept], (rows[kept], flat[kept])), shape=(n, size))


def stiffness(axes: Sequence[Sequence[float]], strengths: Sequence[float], bends: Sequence[float]) -> Any:
    """Quadratic form over all lines of the table: ``Σ_axis strength·Σ (step)²/spacing + bend·Σ (change of slope)²·spacing³``."""
    sparse = scipy_sparse()
    total = sparse.identity(int(np.prod([len(a) for a in axes])), format="csr") * 0.0
    for k, (nodes, strength, bend) in enumerate(zip(axes, strengths, bends, strict=True)):
        spacing = np.maximum(np.diff(np.log2(np.asarray(nodes))), MIN_SPACING)
        line = sparse.csr_matrix((len(nodes), len(nodes)))
        if len(nodes) > 1 and strength:
            step = sparse.diags([-np.sqrt(strength / spacing), np.sqrt(strength / spacing)], [0, 1], shape=(len(nodes) - 1, len(nodes)))
            line = line + step.T @ step
        if len(nodes) > 2 and bend:
            before, after = spacing[:-1], spacing[1:]
            scale = np.sqrt(bend * (before + after) / 2)
            turn = sparse.diags(
                [scale / before, -scale * (1 / before + 1 / after), scale / after], [0, 1, 2], shape=(len(nodes) - 2, len(nodes))
            )
            line = line + turn.T @ turn
        form = sparse.identity(1)
        for j, other in enumerate(axes):
            form = sparse.kron(form, line if j == k else sparse.identity(len(other)), format="csr")
        total = total + form
    return total


def fit_table(
    axes: Sequence[Sequence[float]], coordinates: Sequence[Array], residuals: Array, strengths: Sequence[float], bends: Sequence[float]
) -> NDArray[np.float64]:
    """Table of ``ln(time/trend)`` over ``axes``: minimises ``Σ ρ(row misfit) + stiffness + SHRINK·Σ g²``, ρ losing weight past OUTLIER.

    The weights are re-estimated once. Shape ``(len(axis) …)``.
    """
    sparse = scipy_sparse()
    points = interpolation(axes, coordinates)
    penalty = stiffness(axes, strengths, bends) + SHRINK * sparse.identity(points.shape[1])
    weights, table = np.ones(len(residuals)), np.zeros(points.shape[1])
    for _ in range(ITERATIONS):
        weighted = sparse.diags(weights) @ points
        system = (points.T @ weighted + penalty).tocsr()
        if points.shape[1] <= DIRECT_CELLS:
            table = np.asarray(sparse.linalg.spsolve(system.tocsc(), weighted.T @ residuals))
        else:
            inverse = 1 / system.diagonal()
            precondition = sparse.linalg.LinearOperator(system.shape, lambda v, d=inverse: v * d)
            table, _ = sparse.linalg.cg(system, weighted.T @ residuals, x0=table, M=precondition, maxiter=300, rtol=1e-4)
        weights = 1 / np.sqrt(1 + np.square((residuals - points @ table) / OUTLIER))
    return table.reshape([len(a) for a in axes])
