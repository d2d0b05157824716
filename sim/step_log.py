"""What one replica did, step by step, as compact columns: for traces, occupancy over time, and audits of the engine."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

COLUMNS = (
    "start_ps",
    "end_ps",
    "n_steps",
    "tokens",
    "prompt_tokens",
    "n_decoding",
    "n_prompts",
    "kv_tokens",
    "n_waiting",
    "free_blocks",
)


class StepLog:
    """One row per engine step, or per stretch of ``n_steps`` equal decode steps.

    ``tokens`` went through the model in the whole row: ``prompt_tokens`` of prompts, the rest decoded (a prompt that ends answers one
    more). ``n_decoding`` sequences were past their prompt (stalled ones included), ``n_prompts`` had part of theirs computed.
    ``kv_tokens`` are those the decoding held at the row's end, ``free_blocks`` the KV blocks left while it ran, idle cached ones
    included; ``n_waiting`` requests were queued. Preemptions are kept beside.
    """

    def __init__(self) -> None:
        self._rows = array("q")
        self._preempted = array("q")

    def __len__(self) -> int:
        return len(self._rows) // len(COLUMNS)

    def add(self, *row: int) -> None:
        """One row, values in the order of COLUMNS."""
        self._rows.extend(row)

    def preempt(self, at_ps: int, request: int) -> None:
        """``request`` was put back among the waiting at ``at_ps``."""
        self._preempted.extend((at_ps, request))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Each of COLUMNS as an array, in order of time."""
        table = np.array(self._rows, np.int64).reshape(-1, len(COLUMNS))
        return {name: table[:, i].copy() for i, name in enumerate(COLUMNS)}

    def preemptions(self) -> dict[str, NDArray[np.int64]]:
        """``at_ps`` and ``request`` of each preemption, in order of time."""
        table = np.array(self._preempted, np.int64).reshape(-1, 2)
        return {"at_ps": table[:, 0].copy(), "request": table[:, 1].copy()}
