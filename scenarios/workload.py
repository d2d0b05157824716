"""What is asked for: the training step's batch and sequence."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BadInput
from .plan import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWorkload:
    """One optimizer step: ``global_batch`` sequences of ``seq_tokens`` tokens (arrays allowed, one per candidate)."""

    seq_tokens: Ints
    global_batch: Ints = 1
    packed: bool = True

    def __post_init__(self) -> None:
        for field in ("seq_tokens", "global_batch"):
            value = getattr(self, field)
            if isinstance(value, int) and not 1 <= value <= 10**12:
                raise BadInput(f"{field}={value} must be between 1 and 1e12")
