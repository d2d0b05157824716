"""Builds the prefix cache of each replica: which kind, the tiers behind it, and which of them replicas share."""

from __future__ import annotations

from ..costmodels.arrays import as_integers
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan, ServeWorkload
from .kvstore import PrefixCache, PrefixStore, PromptBlocks
from .policies import Policy
from .radix import RadixCache
from .tiers import Tier, Tiers, TierUse


def prefix_stores(
    plan: EnginePlan, work: ServeWorkload, policy: Policy, block_tokens: int, kv_bytes_per_token: float, n: int
) -> list[PrefixStore | None]:
    """One prefix store a replica, or none where the plan has it off; ``kv_bytes_per_token`` are those of a whole replica.

    Tiers that are ``shared`` are one object behind all replicas. Raises BadInput when the workload has no block hashes to match, blocks do
    not fill them, a tier holds none, or two have one name.
    """
    if not plan.prefix_cache:
        return [None] * n
    if not len(work.block_starts):
        raise BadInput("the prefix cache is on, but the workload names no prompt blocks; use a trace with hash_ids or turn it off")
    if work.block_id_tokens % block_tokens:
        raise BadInput(f"block={block_tokens} does not divide the trace's hash blocks of {work.block_id_tokens} tokens")
    if len({spec.name for spec in plan.kv_tiers}) < len(plan.kv_tiers):
        raise BadInput(f"KV tiers {', '.join(spec.name for spec in plan.kv_tiers)}: give each a name of its own")
    ids, starts, prompts = map(as_integers, (work.block_ids, work.block_starts, work.prompt_tokens))
    blocks = PromptBlocks(ids, starts, prompts, work.block_id_tokens, block_tokens)
    kind, block_bytes = RadixCache if policy.radix else PrefixCache, kv_bytes_per_token * work.block_id_tokens
    shared = {spec.name: Tier(spec, block_bytes) for spec in plan.kv_tiers if spec.shared}
    stores: list[PrefixStore | None] = []
    for _ in range(n):
        tiers = Tiers(shared[spec.name] if spec.shared else Tier(spec, block_bytes) for spec in plan.kv_tiers)
        stores.append(kind(blocks, tiers if plan.kv_tiers else None))
    return stores


def tier_use(stores: list[PrefixStore]) -> tuple[TierUse, ...]:
    """Totals by tier over all replicas, HBM first: its hits are what the cache saved less what tiers loaded; a shared tier counts once."""
    if not stores:
        return ()
    id_tokens, found = stores[0].blocks.id_tokens, [store.tiers.all for store in stores if store.tiers is not None]
    uses = []
    for row in zip(*found, strict=True):
        each = [tier.use(id_tokens) for tier in dict.fromkeys(row)]
        sums = {name: sum(getattr(u, name) for u in each) for name in ("read_bytes", "write_bytes", "read_s", "write_s")}
        uses.append(TierUse(name=each[0].name, hit_tokens=sum(u.hit_tokens for u in each), **sums))
    hbm = sum(store.hit_tokens for store in stores) - sum(use.hit_tokens for use in uses)
    return (TierUse(name="hbm", hit_tokens=max(hbm, 0)), *uses)
