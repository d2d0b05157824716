"""The price of a collective inside one node, and of the all-to-all of expert parallelism: bytes on the wire over the link, plus hops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, soft_max


def wire_bytes(op: str, n_bytes: Array, n_ranks: Array) -> Array:
    """Bytes each rank must send inside a node: ``bytes`` for an all-reduce (the switch can add) and p2p, else ``(n−1)/n·bytes``."""
    if op in ("all_reduce", "p2p"):
        return np.where(n_ranks > 1, n_bytes, 0.0)
    return n_bytes * np.maximum(n_ranks - 1, 0) / np.maximum(n_ranks, 1)


def collective_trend_s(op: str, n_bytes: Array, n_ranks: Array, link_bytes_per_s: float | Array, c: Mapping[str, float]) -> Array:
    """Seconds inside a node: ``softmax(launch + hop_s·log2(n), bytes on the wire / (link · link_frac))``."""
    hops = np.log2(np.maximum(n_ranks, 2))
    wire = wire_bytes(op, n_bytes, n_ranks) / (link_bytes_per_s * c["link_frac"])
    return soft_max(c["launch_s"] + c["hop_s"] * hops, wire, c["sharpness"])


def collective_coordinates(n_bytes: Array, n_ranks: Array) -> tuple[Array, Array]:
    """Coordinates of the correction table: message bytes and ranks."""
    return np.maximum(n_bytes, 1), np.maximum(n_ranks, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """One dispatch or combine: ``tokens`` per rank of ``hidden`` elements, each to ``topk`` of ``experts`` on ``ep`` ranks."""

    tokens: Array
    hidden: Array
    topk: Array
    ep: Array
    experts: Array
    element_bytes: float

    @property
    def remote_bytes(self) -> Array:
        """Bytes a rank sends to others: a token crosses once to each rank that holds any of its experts.

        ``tokens · (ep − 1)·(1 − (1 − 1/ep)^topk) · hidden · element``: expected distinct ranks under uniform routing.
        """
        ranks = (self.ep - 1) * (1 - (1 - 1 / np.maximum(self.ep, 1)) ** self.topk)
        return self.tokens * ranks * self.hidden * self.element_bytes


def dispatch_trend_s(d: Dispatch, link_bytes_per_s: float | Array, c: Mapping[str, float]) -> Array:
    """Seconds: ``softmax(launch, tokens·token_s + bytes to other ranks / (link · link_frac))``."""
    moved = d.tokens * c["token_s"] + d.remote_bytes / (link_bytes_per_s * c["link_frac"])
    return soft_max(moved, np.full(np.shape(moved), c["launch_s"]), c["sharpness"])


def dispatch_coordinates(d: Dispatch) -> tuple[Array, Array, Array]:
    """Coordinates of the correction table: tokens, elements a token sends to other ranks, experts (some kernels pack by expert)."""
    return np.maximum(d.tokens, 1), np.maximum(d.remote_bytes / np.maximum(d.tokens * d.element_bytes, 1e-9), 1), np.maximum(d.experts, 1)


def dispatch_element_bytes(phase: str) -> float:
    """Bytes of one element on the wire: 1 (fp8) when dispatching, 2 (bf16) when combining."""
    return 1.0 if phase == "dispatch" else 2.0


def rising(table: Array, pieces: Array | NDArray[np.intp]) -> Array:
    """Each column made non-decreasing: neighbours that fall are pooled to their median, so one slow measurement moves nothing else.

    The isotonic regression of least absolute deviations, by pooling adjacent violators, in each run of equal ``pieces`` by itself.
    """
    out = np.empty_like(table)
    for column in range(table.shape[1]):
        cuts = np.nonzero(np.diff(pieces[:, column]))[0] + 1
        out[:, column] = np.concatenate([_rising(part) for part in np.split(table[:, column], cuts)])
    return out


def _rising(values: Array) -> Array:
    blocks: list[tuple[float, list[float]]] = []
    for value in values:
        pool = [float(value)]
        while blocks and blocks[-1][0] > median(pool):
            pool = blocks.pop()[1] + pool
        blocks.append((median(pool), pool))
    return np.concatenate([np.full(len(pool), level) for level, pool in blocks])
