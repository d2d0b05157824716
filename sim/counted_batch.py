"""The sequences that decode together, one token a step each: counters in place of columns, a step costs the same whatever their number."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from .batch import Batch

NEVER_ENDS = 1 << 80
NO_GUESSES: NDArray[np.int64] = np.zeros(0, np.int64)


class CountedBatch(Batch):
    """A ``Batch`` without guesses. ``next_end`` is the first step after which a sequence is complete.

    ``slot`` has each one's last step, in order of joining. ``grow[r]`` of them take a block in the steps that leave remainder ``r`` by
    ``block_tokens``; none does whose blocks were set aside when it joined (``reserved``).
    """

    def __init__(self, block_tokens: int, *, reserved: bool) -> None:
        self.n = self.kv = self.step = 0
        self.next_end = NEVER_ENDS
        self.slot: dict[int, int] = {}
        self.grow = [0] * block_tokens
        self._heap: list[tuple[int, int]] = []
        self._ends: dict[int, int] = {}
        self._block, self._reserved = block_tokens, reserved

    def growth(self, q: int) -> int:
        """As ``Batch.growth`` of one token."""
        return self.grow[(self.step + 1) % self._block]

    def advance(self, gamma: int, *, grow: bool) -> tuple[int, NDArray[np.int64], list[int]]:
        """As ``Batch.advance`` without guesses."""
        self.step += 1
        self.kv += self.n
        done = []
        while self._heap and self._heap[0][0] == self.step:
            done.append(heappop(self._heap)[1])
        self.next_end = self._heap[0][0] if self._heap else NEVER_ENDS
        return self.n, NO_GUESSES, done

    def join(self, q: int, length: int, last: int, blocks: int) -> None:
        """As ``Batch.join``."""
        end = self.step + last - length
        self.slot[q], self._ends[q] = end, last
        heappush(self._heap, (end, q))
        self.next_end = self._heap[0][0]
        if not self._reserved:
            self.grow[(end + 1 - last) % self._block] += 1
        self.n += 1
        self.kv += length

    def leave(self, q: int, *, back: bool = False) -> tuple[int, int]:
        """As ``Batch.leave``."""
        end, last = self.slot.pop(q), self._ends.pop(q)
        tokens = last - (end - self.step)
        if back:
            self._heap.remove((end, q))
            heapify(self._heap)
            self.next_end = self._heap[0][0] if self._heap else NEVER_ENDS
        if not self._reserved:
            self.grow[(end + 1 - last) % self._block] -= 1
        self.n -= 1
        self.kv -= tokens
        return tokens, -(-(last if self._reserved else tokens) // self._block)
