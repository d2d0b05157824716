"""Prefix caches and KV tiers written the slow way, over lists and paths: the oracles of the fast ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from roofplan.costmodels.step_times import PS


class NaiveLru:
    """Blocks in use with their number of users, and idle ones in the order they became idle."""

    def __init__(self) -> None:
        self.users: dict[int, int] = {}
        self.idle: list[int] = []

    def find(self, ids: list[int], skip: int) -> tuple[int, int]:
        found = 0
        while found < len(ids) and (ids[found] in self.users or ids[found] in self.idle):
            found += 1
        return found, sum(h in self.users for h in ids[skip:found])

    def hold(self, ids: list[int], skip: int) -> None:
        for h in ids[skip:]:
            self.users[h] = self.users.get(h, 0) + 1
            if h in self.idle:
                self.idle.remove(h)

    def drop(self, ids: list[int]) -> int:
        for h in reversed(ids):
            self.users[h] -= 1
            if not self.users[h]:
                del self.users[h]
                self.idle.append(h)
        return sum(h in self.users for h in ids)

    def n_used(self) -> int:
        return len(self.users)

    def n_idle(self) -> int:
        return len(self.idle)

    def shrink(self, room: int) -> list[int]:
        """Drop idle blocks down to ``room``; returns them in order."""
        gone = []
        while len(self.idle) > room:
            gone.append(self.idle.pop(0))
        return gone


Path = tuple[int, ...]


class NaiveRadix:
    """Every cached block under the path that leads to it, with its users and last use, and the paths at which a run of blocks ends."""

    def __init__(self) -> None:
        self.users: dict[Path, int] = {}
        self.used: dict[Path, int] = {}
        self.ends: set[Path] = set()
        self.clock = 0

    def find(self, ids: list[int], skip: int) -> tuple[int, int]:
        found = 0
        while found < len(ids) and tuple(ids[: found + 1]) in self.users:
            found += 1
        return found, sum(self.users[tuple(ids[: i + 1])] > 0 for i in range(skip, found))

    def hold(self, ids: list[int], skip: int) -> None:
        self.clock += 1
        if not ids:
            return
        self.ends |= {tuple(ids[: self.find(ids, 0)[0]]), tuple(ids)} - {()}
        for i in range(len(ids)):
            path = tuple(ids[: i + 1])
            self.users[path] = self.users.get(path, 0) + (i >= skip)
            self.used[path] = self.clock

    def drop(self, ids: list[int]) -> int:
        self.clock += 1
        for i in range(len(ids)):
            self.users[tuple(ids[: i + 1])] -= 1
            self.used[tuple(ids[: i + 1])] = self.clock
        return sum(self.users[tuple(ids[: i + 1])] > 0 for i in range(len(ids)))

    def n_used(self) -> int:
        return sum(n > 0 for n in self.users.values())

    def n_idle(self) -> int:
        return sum(n == 0 for n in self.users.values())

    def shrink(self, room: int) -> list[int]:
        gone = []
        while self.n_idle() > room:
            leaves = [p for p, n in self.users.items() if not n and not any(q[:-1] == p for q in self.users)]
            path = min(leaves, key=lambda p: self.used[p])
            first = True
            while path and (first or path not in self.ends):
                first = False
                gone.append(path[-1])
                self.ends.discard(path)
                del self.users[path], self.used[path]
                path = path[:-1]
        return gone


@dataclass
class NaiveTier:
    """A list of blocks, least recently used first, behind a link that carries one load after another."""

    capacity: int
    block_bytes: float
    bytes_per_s: float
    latency_s: float
    held: list[int] = field(default_factory=list)
    link_free_at: int = 0
    n_read: int = 0
    n_written: int = 0

    def copy_ps(self, n: int) -> int:
        return round(n * self.block_bytes / self.bytes_per_s * PS)

    def lands(self, n: int, now: int) -> int:
        return max(now, self.link_free_at) + self.copy_ps(n) + round(self.latency_s * PS)

    def load(self, blocks: list[int], now: int) -> None:
        self.link_free_at = max(now, self.link_free_at) + self.copy_ps(len(blocks))
        self.n_read += len(blocks)
        for block in reversed(blocks):
            self.held.remove(block)
            self.held.append(block)


def put(tiers: list[NaiveTier], block: int) -> None:
    """A block that left HBM goes to the first tier, what that has no room for to the next."""
    if not tiers:
        return
    first = tiers[0]
    if block in first.held:
        first.held.remove(block)
        first.held.append(block)
        return
    first.held.append(block)
    first.n_written += 1
    if len(first.held) > first.capacity:
        put(tiers[1:], first.held.pop(0))


def find(tiers: list[NaiveTier], block: int) -> NaiveTier | None:
    return next((tier for tier in tiers if block in tier.held), None)
