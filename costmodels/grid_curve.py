"""A correction table over log-spaced nodes: multilinear between nodes, held beyond them, evaluated as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array

Floats32 = NDArray[np.float32]
BINS_PER_OCTAVE = 32
"""Resolution of the look-up from a coordinate to its cell; nodes of one axis must differ by more than one bin."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Nodes of one axis (log2 of the coordinate), with a look-up table from fine bins to cells and each cell's inverse width."""

    nodes: Floats32
    cells: NDArray[np.int32]
    inverse: Floats32

    @staticmethod
    def of(values: Sequence[float]) -> Axis:
        """The axis with nodes at ``values`` (ascending, positive); one node means the axis is constant."""
        nodes = np.log2(np.asarray(values, np.float64))
        n_bins = int((nodes[-1] - nodes[0]) * BINS_PER_OCTAVE) + 1
        edges = nodes[0] + (np.arange(n_bins) + 0.5) / BINS_PER_OCTAVE
        cells = np.clip(np.searchsorted(nodes, edges, side="right") - 1, 0, max(len(nodes) - 2, 0))
        widths = np.diff(nodes) if len(nodes) > 1 else np.ones(1)
        return Axis(nodes.astype(np.float32), cells.astype(np.int32), (1 / widths).astype(np.float32))

    def locate(self, x: Floats32) -> tuple[NDArray[np.int32], Floats32]:
        """Cell and position in it (0..1) of each coordinate ``x`` (log2), clamped to the axis."""
        first, last = self.nodes[0], self.nodes[-1]
        x = np.minimum(np.maximum(x, first), last)
        cell = self.cells.take(((x - first) * np.float32(BINS_PER_OCTAVE)).astype(np.int32), mode="clip")
        part = (x - self.nodes.take(cell)) * self.inverse.take(cell)
        return cell, np.minimum(np.maximum(part, np.float32(0)), np.float32(1))


@dataclass(frozen=True, slots=True)
class GridCurve:
    """``values`` (flat, row-major over ``axes``) is ``ln(time / trend)`` at the nodes."""

    axes: tuple[Axis, ...]
    values: Floats32
    corners: NDArray[np.int32]
    strides: tuple[int, ...]

    @staticmethod
    def of(axes: Sequence[Sequence[float]], values: NDArray[Any]) -> GridCurve:
        """A curve from node coordinates and the table of logs of shape ``(len(axis) for axis in axes)``. Single-node axes drop out."""
        kept = [i for i, a in enumerate(axes) if len(a) > 1]
        shape = [len(axes[i]) for i in kept]
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        corners = np.zeros(1, np.int32)
        for stride in reversed(strides):
            corners = np.concatenate([corners, corners + stride]).astype(np.int32)
        made = tuple(Axis.of(a) for a in axes)
        return GridCurve(made, np.ascontiguousarray(values, np.float32).ravel(), corners, tuple(strides))

    def log_factor(self, *coordinates: Array) -> Floats32:
        """``ln(time / trend)`` at each point; coordinates (positive, one array per axis) broadcast; edges hold beyond the nodes."""
        used = [(axis, x) for axis, x in zip(self.axes, coordinates, strict=True) if len(axis.nodes) > 1]
        shape = np.broadcast_shapes(*(np.shape(x) for x in coordinates))
        base: Any = 0
        parts = []
        for (axis, x), stride in zip(used, self.strides, strict=True):
            cell, part = axis.locate(np.log2(x, dtype=np.float32, casting="unsafe"))
            base = base + cell * np.int32(stride)
            parts.append(part)
        found = self.values.take(np.add.outer(self.corners, base))
        for part in parts:
            half = len(found) // 2
            found = found[:half] + (found[half:] - found[:half]) * part
        out: Floats32 = np.broadcast_to(found[0], shape)
        return out
