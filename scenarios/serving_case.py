"""A published serving experiment as data: a model on a deployment, and the requests that were sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from .clients import Clients
from .deployment import Deployment
from .errors import BadInput
from .serving import EnginePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests of an experiment: how many, their mean lengths and how widely these spread (deviation over mean; 0: all alike).

    ``rate_per_s`` > 0 sends them as a Poisson process, ``clients`` in a closed loop; neither sends all at once. Raises BadInput.
    """

    n_requests: int = 1
    prompt_tokens: float = 1.0
    output_tokens: float = 1.0
    prompt_spread_frac: float = 0.0
    output_spread_frac: float = 0.0
    rate_per_s: float = 0.0
    clients: Clients | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_requests <= 10**6:
            raise BadInput(f"n_requests={self.n_requests} must be from 1 to 1,000,000")
        if self.rate_per_s and self.clients is not None:
            raise BadInput(f"rate_per_s={self.rate_per_s:g} and clients are both given; arrivals are one or the other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One side of a published serving comparison. ``change`` replaces fields of the registry's model, for the variants a paper made."""

    model: str
    gpu: str
    n_gpus: int = 1
    gpus_per_node: int = 0
    change: dict[str, int] = field(default_factory=dict)
    deployment: Deployment = field(default_factory=lambda: Deployment(plan=EnginePlan()))
    load: Load = field(default_factory=Load)
