"""What training keeps besides the weights: gradients, master copies, moments, for all parameters or a part."""

from __future__ import annotations

from dataclasses import replace

from ..params import count_params
from ..step import Stage, Step

STAGE = Stage.NUMBERS


def trained_states(
    step: Step,
    *,
    moment_bytes: float = 8.0,
    master_bytes: float = 4.0,
    gradient_bytes: float = 2.0,
    trained_frac: float = 1.0,
    adapter_rank: int = 0,
) -> Step:
    """States: ``(gradient + master + moments) · trained`` bytes; ``trained`` is a fraction of the parameters, or low-rank adapters.

    Adapters of rank r sit on the attention projections: ``r (d_in + d_out)`` parameters each, with their own 2-byte weights. FLOPs: the
    forward and the input gradients stay, weight gradients are computed for what is trained: ``(4 + 2 trained)/6`` of a full pass.
    ``gradient_bytes = 0`` is a method without a backward pass: two forwards (4/6 of the FLOPs, no activations kept), four in-place passes
    over the weights.
    Source: Rajbhandari et al. 2020, §3.1; Lion (2023); SPAM (2025); MeZO (2023); HFT (2024).
    """
    params = count_params(step.model)
    trained, adapters = trained_frac * params.total, 0.0
    if adapter_rank:
        m = step.model
        widths = (m.n_heads * m.qk_dim, m.n_kv_heads * m.qk_dim, m.n_kv_heads * m.v_dim, m.n_heads * m.v_dim)
        trained = adapters = float(m.n_layers * sum(adapter_rank * (m.hidden + w) for w in widths))
    states = (gradient_bytes + master_bytes + moment_bytes) * trained
    forward_only = gradient_bytes == 0
    work = 4 / 6 if forward_only else (4.0 + 2.0 * trained / params.total) / 6.0
    traffic = 16.0 * params.total if forward_only else step.other_bytes * states / (14.0 * params.total)
    return replace(
        step, held_state_bytes=states, held_weight_bytes=step.held_weight_bytes + 2.0 * adapters,
        linear_flops=step.linear_flops * min(work, 1.0), attention_flops=step.attention_flops * (4 / 7 if forward_only else 1.0),
        other_bytes=traffic, held_activation_bytes=step.held_activation_bytes * (0.0 if forward_only else 1.0),
    )  # fmt: skip
