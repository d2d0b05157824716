"""A correction table over log-spaced nodes: multilinear between nodes, held beyond them, evaluated as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


MAX_SLICES = 256
"""Slices of one curve kept for calls with the same plain numbers (a model's heads, a layer's width)."""


@dataclass(frozen=True, slots=True)
class GridCurve:
    """``values`` (over ``axes``) is ``ln(time / trend)`` at the nodes; ``corners`` are the flat offsets of a cell's corners."""

    axes: tuple[Axis, ...]
    values: Floats32
    corners: NDArray[np.int32]
    strides: tuple[int, ...]
    slices: dict[tuple[float, ...], GridCurve] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(axes: Sequence[Sequence[float]], values: NDArray[Any]) -> GridCurve:
        """A curve from node coordinates and the table of logs of shape ``(len(axis) for axis in axes)``."""
        return GridCurve._made(tuple(Axis.of(a) for a in axes), np.asarray(values, np.float32))

    @staticmethod
    def _made(axes: tuple[Axis, ...], values: Floats32) -> GridCurve:
        strides = [int(np.prod(values.shape[i + 1 :])) for i in range(values.ndim)]
        corners = np.zeros(1, np.int32)
        for axis, stride in zip(reversed(axes), reversed(strides), strict=True):
            if len(axis.nodes) > 1:
                corners = np.concatenate([corners, corners + stride]).astype(np.int32)
        return GridCurve(axes, np.ascontiguousarray(values), corners, tuple(strides))

    def last(self, axis: int) -> float:
        """The largest coordinate of an axis."""
        return float(2.0 ** self.axes[axis].nodes[-1])

    def log_factor(self, *coordinates: Array) -> Floats32:
        """``ln(time / trend)`` at each point; coordinates (positive, one array per axis) broadcast; edges hold beyond the nodes."""
        plain = tuple(float(x) if np.ndim(x) == 0 else 0.0 for x in coordinates)
        if any(plain) and not all(plain):
            arrays = [x for x, number in zip(coordinates, plain, strict=True) if not number]
            return self._slice(plain).log_factor(*arrays)
        base: Any = 0
        parts = []
        for axis, x, stride in zip(self.axes, coordinates, self.strides, strict=True):
            if len(axis.nodes) > 1:
                cell, part = axis.locate(np.log2(x, dtype=np.float32, casting="unsafe"))
                base = base + cell * np.int32(stride)
                parts.append(part)
        found = self.values.ravel().take(np.add.outer(self.corners, base))
        for part in parts:
            half = len(found) // 2
            found = found[:half] + (found[half:] - found[:half]) * part
        out: Floats32 = np.broadcast_to(found[0], np.broadcast_shapes(*(np.shape(x) for x in coordinates)))
        return out

    def _slice(self, plain: tuple[float, ...]) -> GridCurve:
        """The curve with some coordinates fixed (0: free), kept for the next call."""
        if plain not in self.slices:
            if len(self.slices) >= MAX_SLICES:
                self.slices.clear()
            table = self.values
            free: list[Axis] = []
            for i in reversed(range(len(plain))):
                if not plain[i]:
                    free.insert(0, self.axes[i])
                    continue
                cell, part = self.axes[i].locate(np.log2(np.float32(plain[i])))
                table = (
                    table.take(cell, axis=i)
                    + (table.take(np.minimum(cell + 1, table.shape[i] - 1), axis=i) - table.take(cell, axis=i)) * part
                )
            self.slices[plain] = GridCurve._made(tuple(free), table)
        return self.slices[plain]
