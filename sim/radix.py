"""SGLang's radix cache: prompts as paths of one tree, locked while in use, whose least recently used leaf goes first and whole."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from .kvstore import PrefixStore, PromptBlocks
from .tiers import Tiers


class Node:
    """A run of blocks with one way in; ``users`` requests hold it, ``used`` is when a request last passed (a counter, not a time)."""

    __slots__ = ("children", "ids", "parent", "used", "users")

    def __init__(self, parent: Node | None, ids: Sequence[int], users: int = 0, used: int = 0) -> None:
        self.parent, self.ids, self.users, self.used = parent, ids, users, used
        self.children: dict[int, Node] = {}


class RadixCache(PrefixStore):
    """The tree, at the granularity of the trace's hash blocks (SGLang's own page is one token).

    Matching follows the edges; where a prompt leaves a node half way the node is split. Admission and departure mark the whole path as
    used now. Among leaves that no request holds the least recently used is dropped, all its blocks at once, then perhaps its parent.
    Source: Zheng et al., SGLang: Efficient Execution of Structured Language Model Programs, arXiv 2312.07104, section 3.
    """

    def __init__(self, blocks: PromptBlocks, tiers: Tiers | None = None) -> None:
        super().__init__(blocks, tiers)
        self.root = Node(None, ())
        self._clock = self._n_idle = self._n_pushed = 0
        self._leaves: list[tuple[int, int, Node]] = []

    def _find(self, ids: Sequence[int], skip: int) -> tuple[int, int]:
        node, found, shared = self.root, 0, -skip
        while found < len(ids):
            child = node.children.get(ids[found])
            if child is None:
                break
            same = _common(child.ids, ids, found)
            found += same
            shared += same if child.users else 0
            if same < len(child.ids):
                break
            node = child
        return found, shared

    def _hold(self, ids: Sequence[int], skip: int) -> None:
        self._clock += 1
        node, at = self.root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                child = node.children[ids[at]] = Node(node, ids[at:])
                self._n_idle += len(child.ids)
            same = _common(child.ids, ids, at)
            if same < len(child.ids):
                child = self._split(child, same)
            at += same
            child.used = self._clock
            if at > skip:
                if not child.users:
                    self._n_idle -= len(child.ids)
                child.users += 1
            node = child

    def _drop(self, ids: Sequence[int]) -> int:
        self._clock += 1
        node, at, shared = self.root, 0, 0
        while at < len(ids):
            node = node.children[ids[at]]
            at += len(node.ids)
            node.used = self._clock
            node.users -= 1
            if node.users:
                shared += len(node.ids)
            else:
                self._n_idle += len(node.ids)
        self._may_go(node)
        return shared

    def _trim(self, free: int) -> None:
        room = free // self.blocks.blocks_each
        while self._n_idle > room:
            used, _, leaf = heappop(self._leaves)
            parent = leaf.parent
            if parent is None or leaf.users or leaf.children or leaf.used != used:
                continue
            del parent.children[leaf.ids[0]]
            leaf.parent = None
            self._n_idle -= len(leaf.ids)
            self._version += 1
            if self.tiers is not None:
                for block in reversed(leaf.ids):
                    self.tiers.put(block)
            self._may_go(parent)

    def _may_go(self, node: Node) -> None:
        """Note a leaf that no request holds as one that may be dropped."""
        if node.parent is not None and not node.users and not node.children:
            self._n_pushed += 1
            heappush(self._leaves, (node.used, self._n_pushed, node))

    def _split(self, node: Node, at: int) -> Node:
        """Put the first ``at`` blocks of a node in one of their own above it; returns that."""
        assert node.parent is not None
        upper = Node(node.parent, node.ids[:at], node.users, node.used)
        node.parent.children[node.ids[0]] = upper
        node.parent, node.ids = upper, node.ids[at:]
        upper.children[node.ids[0]] = node
        return upper


def _common(edge: Sequence[int], ids: Sequence[int], at: int) -> int:
    """How many blocks of an edge ``ids`` follows from position ``at`` (the first is known to match)."""
    n = min(len(edge), len(ids) - at)
    if edge[:n] == ids[at : at + n]:
        return n
    same = 1
    while same < n and edge[same] == ids[at + same]:
        same += 1
    return same
