"""Time of one serving step as tables of whole picoseconds, so that sums are exact in any order and stretches have a closed form."""

from __future__ import annotations

from dataclasses import dataclass

PS = 1_000_000_000_000
"""Picoseconds in a second: the tick of the serving simulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """``step = linear[tokens] + decode[n] + decode_slope[n]·kv_sum + Σ_chunks (prefill[c] + prefill_slope[c]·past)``, all in ps.

    ``linear`` is indexed by the tokens of the step (projections, FFN, messages, host time), ``decode`` by the decoding sequences (head,
    attention's fixed part), ``kv_sum`` counts the cached tokens all decodes read, their own included; ``prefill`` is attention of a
    chunk of ``c`` tokens after ``past``. ``swap`` is one KV block over the host link. Entry 0 of ``linear`` and ``prefill`` is 0.
    """

    linear: list[int]
    decode: list[int]
    decode_slope: list[int]
    prefill: list[int]
    prefill_slope: list[int]
    swap: int = 0

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """One step: ``n_decodes`` sequences that read ``kv_sum`` cached tokens, and prompt chunks as (tokens, past)."""
        tokens = n_decodes + sum(c for c, _ in chunks)
        attention = sum(self.prefill[c] + self.prefill_slope[c] * past for c, past in chunks)
        return self.linear[tokens] + self.decode[n_decodes] + self.decode_slope[n_decodes] * kv_sum + attention
