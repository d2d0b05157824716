"""One pass of a model in totals: what it computes, moves and holds on one GPU; what a technique rewrites and a roofline prices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator
from ..scenarios.model import ModelSpec
from .experts import expert_share_read
from .flops import attention_flops
from .linear_layer import state_bytes, token_flops
from .op import Floats
from .params import count_params
from .sparse_index import index_bytes

Kind = Literal["prefill", "decode", "train"]


class Stage(IntEnum):
    """When a technique is applied: each stage rewrites what the stages before it left. Ties go by name."""

    MODEL = 1  # what the model is: layers, heads, experts, states
    NUMBERS = 2  # how many bytes a number takes
    CONTEXT = 3  # how many tokens there are
    READ = 4  # which cached tokens are read
    PLACE = 5  # where bytes lie: device or host
    SPLIT = 6  # what GPUs tell each other
    PASSES = 7  # how many tokens a pass yields


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Totals of one pass over ``n_seqs`` sequences of ``kv_tokens`` context, ``q_tokens`` of them new, on one GPU.

    Work: FLOPs; bytes read from device memory (weights, cached keys and values, anything else), over the host link (those
    ``awaited`` only once the layer that needs them has chosen them) and to other GPUs (``network_bytes`` in ``n_hops`` messages).
    ``fixed_s`` is time no resource explains and ``slow_frac`` time over the roofline (drafting, measured overheads). Yield:
    ``yield_tokens`` per sequence and pass. Held: bytes on the device, ``host_held_bytes`` on the host.
    """

    model: ModelSpec
    kind: Kind
    n_seqs: Floats
    q_tokens: Floats
    kv_tokens: Floats
    yield_tokens: Floats
    linear_flops: Floats
    attention_flops: Floats
    weight_bytes: Floats
    kv_bytes: Floats
    other_bytes: Floats = 0.0
    host_bytes: Floats = 0.0
    awaited_host_bytes: Floats = 0.0
    network_bytes: Floats = 0.0
    n_hops: Floats = 0.0
    fixed_s: Floats = 0.0
    slow_frac: Floats = 0.0
    held_weight_bytes: Floats = 0.0
    held_kv_bytes: Floats = 0.0
    held_activation_bytes: Floats = 0.0
    held_state_bytes: Floats = 0.0
    host_held_bytes: Floats = 0.0
    dtype: str = "bf16"

    @property
    def held_bytes(self) -> Floats:
        """Device memory: weights, gradients and optimizer states, cache, activations."""
        return self.held_weight_bytes + self.held_state_bytes + self.held_kv_bytes + self.held_activation_bytes

    @property
    def hbm_bytes(self) -> Floats:
        """Device-memory traffic of the pass."""
        return self.weight_bytes + self.kv_bytes + self.other_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one GPU sustains, and the memory it has. A rate over the card's own peak or bandwidth is refused by ``costmodels.rates``."""

    linear_flops_per_s: float
    attention_flops_per_s: float
    hbm_bytes_per_s: float
    host_bytes_per_s: float
    network_bytes_per_s: float
    hop_s: float
    hbm_bytes: float
    host_ram_bytes: float


def require_positive(family: str, **values: float) -> None:
    """BadInput unless every value, which a family divides by or cannot do without, is above zero (under a millionth counts as zero)."""
    for name, value in values.items():
        if value < 1e-6:
            raise BadInput(f"{family}: {name}={value} must be above 0")


def seconds(step: Step, rates: Rates) -> Floats:
    """Time of the pass: linears and attention one after the other, each bound by its FLOPs or by its bytes.

    ``(max(max(F_lin/F, (weights + other)/W) + max(F_att/F', cache/W), host/X) + awaited/X + network/C + hops·α + fixed) · (1 + slow)``.
    Host copies hide behind the device (they run on their own engines) unless a layer waits for what it chose; messages do not.
    """
    bandwidth = rates.hbm_bytes_per_s
    moved = np.asarray(step.weight_bytes) + step.other_bytes
    linear = np.maximum(np.asarray(step.linear_flops) / rates.linear_flops_per_s, moved / bandwidth)
    attention = np.maximum(np.asarray(step.attention_flops) / rates.attention_flops_per_s, np.asarray(step.kv_bytes) / bandwidth)
    device = linear + attention
    busy = np.maximum(device, np.asarray(step.host_bytes) / rates.host_bytes_per_s)
    messages = np.asarray(step.network_bytes) / rates.network_bytes_per_s + np.asarray(step.n_hops) * rates.hop_s
    waited = np.asarray(step.awaited_host_bytes) / rates.host_bytes_per_s
    out: Floats = (busy + waited + messages + step.fixed_s) * (1 + np.asarray(step.slow_frac))
    return out


