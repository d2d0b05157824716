"""Bytes of a serving replica: weights per GPU, KV cache per token, and how many KV blocks are left."""

from __future__ import annotations

from dataclasses import dataclass

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan, ServingEngine
from .gemm_curve import weight_bytes
from .linear_layer import state_bytes
from .params import count_params
from .sparse_index import index_bytes
from .split_weights import check_ffn_fits, split_weights_bytes

KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "nvfp4": 0.5625, "int4": 0.5625}
"""Bytes of one cached element; 4-bit formats count one 8-bit scale per 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeMemory:
    """Bytes on the fullest GPU of a replica; ``kv_blocks`` is the pool of the whole replica (dp pools together).

    ``states_bytes`` are set aside for the recurrent states of ``max_seqs`` sequences (over all dp ranks), ``state_bytes_per_seq`` each.
    """

    weights_bytes: float
    activations_bytes: float
    context_bytes: float
    kv_bytes: float
    limit_bytes: float
    kv_bytes_per_token: float
    kv_blocks: int
    max_seqs: int = 0
    state_bytes_per_seq: float = 0.0
    states_bytes: float = 0.0


def weights_bytes(model: ModelSpec, plan: EnginePlan) -> float:
    """Weight bytes on one GPU: embeddings and head over tp, layers over tp·pp, routed experts over all GPUs.

    Extra copies of experts count; embeddings, head, norms and routers stay in 16 bits. Under attention DP every rank holds the attention.
    """
    if plan.attention_ffn:
        return split_weights_bytes(model, plan)[0]
    p, width = count_params(model), weight_bytes(plan.weight_dtype)
    split = plan.tp * plan.pp
    experts = p.n_moe_layers * (model.n_experts + plan.redundant_experts * bool(model.n_experts)) * p.expert
    shared = p.n_moe_layers * (p.moe_ffn_per_layer - model.n_experts * p.expert - p.router_per_layer) if p.n_moe_layers else 0
    dense = p.n_dense_ffn_layers * p.dense_ffn_per_layer
    indexers = (model.n_layers - p.n_linear_layers) * p.index_per_layer  # whole on every tp rank
    attention = p.mixers(model.n_layers) + (plan.tp - 1) * indexers
    small = p.n_moe_layers * p.router_per_layer + model.n_layers * p.norm_per_layer
    outer = (p.embedding + p.head) / plan.tp
    routed = weight_bytes(plan.experts_in) * experts / plan.n_gpus
    return float(width * (attention + shared + dense) / split + routed + 2 * (outer + small / plan.pp))


def kv_bytes_per_token(model: ModelSpec, plan: EnginePlan) -> float:
    """KV-cache bytes one token takes on each GPU: ``2·layers·kv_heads·head_dim`` elements over tp, pp and cp.

    Heads are replicated when tp exceeds them; MLA stores ``kv_lora_rank + rope_head_dim`` once on every tp rank. Window layers drop what
    leaves the window, and recurrent states do not grow, so only full-attention layers count. DSA caches an index key besides.
    """
    layers = -(-model.n_full_attention_layers // plan.pp) or 1
    if model.is_mla:
        latent = (model.kv_lora_rank + model.rope_head_dim) * KV_BYTES[plan.kv_dtype]
        return layers * (latent + index_bytes(model)) / plan.cp
    heads = -(-model.n_kv_heads // plan.tp)
    return layers * heads * (model.head_dim + model.v_dim) * KV_BYTES[plan.kv_dtype] / plan.cp


def state_bytes_per_seq(model: ModelSpec, plan: EnginePlan) -> float:
    """Bytes the recurrent states of one sequence take on each GPU: those of ``ceil(linear layers/pp)`` layers over tp."""
    return -(-model.n_linear_layers // plan.pp) * state_bytes(model, tp=plan.tp, dtype=plan.state_dtype) if model.n_linear_layers else 0.0


STATES_FRAC = 0.9 / 1.9
"""Most of the room for caches that recurrent states may take: SGLang's mamba-full-memory-ratio, 0.9 of states to caches."""


