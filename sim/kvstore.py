"""The prefix cache of one replica: prompt blocks by hash, shared by reference count, the idle ones kept until their room is needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

from .tiers import Tiers


class PromptBlocks:
    """Hashes of the full prompt blocks of each request, ``id_tokens`` tokens each; one table serves all replicas.

    ``prompts`` are the prompt tokens as they arrived. A last, partial block cannot be shared. A block takes ``blocks_each`` of the pool.
    """

    def __init__(self, ids: Sequence[int], starts: Sequence[int], prompts: Sequence[int], id_tokens: int, block_tokens: int) -> None:
        self.ids, self.starts, self.prompts = ids, starts, prompts
        self.id_tokens, self.blocks_each = id_tokens, id_tokens // block_tokens

    def of(self, request: int) -> Sequence[int]:
        start = self.starts[request]
        full = min(self.starts[request + 1] - start, self.prompts[request] // self.id_tokens)
        return self.ids[start : start + full]


class PrefixStore(ABC):
    """What the engine asks of a prefix cache, whatever holds the blocks; ``tiers`` catch those that leave HBM.

    A block in use by several requests is held once. When the last of them leaves, its blocks stay, idle, until the pool's free blocks
    (which count the idle ones) no longer cover them. Blocks count as present from the admission of the prompt that computes them.
    Dropping waits until the store is next looked at: between two looks the free count only falls, so the outcome is the same.
    """

    def __init__(self, blocks: PromptBlocks, tiers: Tiers | None = None) -> None:
        self.blocks, self.tiers = blocks, tiers
        self.hit_tokens = self.prompt_tokens = 0
        self._version, self._seen_request, self._seen_version = 0, -1, -1
        self._match: tuple[int, int] = (0, 0)
        self._held: dict[int, int] = {}
        self._landing: dict[int, int] = {}

    def match(self, request: int, free: int) -> tuple[int, int]:
        """(tokens of the longest prefix in HBM, pool blocks of it that others already hold); ``free`` is the pool's free count.

        Of a request whose blocks were fetched from a tier only blocks past those count as held by others: its own are paid for.
        """
        self._trim(free)
        if request != self._seen_request or self._version != self._seen_version:
            found, shared = self._find(self.blocks.of(request), self._held.get(request, 0))
            self._match = (found * self.blocks.id_tokens, shared * self.blocks.blocks_each)
            self._seen_request, self._seen_version = request, self._version
        return self._match

    def take(self, request: int) -> None:
        """The request just matched is admitted: it uses its blocks, found or to be computed."""
        blocks = self.blocks
        prompt = blocks.prompts[request]
        self.hit_tokens += min(self._match[0], prompt - 1)
        self.prompt_tokens += prompt
        self._version += 1
        self._hold(blocks.of(request), self._held.pop(request, 0))

    def release(self, request: int, free: int) -> int:
        """The request leaves; ``free`` is the pool's free count before. Returns pool blocks of it that others still hold."""
        self._trim(free)
        self._version += 1
        return self._drop(self.blocks.of(request)) * self.blocks.blocks_each

    def peek(self, request: int, free: int) -> int:
        """Prompt tokens that need no computing here, in HBM or (consecutively after those) in a tier; changes nothing."""
        self._trim(free)
        ids = self.blocks.of(request)
        found = self._find(ids, 0)[0]
        while self.tiers is not None and found < len(ids) and self.tiers.find(ids[found]) is not None:
            found += 1
        return found * self.blocks.id_tokens

    def fetch(self, request: int, now: int, past: int, compute_ps: Callable[[int, int], int]) -> int:
        """Start to load what follows the match from the tiers; returns when (ps) all the request counts on is in HBM, 0 if it is.

        Run by run of blocks in one tier, a run is loaded when it lands before ``compute_ps(tokens, past)`` could compute it; the first run
        that is not ends the search. Blocks another request is loading are waited for. ``past`` tokens need neither.
        """
        tiers, id_tokens, ids = self.tiers, self.blocks.id_tokens, self.blocks.of(request)
        assert tiers is not None
        found, landing = self._match[0] // id_tokens, self._landing
        ready = max((landing.get(block, 0) for block in ids[:found]), default=0) if landing else 0
        at = found
        while at < len(ids):
            tier, end = tiers.find(ids[at]), at + 1
            if tier is None or (at + 1) * id_tokens <= past:
                break
            while end < len(ids) and tiers.find(ids[end]) is tier:
                end += 1
            lands = tier.lands_ps(end - at, now)
            if lands - now >= compute_ps((end - at) * id_tokens, at * id_tokens):
                break
            tier.load(ids[at:end], now)
            landing.update(dict.fromkeys(ids[at:end], lands))
            ready, at = max(ready, lands), end
        if ready <= now:
            return 0
        self._hold(ids[:at], 0)
        self._held[request] = at
        self._version += 1
        return ready

    def landed(self, now: int) -> None:
        """Forget what has landed by ``now``."""
        self._landing = {block: at for block, at in self._landing.items() if at > now}

    @abstractmethod
    def _find(self, ids: Sequence[int], skip: int) -> tuple[int, int]:
        """(blocks of the longest prefix held, how many of those from ``skip`` on are in use)."""

    @abstractmethod
    def _hold(self, ids: Sequence[int], skip: int) -> None:
        """One more user of ``ids[skip:]``, which are then all present."""

    @abstractmethod
    def _drop(self, ids: Sequence[int]) -> int:
        """One user fewer; returns how many of them are still in use."""

    @abstractmethod
    def _trim(self, free: int) -> None:
        """Let idle blocks go until the pool's free blocks cover the rest."""


class PrefixCache(PrefixStore):
    """Blocks by hash, as vLLM keeps them: idle ones go in the order they became idle, of one prompt the tail first."""

    def __init__(self, blocks: PromptBlocks, tiers: Tiers | None = None) -> None:
        super().__init__(blocks, tiers)
        self._each = blocks.blocks_each
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def _find(self, ids: Sequence[int], skip: int) -> tuple[int, int]:
        users, idle, found, shared = self._users, self._idle, 0, -skip
        for block in ids:
            if block in users:
                shared += 1
            elif block not in idle:
                break
            found += 1
        return found, shared

    def _hold(self, ids: Sequence[int], skip: int) -> None:
        users = self._users
        for block in ids[skip:] if skip else ids:
            if block in users:
                users[block] += 1
            else:
                self._idle.pop(block, None)
                users[block] = 1

    def _drop(self, ids: Sequence[int]) -> int:
        users, shared = self._users, 0
        for block in reversed(ids):
            users[block] -= 1
            if users[block]:
                shared += 1
            else:
                del users[block]
                self._idle[block] = None
        return shared

    def _trim(self, free: int) -> None:
        idle, each = self._idle, self._each
        while len(idle) * each > free:
            block = idle.popitem(last=False)[0]
            self._version += 1
            if self.tiers is not None:
                self.tiers.put(block)