def floor_s(step: Step, gpu: Accelerator) -> Floats:
    """No pass is faster: ``max(FLOPs / dense peak, device bytes / bandwidth)``."""
    flops = np.asarray(step.linear_flops) + np.asarray(step.attention_flops)
    return np.maximum(flops / gpu.peak_flops_per_s(step.dtype), np.asarray(step.hbm_bytes) / gpu.hbm_bytes_per_s)


def tokens_per_s(step: Step, rates: Rates) -> Floats:
    """Tokens of all sequences per second: ``n_seqs · yield / seconds``."""
    return step.n_seqs * step.yield_tokens / seconds(step, rates)


def seqs_that_fit(step: Step, rates: Rates) -> Floats:
    """Most sequences whose cache and activations fit beside the weights, in device and in host memory (a whole number)."""
    per_seq = (np.asarray(step.held_kv_bytes) + step.held_activation_bytes) / step.n_seqs
    room = rates.hbm_bytes - np.asarray(step.held_weight_bytes) - step.held_state_bytes
    host = np.asarray(step.host_held_bytes) / step.n_seqs
    with np.errstate(divide="ignore"):
        return np.floor(np.maximum(np.minimum(room / per_seq, np.where(host > 0, rates.host_ram_bytes / host, np.inf)), 0))


def prefill_step(
    model: ModelSpec, *, prompt_tokens: Floats, n_seqs: Floats = 1.0, chunk_tokens: Floats = 0.0, element_bytes: float = 2.0
) -> Step:
    """A whole prompt of each sequence: ``2·P·S`` linear FLOPs (P without embedding and head), causal attention, weights once.

    In chunks of C tokens every chunk re-reads weights and the cache so far: ``S/C`` times the weights, ``S²/(2C)`` tokens of cache.
    Activations held are those of one chunk: ``C (h + 2 f)`` elements (the input, and the widened FFN input twice).
    """
    s = np.asarray(prompt_tokens, float)
    chunk = np.where(np.asarray(chunk_tokens) > 0, np.minimum(chunk_tokens, s), s)
    kv = kv_cache_bytes(model, s, element_bytes) * n_seqs
    widest = max(model.ffn_hidden, model.moe_ffn_hidden * model.top_k)
    return Step(
        model=model, kind="prefill", n_seqs=n_seqs, q_tokens=s, kv_tokens=s, yield_tokens=s,
        linear_flops=2.0 * layer_params_active(model) * s * n_seqs, attention_flops=attention_flops(model, s) * n_seqs,
        weight_bytes=weights_total(model, element_bytes) * np.ceil(s / chunk), kv_bytes=kv * (1 + (s / chunk - 1) / 2),
        held_weight_bytes=weights_total(model, element_bytes), held_kv_bytes=kv + states_bytes(model) * n_seqs,
        held_activation_bytes=chunk * (model.hidden + 2.0 * widest) * element_bytes * n_seqs,
    )  # fmt: skip


def decode_step(
    model: ModelSpec, *, kv_tokens: Floats, n_seqs: Floats = 1.0, element_bytes: float = 2.0, kv_element_bytes: float = 2.0
) -> Step:
    """One new token of each of ``n_seqs`` sequences with ``kv_tokens`` of context: active weights and the whole cache are read once.

    Recurrent states are read and written.
    """
    n = np.asarray(kv_tokens, float)
    states = states_bytes(model) * n_seqs
    return Step(
        model=model, kind="decode", n_seqs=n_seqs, q_tokens=1.0, kv_tokens=n, yield_tokens=1.0,
        linear_flops=2.0 * (layer_params_active(model) + model.vocab * model.hidden) * np.asarray(n_seqs),
        attention_flops=decode_attention_flops(model, n) * n_seqs, weight_bytes=weights_read(model, n_seqs, element_bytes),
        kv_bytes=cache_read_bytes(model, n, kv_element_bytes) * n_seqs, other_bytes=2.0 * states,
        held_weight_bytes=weights_total(model, element_bytes), held_kv_bytes=kv_cache_bytes(model, n, kv_element_bytes) * n_seqs + states,
    )  # fmt: skip


