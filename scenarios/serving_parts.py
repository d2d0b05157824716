"""Parts an engine plan may carry: speculation, tiers of KV memory, attention apart from FFN, and how a pool of replicas grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import BadInput

Method = Literal["chain", "tree", "mtp"]
METHODS = ("chain", "tree", "mtp")
CONTROLLERS = ("fixed", "goodput")


def _within(**limits: tuple[float, float, float]) -> None:
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise BadInput(f"{name}={value:g} must be from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Guess up to ``draft_tokens`` (γ) tokens a step with a cheap draft, check them with the model in one pass.

    ``accept_frac`` is the chance that one guess is accepted given those before it were; each request draws its own from a Beta of this
    mean and of standard deviation ``accept_spread_frac``. A ``tree`` offers ``tree_width`` candidates a depth. ``mtp`` drafts with the
    model's own extra heads. Drafting one token costs ``draft_frac`` of a one-token step of the model, or what ``draft_model`` costs where
    it is named. ``gamma_by_batch`` holds (largest batch, γ) rows, vLLM's ``num_speculative_tokens_per_batch_size``; batches over the
    last are not speculated for. ``controller`` ``goodput`` chooses γ each step as the most accepted tokens a second. Raises BadInput.
    """

    method: Method = "chain"
    draft_tokens: int = 3
    tree_width: int = 1
    accept_frac: float = 0.7
    accept_spread_frac: float = 0.0
    draft_frac: float = 0.05
    draft_model: str = ""
    controller: str = "fixed"
    gamma_by_batch: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"speculation method={self.method!r} is not known; legal: {', '.join(METHODS)}")
        if self.controller not in CONTROLLERS:
            raise BadInput(f"speculation controller={self.controller!r} is not known; legal: {', '.join(CONTROLLERS)}")
        _within(
            draft_tokens=(self.draft_tokens, 1, 64),
            tree_width=(self.tree_width, 1, 64),
            accept_frac=(self.accept_frac, 0, 1),
            draft_frac=(self.draft_frac, 0, 1),
        )
        if not 0 <= self.accept_spread_frac**2 <= self.accept_frac * (1 - self.accept_frac):
            raise BadInput(
                f"accept_spread_frac={self.accept_spread_frac:g} must be from 0 to sqrt(a·(1-a)) = "
                f"{(self.accept_frac * (1 - self.accept_frac)) ** 0.5:.3g} for accept_frac={self.accept_frac:g}"
            )
        batches = [batch for batch, _ in self.gamma_by_batch]
        if batches != sorted(set(batches)) or any(not 0 <= gamma <= 64 or batch < 1 for batch, gamma in self.gamma_by_batch):
            raise BadInput(f"gamma_by_batch={self.gamma_by_batch} must hold rising batch sizes from 1, each with 0 to 64 draft tokens")

    @property
    def most_checked(self) -> int:
        """Most tokens one sequence sends through the model in a step: its own and ``γ``, or ``γ·width`` of a tree."""
        most = max([gamma for _, gamma in self.gamma_by_batch] or [self.draft_tokens])
        return 1 + most * (self.tree_width if self.method == "tree" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTier:
    """A slower home for KV blocks that left HBM: capacity, read and write rate, latency; ``shared`` by all replicas or one each.

    Capacity and rates are of one replica (of the whole cluster when ``shared``). Raises BadInput.
    """

    name: str
    capacity_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    shared: bool = False

    def __post_init__(self) -> None:
        _within(capacity_bytes=(self.capacity_bytes, 1, 1e18), bytes_per_s=(self.bytes_per_s, 1, 1e15), latency_s=(self.latency_s, 0, 60))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFfnSplit:
    """FFN (and experts) on ``n_ffn_gpus`` GPUs of their own, ``micro_batches`` in flight between them and attention's. Raises BadInput."""

    n_ffn_gpus: int
    micro_batches: int = 3

    def __post_init__(self) -> None:
        _within(n_ffn_gpus=(self.n_ffn_gpus, 1, 4096), micro_batches=(self.micro_batches, 1, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale:
    """A pool between ``min_replicas`` and ``max_replicas``: every ``interval_s`` it aims at ``target_requests`` outstanding a replica.

    A new replica serves ``provision_s`` after it was asked for (machine, weights, graphs); one is let go, once idle, after the pool was
    over target for ``cooldown_s``. Raises BadInput.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    target_requests: int = 64
    interval_s: float = 15.0
    provision_s: float = 180.0
    cooldown_s: float = 300.0

    def __post_init__(self) -> None:
        _within(
            min_replicas=(self.min_replicas, 1, 10_000),
            max_replicas=(self.max_replicas, self.min_replicas, 10_000),
            target_requests=(self.target_requests, 1, 1_000_000),
            interval_s=(self.interval_s, 1e-3, 1e6),
            provision_s=(self.provision_s, 0, 1e6),
            cooldown_s=(self.cooldown_s, 0, 1e6),
        )