def check_layers(model: ModelSpec, plan: EnginePlan) -> None:
    """BadInput for what is not priced on layers with recurrent states or with an indexer, and what cannot be cut so."""
    if not model.special_layers:
        return
    refused = {f"cp={plan.cp}": plan.cp > 1, "attention apart from FFN": plan.attention_ffn is not None}
    if model.n_linear_layers:
        refused |= {
            "a prefix cache": plan.prefix_cache,
            "preemption by swapping": plan.preemption == "swap",
            f"tp={plan.tp}, which does not divide its {model.linear_key_heads} key heads,": model.linear_key_heads % plan.tp > 0,
        }
    for what, asked in refused.items():
        if asked:
            raise BadInput(f"{model.name} has {model.special_layers}: {what} is not priced for them; drop it")


def serve_memory(
    model: ModelSpec, plan: EnginePlan, engine: ServingEngine, gpu: Accelerator, budget: int, max_seqs: int, block_tokens: int
) -> ServeMemory:
    """What a replica's GPU holds, and the KV pool ``floor((hbm·utilisation − weights − activations − context) / block bytes)``.

    Where the engine's share is one of what is free: ``floor((hbm − weights − activations − context)·utilisation / block bytes)``.

    With ``whole_embedding`` every tp rank holds the whole input embedding.

    Activations are the largest step's hidden states and the widest FFN intermediate in 16 bits plus fp32 logits of one row a sequence.
    Recurrent states are set aside for ``max_seqs`` sequences, or for fewer, ``max_seqs`` of the answer, where those would take more than
    STATES_FRAC of the room. Raises BadInput when a format is unknown, the layers are not priced so, or no block is left.
    """
    check_layers(model, plan)
    if plan.kv_dtype not in KV_BYTES:
        raise BadInput(f"kv_dtype={plan.kv_dtype!r} is not known; legal: {', '.join(KV_BYTES)}")
    rows = -(-budget // (plan.dp * plan.cp))
    widest = max(2 * model.ffn_hidden / plan.tp, 2 * (model.moe_ffn_hidden or 0) * (model.top_k or 0) / plan.tp)
    activations = rows * (4 * model.hidden + widest) * 2 + 2 * max_seqs / (plan.dp * plan.cp) * model.vocab / plan.tp * 4
    held = weights_bytes(model, plan)
    if engine.whole_embedding:
        held += 2 * count_params(model).embedding * (1 - 1 / plan.tp)
    limit = gpu.hbm_bytes * engine.memory_utilization_frac
    if engine.memory_frac_of_free:
        fixed = held + activations + engine.context_bytes
        limit = fixed + max(gpu.hbm_bytes - fixed, 0) * engine.memory_utilization_frac
    if plan.attention_ffn:
        check_ffn_fits(model, plan, gpu, limit - engine.context_bytes)
    per_token = kv_bytes_per_token(model, plan)
    room = limit - held - activations - engine.context_bytes
    per_seq = state_bytes_per_seq(model, plan)
    slots = 1 + (plan.speculation.most_checked if plan.speculation else 0)  # while guesses are checked, one for each token
    seats = max_seqs if not per_seq else max(min(max_seqs, int(max(room, 0) * STATES_FRAC // (per_seq * slots)) * plan.dp), 1)
    states = per_seq * slots * -(-seats // plan.dp)
    room -= states
    blocks = int(room // (per_token * block_tokens)) * plan.dp if not plan.kv_blocks else plan.kv_blocks
    if blocks < 1:
        raise BadInput(
            f"{model.name} in {plan.weight_dtype} on {plan.n_gpus} x {gpu.name} (tp={plan.tp}, pp={plan.pp}) needs {held / 2**30:.1f} GiB "
            f"of weights and {(activations + states + engine.context_bytes) / 2**30:.1f} GiB besides; {limit / 2**30:.1f} GiB may be used: "
            "no room for a KV cache; raise tp or pp"
        )
    return ServeMemory(
        weights_bytes=held,
        activations_bytes=activations,
        context_bytes=engine.context_bytes,
        kv_bytes=blocks / plan.dp * per_token * block_tokens,
        limit_bytes=limit,
        kv_bytes_per_token=per_token,
        kv_blocks=blocks,
        max_seqs=seats,
        state_bytes_per_seq=per_seq,
        states_bytes=states,
    )