def train_pass(model: ModelSpec, *, seq_tokens: Floats, n_seqs: Floats = 1.0, recompute: bool = False) -> Step:
    """Forward and backward of a batch and the optimizer's states, unsharded: linears ``6PN`` (8 recomputed), attention 3.5 forwards (4.5).

    Weights 2 bytes a parameter; gradients 2, fp32 master copy 4 and two fp32 moments 8. Source: Rajbhandari et al. 2020, §3.1; Dao 2023.
    """
    s, params = np.asarray(seq_tokens, float), count_params(model)
    tokens = s * n_seqs
    linear = layer_params_active(model) + model.vocab * model.hidden
    return Step(
        model=model, kind="train", n_seqs=n_seqs, q_tokens=s, kv_tokens=s, yield_tokens=s,
        linear_flops=(8.0 if recompute else 6.0) * linear * tokens,
        attention_flops=(4.5 if recompute else 3.5) * attention_flops(model, s) * n_seqs,
        weight_bytes=2.0 * 2.0 * params.total, kv_bytes=0.0, other_bytes=(2.0 + 24.0) * params.total,
        held_weight_bytes=2.0 * params.total, held_state_bytes=14.0 * params.total,
        held_activation_bytes=tokens * model.hidden * model.n_layers * 2.0 * (1.0 if recompute else 17.0),
    )  # fmt: skip


def layer_params_active(model: ModelSpec) -> float:
    """Parameters a token is multiplied by, without embedding and head."""
    p = count_params(model)
    return float(p.active - p.embedding - p.positions - p.head)


def weights_total(model: ModelSpec, element_bytes: float = 2.0) -> float:
    """All weights in bytes."""
    return count_params(model).total * element_bytes


def weights_read(model: ModelSpec, tokens: Floats, element_bytes: float = 2.0, skew: float = 0.0) -> Floats:
    """Weights that a pass over ``tokens`` tokens reads: all dense ones but the embedding table, and the experts the tokens cover."""
    p = count_params(model)
    lookup = 0 if model.tied_embeddings else p.embedding
    routed = p.n_moe_layers * model.n_experts * p.expert
    covered = expert_share_read(model.n_experts, model.top_k, tokens, skew=skew) if routed else 0.0
    return (p.total - lookup - routed + routed * covered) * element_bytes


def kv_cache_bytes(model: ModelSpec, tokens: Floats, element_bytes: float = 2.0) -> Floats:
    """Cache of one sequence: ``(L_full N + L_window min(N, w)) · width · e``; width is ``2 g d``, or the latent and rope key under MLA.

    DSA adds an index key a token; recurrent states are no cache (``states_bytes``).
    """
    width = model.kv_lora_rank + model.rope_head_dim if model.is_mla else model.n_kv_heads * (model.qk_dim + model.v_dim)
    full = model.n_full_attention_layers
    n = np.asarray(tokens, float)
    kept = full * n + model.n_window_layers * np.minimum(n, model.window_tokens or n)
    return kept * width * element_bytes + full * n * index_bytes(model)


def cache_read_bytes(model: ModelSpec, tokens: Floats, element_bytes: float = 2.0) -> Floats:
    """What one decoded token reads of the cache: all of it; under DSA every index key and the latents of the best ``index_top_k``."""
    n = np.asarray(tokens, float)
    if not model.index_top_k:
        return kv_cache_bytes(model, n, element_bytes)
    chosen = np.minimum(n, model.index_top_k) * (model.kv_lora_rank + model.rope_head_dim) * element_bytes
    return model.n_full_attention_layers * (chosen + n * index_bytes(model))


def states_bytes(model: ModelSpec) -> float:
    """Recurrent states of one sequence, in 32 bits; a decoded token reads and writes them."""
    return model.n_linear_layers * state_bytes(model) if model.n_linear_layers else 0.0


def decode_attention_flops(model: ModelSpec, tokens: Floats) -> Floats:
    """One new token's attention over the cache, and its update of recurrent states; MLA works on the latent, ``2 a (2 c + d_rope)`` a key.

    DSA scores all keys and attends to the best ``index_top_k``.
    """
    n = np.asarray(tokens, float)
    dims = 2 * model.kv_lora_rank + model.rope_head_dim if model.is_mla else model.qk_dim + model.v_dim
    full = model.n_full_attention_layers
    seen = np.minimum(n, model.index_top_k or n)
    keys = full * seen + model.n_window_layers * np.minimum(n, model.window_tokens or n)
    index = 2.0 * full * n * model.index_heads * model.index_dim if model.index_top_k else 0.0
    return 2.0 * model.n_heads * dims * keys + index + model.n_linear_layers * token_flops(model)
