"""Predictors that need no clock: counts of parameters, FLOPs and bytes, and what fits where."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..costmodels import fat_tree, kv_cache, moe_volume, sequence_volume
from ..costmodels.flops import train_flops
from ..costmodels.memory import train_memory
from ..costmodels.params import count_params
from ..scenarios import registry
from ..scenarios.reference import Case
from .case_setting import model_of, scalar, system_of

GIB = 2.0**30


def params_billion(case: Case) -> float:
    """Parameters of the model, billions."""
    return count_params(model_of(case.layout)).total / 1e9


def active_params_billion(case: Case) -> float:
    """Parameters a token passes, billions."""
    return count_params(model_of(case.layout)).active / 1e9


def train_tflop(case: Case) -> float:
    """Training FLOPs of the layout's workload in units of 1e12, in the case's convention, without recomputation."""
    layout = case.layout
    flops = train_flops(
        model_of(layout), scalar(layout.work.seq_tokens), scalar(layout.work.global_batch), convention=case.flops_convention
    )
    return scalar(flops) / 1e12


def train_tflop_ratio(case: Case) -> float:
    """The layout's training FLOPs per token over the baseline's."""
    base = case.baseline or case.layout
    ours = train_tflop(case) / scalar(case.layout.work.seq_tokens)
    return ours / (train_tflop(dataclasses.replace(case, layout=base)) / scalar(base.work.seq_tokens))


def gflop_per_token(case: Case) -> float:
    """Training FLOPs per token in units of 1e9."""
    return 1e3 * train_tflop(case) / scalar(case.layout.work.seq_tokens) / scalar(case.layout.work.global_batch)


def kv_kilobytes(case: Case) -> float:
    """16-bit cache per token in 1e3 bytes."""
    return kv_cache.kv_bytes_per_token(model_of(case.layout)) / 1e3


def all_to_all_gib(case: Case) -> float:
    """Bytes of a step's all-to-alls in GiB, at ``numbers.dim_scale`` of the hidden width."""
    layout, model = case.layout, model_of(case.layout)
    tokens = scalar(layout.work.seq_tokens) * scalar(layout.work.global_batch)
    scale = case.numbers.get("dim_scale", 1.0)
    return (
        scalar(moe_volume.all_to_all_bytes(tokens, model.hidden, model.top_k, model.n_moe_layers, scalar(layout.plan.ep), dim_scale=scale))
        / GIB
    )


def narrow_train_tflop(case: Case) -> float:
    """Training FLOPs with projections to ``numbers.dim_scale`` of the width around each MoE layer, 1e12."""
    layout, model = case.layout, model_of(case.layout)
    tokens = scalar(layout.work.seq_tokens) * scalar(layout.work.global_batch)
    extra = moe_volume.narrow_flops(tokens, model.hidden, model.n_moe_layers, dim_scale=case.numbers["dim_scale"])
    return train_tflop(case) + scalar(extra) / 1e12


def narrow_params_billion(case: Case) -> float:
    """Parameters with those projections, billions."""
    model = model_of(case.layout)
    extra = moe_volume.narrow_params(model.hidden, model.n_moe_layers, dim_scale=case.numbers["dim_scale"])
    return params_billion(case) + scalar(extra) / 1e9


def pyramid_params_billion(case: Case) -> float:
    """Parameters of a dense model whose ``numbers.layers_a`` FFNs hold ``experts_a`` experts and ``layers_b`` hold ``experts_b``, billions.

    ``residual = 1`` keeps the dense FFN beside the experts; ``depth`` scales all layers (a distilled, shallower student).
    """
    model, n = model_of(case.layout), case.numbers
    layers = [int(n["experts_a"])] * int(n["layers_a"]) + [int(n.get("experts_b", 0))] * int(n.get("layers_b", 0))
    dense = count_params(model).total
    total = moe_volume.pyramid_params(dense, model.hidden, layers, residual=bool(n.get("residual", 0)))
    return scalar(total) * n.get("depth", 1.0) / 1e9


def sequence_volume_ratio(case: Case) -> float:
    """Bytes a rank sends under Megatron TP+SP over Ulysses', at P = cp ranks and equal heads."""
    layout, model = case.layout, model_of(case.layout)
    n, p = scalar(layout.work.seq_tokens), scalar(layout.plan.cp)
    megatron = sequence_volume.megatron_sp(n, model.hidden, p)
    return scalar(megatron / sequence_volume.ulysses(n, model.n_heads, model.n_kv_heads, model.head_dim, p))


def step_volume_ratio(case: Case) -> float:
    """Bytes of a training step of Megatron TP+SP with checkpointing over DistFlashAttn's."""
    model, n = model_of(case.layout), scalar(case.layout.work.seq_tokens)
    ours = sequence_volume.dist_attention_step(n, model.n_kv_heads * model.head_dim)
    return scalar(sequence_volume.megatron_step(n, model.hidden, recompute=True) / ours)


def largest_model(case: Case) -> float:
    """Billions in the name of the largest of ``words.models`` (space-separated, ascending) that fits; 0 if none does."""
    layout, best = case.layout, 0.0
    for name in case.words["models"].split():
        model = registry.model(name)
        found = train_memory(model, layout.plan, layout.work, system_of(layout))
        if bool(np.all(found.fits)):
            best = float(name.rsplit("-", 1)[1].rstrip("bB"))
    return best


def network_endpoints(case: Case) -> float:
    """End points of a fat tree of ``numbers.ports``-port switches with ``tiers`` and ``planes``."""
    return float(fat_tree.endpoints(*_tree(case)))


def network_switches(case: Case) -> float:
    """Switches of that fat tree."""
    return float(fat_tree.switches(*_tree(case)))


def _tree(case: Case) -> tuple[int, int, int]:
    n = case.numbers
    return int(n["ports"]), int(n["tiers"]), int(n.get("planes", 1))
