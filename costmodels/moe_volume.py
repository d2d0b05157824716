"""All-to-all bytes of expert parallelism, and what shrinking the exchanged width (BigMac) costs and saves."""

from __future__ import annotations

import numpy as np

from .op import Floats


def all_to_all_bytes(
    tokens: Floats, hidden: Floats, top_k: Floats, n_moe_layers: Floats, ep: Floats, *, dim_scale: float = 1.0, element_bytes: float = 2.0
) -> Floats:
    """Bytes all ranks send per training step: dispatch and combine, forward and backward, ``4 e N L h k r (ep-1)/ep``.

    ``tokens`` = N of the whole step, ``dim_scale`` = r, the exchanged width over the hidden one (1: plain MoE).
    Source: BigMac (2025), table 4, with e = 2.
    """
    p = np.asarray(ep, float)
    return 4.0 * element_bytes * np.asarray(tokens, float) * hidden * top_k * n_moe_layers * dim_scale * (p - 1) / p


def narrow_params(hidden: Floats, n_moe_layers: Floats, *, dim_scale: float) -> Floats:
    """Parameters of the projections to and from the narrow width: ``2 L h (r h)``. Source: BigMac (2025), §3 (DCCA)."""
    return 2.0 * np.asarray(n_moe_layers, float) * np.asarray(hidden, float) ** 2 * dim_scale


def narrow_flops(tokens: Floats, hidden: Floats, n_moe_layers: Floats, *, dim_scale: float) -> Floats:
    """Training FLOPs of those projections: 6 per parameter and token."""
    return 6.0 * np.asarray(tokens, float) * narrow_params(hidden, n_moe_layers, dim_scale=dim_scale)


def pyramid_params(dense_params: Floats, hidden: Floats, experts_per_layer: list[int], *, residual: bool = False) -> Floats:
    """Parameters of a dense GPT whose listed FFNs become experts: ``dense + sum (E-1) 8 h²``, and a kept dense FFN each when residual.

    Source: DeepSpeed-MoE (2022), §3-4: standard MoE has equal layers, PR-MoE more experts in the last ones beside a fixed MLP.
    """
    ffn = 8.0 * np.asarray(hidden, float) ** 2
    extra = sum(e - 1 + (1 if residual else 0) for e in experts_per_layer)
    return dense_params + extra * ffn
