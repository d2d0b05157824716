"""What a replica that plays every step asks of its step times."""

from __future__ import annotations

from typing import Protocol


class StepPrice(Protocol):
    """Step times of any shape: whole picoseconds of a step, and of one KV block over the host link."""

    swap: int

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """``n_decodes`` sequences that read ``kv_sum`` cached tokens, and prompt chunks as (tokens, past)."""

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest step it can price."""
