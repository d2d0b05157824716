"""How a model is served on a cluster: which replicas there are, what each does, and who sends requests where."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BadInput
from .serving import EnginePlan
from .serving_parts import Autoscale


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """``n_replicas`` replicas that run ``plan`` behind ``router``; with ``n_prefill`` more that only prefill, under ``prefill``'s plan.

    Without ``n_prefill`` every replica does both. ``prefill_sm_frac`` > 0 instead splits the SMs of every replica's GPUs between a
    prefill and a decode engine that share weights and KV (semi-PD). ``overlap_frac`` of a KV transfer hides behind the prompt's own
    computation (layer-wise sending); ``nic_per_gpu`` false makes all GPUs of a node share one adapter's bandwidth. With
    ``decode_answers`` the first token reaches the client from the decode replica, after the KV. With ``decode_first`` (SGLang) a decode
    replica sets room aside before the prompt is computed, looks for requests every ``poll_steps`` steps, and the attention ranks of a
    prefill replica keep queues of their own. With ``decode_in_turn`` requests go to decode replicas in turn, else to the least loaded with
    room. Raises BadInput.
    """

    plan: EnginePlan
    n_replicas: int = 1
    prefill: EnginePlan | None = None
    n_prefill: int = 0
    router: str = "round-robin"
    prefill_sm_frac: float = 0.0
    overlap_frac: float = 0.0
    decode_answers: bool = False
    decode_first: bool = False
    poll_steps: int = 1
    decode_in_turn: bool = False
    nic_per_gpu: bool = True
    autoscale: Autoscale | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n_replicas <= 100_000 or not 0 <= self.n_prefill <= 100_000:
            raise BadInput(f"replicas={self.n_replicas}, prefill={self.n_prefill}: from 1 and 0 to 100,000")
        if not 0 <= self.prefill_sm_frac < 1 or not 0 <= self.overlap_frac < 1:
            raise BadInput(
                f"prefill_sm_frac={self.prefill_sm_frac:g} and overlap_frac={self.overlap_frac:g} must each be from 0 to below 1"
            )
        if self.n_prefill and self.prefill_sm_frac:
            raise BadInput("prefill runs on replicas of its own or on a share of the SMs, not both; drop n_prefill or prefill_sm_frac")
        if (self.decode_first or self.decode_in_turn) and (not self.n_prefill or self.overlap_frac):
            raise BadInput("decode_first, decode_in_turn: need prefill replicas whose KV moves afterwards; give n_prefill, no overlap_frac")
        if self.poll_steps < 1:
            raise BadInput(f"poll_steps={self.poll_steps} must be at least 1")
        if self.prefill is not None and not self.n_prefill:
            raise BadInput("a plan for prefill replicas is given but n_prefill is 0")
        if self.autoscale is not None and (self.n_prefill or self.prefill_sm_frac):
            raise BadInput("autoscaling covers replicas that do both prefill and decode; drop n_prefill and prefill_sm_frac")

    @property
    def prefill_plan(self) -> EnginePlan:
        """Plan of the prefill replicas: as the others' unless it was given."""
        return self.prefill or self.plan

    @property
    def n_gpus(self) -> int:
        """GPUs of all replicas (at the most replicas an autoscaled pool may have)."""
        most = self.autoscale.max_replicas if self.autoscale else self.n_replicas
        return most * self.plan.n_gpus + self.n_prefill * self.prefill_plan.n_gpus
