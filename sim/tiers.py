"""Slower homes of KV blocks that left HBM: host memory, NVMe, a remote store; each an LRU of its own with a link of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..costmodels.step_times import PS
from ..scenarios.errors import BadInput
from ..scenarios.serving_parts import KvTier


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUse:
    """What a tier did in a run: prompt tokens found there and loaded, bytes read and written, seconds its link read and wrote."""

    name: str
    hit_tokens: int
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0


class Tier:
    """One tier: block hashes, least recently used first, and the time its link is free to read again.

    A load of ``n`` blocks takes ``latency + n·block_bytes/rate`` after the loads before it have left the link. A block that is loaded also
    stays. Writes go the other way beside the reads: they are counted, never waited for. Raises BadInput when not one block fits.
    """

    def __init__(self, spec: KvTier, block_bytes: float) -> None:
        self.name, self.capacity = spec.name, int(spec.capacity_bytes // block_bytes)
        if not self.capacity:
            raise BadInput(
                f"KV tier {spec.name!r} of {spec.capacity_bytes:.3g} bytes holds no block of {block_bytes:.3g}; give it more or drop it"
            )
        self.held: OrderedDict[int, None] = OrderedDict()
        self.n_read = self.n_written = self.free_at = 0
        self._block_bytes, self._rate, self._latency_ps = block_bytes, spec.bytes_per_s, round(spec.latency_s * PS)

    def lands_ps(self, n: int, now: int) -> int:
        """When a load of ``n`` blocks asked for at ``now`` would be in HBM."""
        return max(now, self.free_at) + self._copy_ps(n) + self._latency_ps

    def load(self, blocks: Sequence[int], now: int) -> None:
        """Read these blocks, which the tier holds."""
        self.free_at = max(now, self.free_at) + self._copy_ps(len(blocks))
        self.n_read += len(blocks)
        for block in reversed(blocks):
            self.held.move_to_end(block)

    def use(self, id_tokens: int) -> TierUse:
        """Totals so far."""
        read, write = self.n_read * self._block_bytes, self.n_written * self._block_bytes
        return TierUse(
            name=self.name,
            hit_tokens=self.n_read * id_tokens,
            read_bytes=read,
            write_bytes=write,
            read_s=read / self._rate,
            write_s=write / self._rate,
        )

    def _copy_ps(self, n: int) -> int:
        return round(n * self._block_bytes / self._rate * PS)


class Tiers:
    """The tiers behind one replica's HBM, fastest first; some may be the same object as another replica's."""

    def __init__(self, tiers: Iterable[Tier]) -> None:
        self.all = tuple(tiers)

    def find(self, block: int) -> Tier | None:
        """The fastest tier that holds the block."""
        for tier in self.all:
            if block in tier.held:
                return tier
        return None

    def put(self, block: int) -> None:
        """A block left HBM: the first tier takes it, what that no longer has room for goes one further, the last tier's is lost."""
        for tier in self.all:
            if block in tier.held:
                tier.held.move_to_end(block)
                return
            tier.held[block] = None
            tier.n_written += 1
            if len(tier.held) <= tier.capacity:
                return
            block = tier.held.popitem(last=False)[0]
