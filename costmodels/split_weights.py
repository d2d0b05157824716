"""Weights of a replica whose attention and FFN have GPUs of their own."""

from __future__ import annotations

from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator
from ..scenarios.model import ModelSpec
from ..scenarios.serving import EnginePlan
from .gemm_curve import weight_bytes
from .params import count_params


def split_weights_bytes(model: ModelSpec, plan: EnginePlan) -> tuple[float, float]:
    """Bytes on one attention GPU and on one FFN GPU.

    Attention, its norms, embeddings and head over tp; experts with their copies over all FFN GPUs, dense FFNs, shared experts and routers
    over the ``n_ffn/ep`` GPUs of a group. Embeddings, head, norms and routers stay in 16 bits. BadInput when the plan has no
    ``attention_ffn``.
    """
    if plan.attention_ffn is None:
        raise BadInput("the plan has no attention_ffn: nothing to split")
    p, width, n_ffn = count_params(model), weight_bytes(plan.weight_dtype), plan.attention_ffn.n_ffn_gpus
    attention = width * p.mixers(model.n_layers) / plan.tp
    outer = 2 * ((p.embedding + p.head) / plan.tp + model.n_layers * p.norm_per_layer)
    dense = width * (p.n_dense_ffn_layers * p.dense_ffn_per_layer + p.n_moe_layers * p.shared_per_layer)
    copies = model.n_experts + plan.redundant_experts * bool(model.n_experts)
    routed = weight_bytes(plan.experts_in) * p.n_moe_layers * copies * p.expert
    return attention + outer, routed / n_ffn + (dense + 2 * p.n_moe_layers * p.router_per_layer) * plan.ep / n_ffn


def check_ffn_fits(model: ModelSpec, plan: EnginePlan, gpu: Accelerator, limit_bytes: float) -> None:
    """BadInput when the FFN GPUs cannot hold their weights."""
    held = split_weights_bytes(model, plan)[1]
    if held > limit_bytes and plan.attention_ffn is not None:
        n = plan.attention_ffn.n_ffn_gpus
        raise BadInput(
            f"n_ffn_gpus={n} of {gpu.name} would hold {held / 2**30:.1f} GiB of FFN weights of {model.name} each; "
            f"{limit_bytes / 2**30:.1f} GiB may be used: at least {-int(-held * n // limit_bytes)} are needed"
        )
