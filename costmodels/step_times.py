"""Time of one serving step as tables of whole picoseconds, so that sums are exact in any order and stretches have a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

PS = 1_000_000_000_000
"""Picoseconds in a second: the tick of the serving simulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """``step = linear[tokens] + decode[n] + decode_slope[n]·kv_sum + Σ_chunks (prefill[c] + prefill_slope[c]·past) + shared``, in ps.

    ``linear`` is indexed by the tokens of the step (projections, FFN, messages, host time), ``decode`` by the decoding sequences (head,
    attention's fixed part), ``kv_sum`` counts the cached tokens all decodes read, their own included; ``prefill`` is attention of a
    chunk of ``c`` tokens after ``past``. ``swap`` is one KV block over the host link. Entry 0 of ``linear`` and ``prefill`` is 0.

    Under attention data parallelism ``linear`` is the step whose tokens lie evenly on ``ranks``; ``own`` is the part of it that each rank
    does on its own tokens, by their number. A prompt is one rank's: see ``uneven_ps``.

    ``shared = beside[n] + beside_slope[n]·kv_sum + n·idle[c]`` is what decodes cost more where one attention call serves them and prompts,
    the longest chunk of ``c`` tokens; none of it is negative. Tables left out are zeros.
    """

    linear: Sequence[int]
    decode: Sequence[int]
    decode_slope: Sequence[int]
    prefill: Sequence[int]
    prefill_slope: Sequence[int]
    swap: int = 0
    ranks: int = 1
    own: Sequence[int] = field(default_factory=list)
    beside: Sequence[int] = field(default_factory=list)
    beside_slope: Sequence[int] = field(default_factory=list)
    idle: Sequence[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, like in (("beside", self.decode), ("beside_slope", self.decode), ("idle", self.prefill)):
            if not getattr(self, name):
                object.__setattr__(self, name, [0] * len(like))

    def shared_ps(self, n_decodes: int, kv_sum: int, longest: int) -> int:
        """What ``n_decodes`` sequences cost more beside prompts, the longest chunk of ``longest`` tokens."""
        return self.beside[n_decodes] + self.beside_slope[n_decodes] * kv_sum + self.idle[longest] * n_decodes

    def step_ps(self, n_decodes: int, kv_sum: int, chunks: list[tuple[int, int]]) -> int:
        """One step: ``n_decodes`` sequences that read ``kv_sum`` cached tokens, and prompt chunks (tokens, past), even over the ranks."""
        tokens = n_decodes + sum(c for c, _ in chunks)
        attention = -(-sum(self.prefill[c] + self.prefill_slope[c] * past for c, past in chunks) // self.ranks)
        if n_decodes and chunks:
            attention += self.shared_ps(n_decodes, kv_sum, max(c for c, _ in chunks))
        return self.linear[tokens] + self.decode[n_decodes] + self.decode_slope[n_decodes] * kv_sum + attention

    def uneven_ps(self, decode_tokens: int, pieces: list[tuple[int, int]], waiting: int, rank_tokens: int) -> int:
        """What a step of prompts takes over ``linear`` and the sum of its ``pieces`` (tokens, attention ps): more or less, in ps.

        A prompt is computed on one rank, so the prompt tokens lie on as many ranks as have one, ``r = min(ranks, pieces + waiting)``. A
        step lasts as long as its busiest rank, which has ``max(tokens/r, longest piece)`` of them and its share of the decodes, and
        attention of ``max(sum/r, longest piece's)``. A piece longer than a rank's budget ``rank_tokens`` stands for the ranks of those that
        wait.
        """
        tokens = sum(c for c, _ in pieces)
        asked = sum(ps for _, ps in pieces)
        r = min(self.ranks, len(pieces) + waiting)
        share = -(-decode_tokens // self.ranks)
        busiest = share + max(-(-tokens // r), min(max(c for c, _ in pieces), rank_tokens))
        longest = max((ps for c, ps in pieces if c <= rank_tokens), default=0)
        more = self.own[busiest] - self.own[-(-(tokens + decode_tokens) // self.ranks)]
        return max(more, 0) + max(-(-asked // r), longest) - asked

    def alone_ps(self, tokens: int) -> int:
        """``linear`` of a step that holds one prompt's ``tokens`` and nothing else: one rank has them all."""
        if self.ranks == 1:
            return self.linear[tokens]
        return self.linear[tokens] + max(self.own[tokens] - self.own[-(-tokens // self.ranks)], 0)
