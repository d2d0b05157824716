"""Clients that wait for an answer before they ask again: a closed loop."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """``n_clients`` that each send one request, wait for its last token, think for ``think_s``, and send the next of the workload.

    The thinking time is that, or exponential of that mean where ``random_think`` is set. ``ramp_s`` spreads the clients' first requests
    evenly over that long. Raises BadInput.
    """

    n_clients: int
    think_s: float = 0.0
    random_think: bool = False
    ramp_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_clients <= 1_000_000:
            raise BadInput(f"n_clients={self.n_clients} must be from 1 to 1,000,000")
        for name in ("think_s", "ramp_s"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise BadInput(f"{name}={getattr(self, name):g} must be from 0 to 1e6")
