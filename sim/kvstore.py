"""The prefix cache of one replica: prompt blocks by hash, shared by reference count, the idle ones kept until their room is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Prompt blocks of ``id_tokens`` tokens named by hash; each takes ``blocks_each`` blocks of the KV pool.

    A block in use by several requests is held once. When the last of them leaves, its blocks stay, idle, and are dropped oldest first
    as soon as the pool's free blocks (which count the idle ones) no longer cover them; of one prompt the tail goes first. Blocks count
    as present from the admission of the prompt that computes them. Dropping waits until the cache is next looked at: between two looks
    the free count only falls, so the outcome is the same.
    """

    def __init__(self, ids: Sequence[int], starts: Sequence[int], prompts: Sequence[int], id_tokens: int, block_tokens: int) -> None:
        self._ids, self._starts, self._prompts = ids, starts, list(prompts)
        self.id_tokens, self.blocks_each = id_tokens, id_tokens // block_tokens
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._found = self._shared = 0
        self.hit_tokens = self.prompt_tokens = 0

    def _blocks_of(self, request: int) -> Sequence[int]:
        """Hashes of the request's full prompt blocks (a last, partial one cannot be shared)."""
        start = self._starts[request]
        full = min(self._starts[request + 1] - start, self._prompts[request] // self.id_tokens)
        return self._ids[start : start + full]

    def match(self, request: int, free: int) -> tuple[int, int]:
        """(tokens of the longest cached prefix, pool blocks of it that others already hold); ``free`` is the pool's free count."""
        self._trim(free)
        users, idle, found, shared = self._users, self._idle, 0, 0
        for block in self._blocks_of(request):
            if block in users:
                shared += 1
            elif block not in idle:
                break
            found += 1
        self._found = found * self.id_tokens
        return self._found, shared * self.blocks_each

    def take(self, request: int) -> None:
        """The request just matched is admitted: it uses its blocks, found or to be computed."""
        self.hit_tokens += min(self._found, self._prompts[request] - 1)
        self.prompt_tokens += self._prompts[request]
        for block in self._blocks_of(request):
            if block in self._users:
                self._users[block] += 1
            else:
                self._idle.pop(block, None)
                self._users[block] = 1

    def release(self, request: int, free: int) -> int:
        """The request leaves; ``free`` is the pool's free count before. Returns pool blocks of it that others still hold."""
        self._trim(free)
        shared = 0
        for block in reversed(self._blocks_of(request)):
            self._users[block] -= 1
            if self._users[block]:
                shared += 1
            else:
                del self._users[block]
                self._idle[block] = None
        return shared * self.blocks_each

    def _trim(self, free: int) -> None:
        room = free // self.blocks_each
        while len(self._idle) > room:
            self._idle.popitem(last=False)
