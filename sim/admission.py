"""Which prompts the next step carries, in a replica that plays every step."""

from __future__ import annotations

from .batch import Batch
from .engine import Replica


class AdmittingReplica(Replica):
    """A ``Replica`` that puts each step's prompts together by themselves: pieces of them within a budget, or groups of their layers.

    ``seats`` are the most sequences of its ``batch``. ``wave`` are the prompts under way by layers as (request, tokens, past); of their
    ``groups`` of layers ``group`` were played.
    """

    batch: Batch
    n_layers: int
    seats: int
    wave: list[tuple[int, int, int]]
    groups: int
    group: int

    def _prompt_tokens(self) -> int:
        """Prompt tokens that the next step could carry, of the prompt under way and of those waiting (as far as the budget goes)."""
        if self.policy.layer_tokens:
            return 0
        total = self.rem if self.part >= 0 else 0
        for q in self.waiting:
            if total >= self.budget:
                break
            total += self.r.prompt[q]
        return total

    def _prompts(self, need: int, left: int, starved: bool) -> tuple[list[tuple[int, int]], list[int], int]:
        """Chunks of this step as (tokens, past), the requests whose prompt it completes, and time to fetch swapped KV."""
        chunks: list[tuple[int, int]] = []
        joins: list[int] = []
        extra = 0
        if self.part < 0 and not self.waiting and not self.landed:
            return chunks, joins, extra
        if self.part >= 0 and left > 0:
            c = min(self.rem, left)
            chunks.append((c, self.past))
            left -= c
            self.past += c
            self.rem -= c
            if not self.rem:
                joins.append(self.part)
                self.part = -1
        if self.part >= 0 or not self.open or starved:
            return chunks, joins, extra
        seats = self.seats - self.batch.n - self.pad
        while (self.waiting or self.landed) and left > 0 and len(joins) < seats:
            q = (self.landed or self.waiting)[0]
            hold, past = self._hold(q)
            if hold > self.free - need:
                break
            if self.store is not None and self.store.tiers is not None and not self.landed and self._fetch(q, past, self.now):
                self.waiting.popleft()
                self.free -= hold
                continue
            c = self.r.prompt[q] - past
            if c > left and not self.policy.chunked and joins:
                break
            extra += self._admit(q, hold)
            if c > left and self.policy.chunked:
                chunks.append((left, past))
                self.part, self.past, self.rem = q, past + left, c - left
                break
            chunks.append((c, past))
            left -= c
            joins.append(q)
        return chunks, joins, extra

    def _layer_group(self, need: int, starved: bool) -> tuple[list[tuple[int, int]], list[int], int]:
        """The next group of layers of the prompts under way, or the first of new ones; returns as ``_prompts``."""
        extra = 0
        if not self.wave:
            chunks, joins, extra = self._prompts(need, self.policy.layer_tokens, starved)
            self.wave = [(q, c, past) for q, (c, past) in zip(joins, chunks, strict=True)]
            self.groups = min(max(-(-sum(c for c, _ in chunks) // self.policy.layer_tokens), 1), self.n_layers)
            self.group = 0
        chunks = [(c, past) for _, c, past in self.wave]
        self.group += 1
        if self.group < self.groups:
            return chunks, [], extra
        joins = [q for q, _, _ in self.wave]
        self.wave = []
        return chunks, joins, extra

    def _hold(self, q: int) -> tuple[int, int]:
        """(blocks a waiting request would take, tokens of its prompt that need no computing)."""
        r = self.r
        size = r.prompt[q]
        hold = self._blocks(size + r.output[q] - 1 if self.policy.reserve_output else size)
        if self.store is None:
            return 0 if self.landed else hold, r.cached[q]
        hit, shared = self.store.match(q, self.free)
        return -shared if self.landed else hold - shared, max(r.cached[q], min(hit, size - 1))

    def _admit(self, q: int, hold: int) -> int:
        """Take a request off the queue; returns the time to fetch its KV if it was swapped out."""
        (self.landed or self.waiting).popleft()
        if self.store is not None:
            self.store.take(q)
        self.free -= hold
        if not self.r.cached[q]:
            return 0
        self.r.cached[q] = 0
        return self.r.swapped.pop(q, 0)
