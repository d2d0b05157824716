"""A layer that keeps a recurrent state instead of a cache: its parameters, its state, the work of a prompt and of one more token.

Three kinds. ``gated-delta`` (Gated DeltaNet: Qwen3-Next, Qwen3.5): queries, keys, values, an output gate as wide as the values, a decay
and a write strength a head. ``kda`` (Kimi Delta Attention): the same with a decay a key channel; decay and gate pass a low rank.
``lightning`` (MiniMax-01): fixed decay, no erasing, an output gate. The first two have a causal convolution over q, k and v.
Source: Yang et al. 2024 (arXiv 2412.06464), section 3; Kimi Linear (arXiv 2510.26692), section 3 and eq. 13-14; MiniMax-01 (arXiv
2501.08313), section 2.2.
"""

from __future__ import annotations

from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec

CHUNK = 64
"""Tokens of a chunk of the parallel form, in the public kernels and in ``kernels/linear_attention.py``."""
STATE_BYTES = {"fp32": 4.0, "bf16": 2.0}
"""Bytes of one element of a recurrent state by its format."""
CONV_BYTES = 2.0


def key_width(model: ModelSpec) -> int:
    """Elements of all heads' keys (and queries) of one token."""
    return model.linear_key_heads * model.linear_key_dim


def value_width(model: ModelSpec) -> int:
    """Elements of all heads' values of one token."""
    return model.linear_heads * model.linear_value_dim


def conv_width(model: ModelSpec) -> int:
    """Channels of the convolution: queries, keys and values; 0 where there is none."""
    return 2 * key_width(model) + value_width(model) if model.linear_conv_width else 0


def input_width(model: ModelSpec) -> int:
    """Columns of the wide product over the hidden state: q, k, v, and the output gate where it is as wide as v."""
    return 2 * key_width(model) + value_width(model) * (1 if model.linear_attention in ("kda", "") else 2)


def narrow_width(model: ModelSpec) -> int:
    """Columns of the narrow product beside it: decay and write strength a head; KDA: strength, and the low ranks of decay and gate."""
    heads = model.linear_heads
    return {"gated-delta": 2 * heads, "kda": heads + model.linear_key_dim + model.linear_value_dim}.get(model.linear_attention, 0)


def low_rank_params(model: ModelSpec) -> int:
    """Weights of the second products of KDA's decay and gate: ``d_k·K + d_v·V``."""
    if model.linear_attention != "kda":
        return 0
    return model.linear_key_dim * key_width(model) + model.linear_value_dim * value_width(model)


def linear_layer_params(model: ModelSpec) -> int:
    """Parameters of one linear layer's mixer; 0 for a model without any.

    ``h·(wide + narrow) + low ranks + V·h + conv + small``; small are decay rates and biases a head (KDA: biases a key channel) and the
    norm of the output, over one head's values (lightning: over all).
    """
    v, heads = value_width(model), model.linear_heads
    small = {
        "gated-delta": 2 * heads + model.linear_value_dim,
        "kda": heads + key_width(model) + model.linear_value_dim,
        "lightning": v,
        "": 0,
    }[model.linear_attention]
    conv = model.linear_conv_width * conv_width(model)
    return model.hidden * (input_width(model) + narrow_width(model) + v) + low_rank_params(model) + conv + small


def state_bytes(model: ModelSpec, *, tp: int = 1, dtype: str = "fp32") -> float:
    """Bytes one sequence's state takes in one linear layer on one of tp ranks: ``H·d_k·d_v`` elements, and the last ``w − 1`` inputs of the
    convolution in 16 bits. BadInput for an unknown format.
    """
    if dtype not in STATE_BYTES:
        raise BadInput(f"state_dtype={dtype!r} is not known; legal: {', '.join(STATE_BYTES)}")
    return recurrent_bytes(model, tp=tp, dtype=dtype) + conv_bytes(model, tp=tp)


def recurrent_bytes(model: ModelSpec, *, tp: int, dtype: str) -> float:
    """The recurrent part: ``ceil(H/tp)·d_k·d_v`` elements."""
    return -(-model.linear_heads // tp) * model.linear_key_dim * model.linear_value_dim * STATE_BYTES[dtype]


def conv_bytes(model: ModelSpec, *, tp: int) -> float:
    """The convolution's part: ``(w − 1)·(2K + V)/tp`` elements."""
    return CONV_BYTES * max(model.linear_conv_width - 1, 0) * conv_width(model) / tp


def prompt_flops(model: ModelSpec, *, chunk: int = CHUNK) -> float:
    """FLOPs of the mixer's core per prompt token, all heads.

    Delta rules: ``H·(6·d_k·d_v + C·(2·d_k + d_v) + C²)``, Kimi Linear's ``6d² + 3Cd + C²`` with unequal dims. Without erasing:
    ``H·(4·d_k·d_v + C·(d_k + d_v))``: the state read and written, and causal pairs within a chunk.
    """
    k, v = model.linear_key_dim, model.linear_value_dim
    delta = 6 * k * v + chunk * (2 * k + v) + chunk**2
    return float(model.linear_heads * (4 * k * v + chunk * (k + v) if model.linear_attention == "lightning" else delta))


def prompt_bytes(model: ModelSpec, *, chunk: int = CHUNK) -> float:
    """Bytes the core moves per prompt token, all heads, in 16 bits: each kernel of the chunked form reads its inputs, writes its outputs.

    Elements a head. Delta rules, five kernels: the chunk's matrix from the keys ``d_k + C``, its inverse ``2C``, w and u from it
    ``C + 2(d_k + d_v)``, the states ``2d_k + 2d_v + d_k·d_v/C``, the outputs as many. Without erasing, two: the states
    ``d_k + d_v + d_k·d_v/C`` and the outputs ``2d_k + 2d_v + d_k·d_v/C``. Counted from the algorithm, not measured.
    """
    k, v = model.linear_key_dim, model.linear_value_dim
    states = k * v / chunk
    if model.linear_attention == "lightning":
        return 2.0 * model.linear_heads * (3 * (k + v) + 2 * states)
    return 2.0 * model.linear_heads * (k + 4 * chunk + 2 * (k + v) + 2 * (2 * (k + v) + states))


def token_flops(model: ModelSpec) -> float:
    """FLOPs of one decoded token's update and readout, all heads: ``6·d_k·d_v`` a head by a delta rule, 4 without erasing."""
    return (4.0 if model.linear_attention == "lightning" else 6.0) * model.linear_heads * model.linear_key_dim * model.linear_value_dim


def n_prompt_kernels(model: ModelSpec) -> int:
    """Kernels of the chunked form (``prompt_bytes`` lists them)."""
    return 2 if model.linear_attention == "lightning" else 5
