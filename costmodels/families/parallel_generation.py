"""One task is written by several streams at once that share the cache of their common past."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..step import Stage, Step, require_positive, weights_read

STAGE = Stage.PASSES


def parallel_generation(step: Step, *, workers: int, useful_frac: float = 1.0, overhead_s: float = 0.0) -> Step:
    """A pass advances ``workers`` streams of one task: weights and shared cache are read once, FLOPs count per stream.

    It yields ``1 + (workers - 1) · useful`` tokens that count: the degree of parallelism the task's text has. ``overhead_s`` is what a
    pass of that many streams takes on top: set-up, and attention kernels that slow down. Source: Hogwild! (2025); Multiverse (2025).
    """
    require_positive("parallel_generation", workers=workers)
    if step.kind != "decode":
        return step
    more = weights_read(step.model, np.asarray(step.n_seqs) * workers) / weights_read(step.model, step.n_seqs)
    return replace(
        step, q_tokens=step.q_tokens * workers, yield_tokens=step.yield_tokens * (1.0 + (workers - 1) * useful_frac),
        linear_flops=step.linear_flops * workers, attention_flops=step.attention_flops * workers, weight_bytes=step.weight_bytes * more,
        fixed_s=step.fixed_s + overhead_s,
    )  # fmt: skip
