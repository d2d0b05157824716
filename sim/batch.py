"""The sequences that decode together, as columns of arrays: one step of all costs a dozen array operations, whatever their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .speculate import FIRST_STEPS, Acceptance

ROWS = FIRST_STEPS
"""Steps for which the draws of a sequence are prepared at once."""


class Batch:
    """At most ``seats`` decoding sequences that hold ``kv`` tokens in ``blocks`` KV blocks of ``block_tokens`` together.

    ``step`` counts decode steps. A sequence that joins grows to its last length, at which its answer is complete; with ``acceptance`` it
    gains, each step, one token and the guesses that were right.
    """

    def __init__(self, seats: int, block_tokens: int, acceptance: Acceptance | None = None) -> None:
        self.n = self.kv = self.blocks = self.step = 0
        self.slot: dict[int, int] = {}  # request -> column, in order of joining
        self._round_up = block_tokens - 1
        self._block, self._shift = block_tokens, block_tokens.bit_length() - 1 if block_tokens & (block_tokens - 1) == 0 else -1
        self._acceptance = acceptance
        self._who, self._length, self._last, self._full, self._has, self._began = np.zeros((6, seats), np.int64)
        self._gains = np.ones((ROWS, seats), np.int64)
        self._target, self._target_blocks = self._has[:0], 0
        self._asked = self._most = 0
        self._decoded: dict[int, int] = {}

    def growth(self, q: int) -> int:
        """Blocks lacking before every sequence can hold ``q`` tokens more, none past its last length; ``advance`` takes them."""
        n, self._asked = self.n, q
        if not n:
            self._target, self._target_blocks = self._has[:0], 0
            return 0
        held: NDArray[np.int64] = self._length[:n] + (q + self._round_up)
        np.minimum(held, self._full[:n], out=held)
        if self._shift >= 0:
            held >>= self._shift
        else:
            held //= self._block
        if q < self._most:  # some may hold room that earlier, longer guesses took
            np.maximum(held, self._has[:n], out=held)
        self._target, self._target_blocks = held, int(np.add.reduce(held))
        return self._target_blocks - self.blocks

    def advance(self, gamma: int, *, grow: bool) -> tuple[int, NDArray[np.int64], list[int]]:
        """One decode step with ``gamma`` guesses: (tokens gained, guesses right in a row + 1, requests complete, in order of id).

        ``grow``: the blocks of the last ``growth`` are taken.
        """
        self.step += 1
        n, row = self.n, self.step % ROWS
        if self._acceptance is not None and not row:
            self._draw(0, n, self.step)
        length, last, gains = self._length[:n], self._last[:n], self._gains[row, :n]
        if gamma:
            length += np.minimum(gains, gamma + 1)
            np.minimum(length, last, out=length)
        else:
            length += 1
        if grow:
            self._has[:n], self.blocks = self._target, self._target_blocks
            self._most = max(self._most, self._asked)
        before, self.kv = self.kv, int(np.add.reduce(length))
        done = length == last
        if not np.count_nonzero(done):
            return self.kv - before, gains, []
        return self.kv - before, gains, sorted(self._who[:n][done].tolist())

    def join(self, q: int, length: int, last: int, blocks: int) -> None:
        """A sequence of ``length`` tokens decodes from the next step on, until it holds ``last``."""
        i = self.n
        self.slot[q], self._who[i] = i, q
        self._length[i], self._last[i], self._full[i], self._has[i] = length, last, last + self._round_up, blocks
        self.n, self.kv, self.blocks = i + 1, self.kv + length, self.blocks + blocks
        if self._acceptance is not None:
            before, row = self._decoded.pop(q, 0), (self.step + 1) % ROWS
            self._began[i] = self.step + 1 - before
            if before:
                self._draw(i, i + 1, self.step + 1)
            else:
                self._gains[row:, i] = self._acceptance.first_runs(q)[: ROWS - row] + 1

    def leave(self, q: int, *, back: bool = False) -> tuple[int, int]:
        """Take a sequence out, for good unless ``back``; returns (tokens, blocks) it holds. The last one takes its column."""
        i, end = self.slot.pop(q), self.n - 1
        tokens, blocks = int(self._length[i]), int(self._has[i])
        self.n, self.kv, self.blocks = end, self.kv - tokens, self.blocks - blocks
        if back and self._acceptance is not None:
            self._decoded[q] = self.step + 1 - int(self._began[i])
        if i != end:
            self.slot[int(self._who[end])] = i
            for column in (self._who, self._length, self._last, self._full, self._has, self._began):
                column[i] = column[end]
            if self._acceptance is not None:
                self._gains[:, i] = self._gains[:, end]
        if not end:
            self._most = 0
        return tokens, blocks

    def _draw(self, first: int, end: int, step: int) -> None:
        """Draws of columns ``first`` to ``end`` for decode steps from ``step`` to the end of the table."""
        assert self._acceptance is not None
        steps = np.arange(step, (step // ROWS + 1) * ROWS)[:, None]
        self._gains[step % ROWS :, first:end] = self._acceptance.runs(self._who[first:end], steps - self._began[first:end]) + 1
