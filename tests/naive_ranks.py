"""Attention data parallelism the slow way: what the ranks that hold the prompts of a step may carry, and what the busiest costs."""

from __future__ import annotations

import math

from roofplan.costmodels.step_times import StepTimes


def prompt_room(times: StepTimes, budget: int, beside: int, n_prompts: int) -> int:
    """Prompt tokens of a step beside so many decoded ones: each rank with a prompt fills what its own decodes leave of its budget."""
    if times.ranks == 1:
        return budget - beside
    own = max(budget // times.ranks, 1) - math.ceil(beside / times.ranks)
    return min(budget - beside, own * min(times.ranks, n_prompts))


def prompts_ps(times: StepTimes, budget: int, chunked: bool, beside: int, chunks: list[tuple[int, int]], waiting: int) -> int:
    """Attention of the chunks (tokens, past) on the rank that takes longest, and what uneven ranks add to the step."""
    costs = [times.prefill[c] + times.prefill_slope[c] * past for c, past in chunks]
    if times.ranks == 1:
        return sum(costs)
    most = max(budget // times.ranks, 1) if chunked else math.inf
    tokens = sum(c for c, _ in chunks)
    holders = min(times.ranks, len(chunks) + waiting)
    heaviest = max(math.ceil(tokens / holders), min(max(c for c, _ in chunks), most))
    uneven = times.own[math.ceil(beside / times.ranks) + heaviest] - times.own[math.ceil((tokens + beside) / times.ranks)]
    alone = [cost for cost, (c, _) in zip(costs, chunks, strict=True) if c <= most]
    return max(uneven, 0) + max([math.ceil(sum(costs) / holders), *alone])
