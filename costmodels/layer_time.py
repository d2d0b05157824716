"""Seconds of one layer on one rank: its ops priced, messages hidden where the framework can, recomputation added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scenarios.model import ModelSpec
from ..scenarios.plan import ParallelPlan
from .distinct import Memo, distinct, key
from .op import Attention, Collective, Floats, Op, Stream, flops, price_all
from .overlap import exposed
from .shard import Shard
from .system import System
from .transformer import backward, layer_ops


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one average layer and micro-batch. ``*_fwd`` / ``*_bwd`` of a lane are what compute could not hide.

    ``bwd_s`` holds input gradients and recomputation, ``wgrad_s`` weight gradients; ``attention_fwd_s`` is inside ``fwd_s``.
    ``flops`` are executed, recomputation included.
    """

    fwd_s: Floats
    bwd_s: Floats
    wgrad_s: Floats
    attention_fwd_s: Floats
    ffn_fwd_s: Floats
    tp_fwd_s: Floats
    tp_bwd_s: Floats
    cp_fwd_s: Floats
    cp_bwd_s: Floats
    ep_fwd_s: Floats
    ep_bwd_s: Floats
    flops: Floats


def layer_mix(model: ModelSpec) -> list[tuple[float, bool, int]]:
    """(share of layers, is MoE, window) of each kind of layer; shares sum to 1."""
    moe = model.n_moe_layers / model.n_layers
    full = model.n_full_attention_layers / model.n_layers
    kinds = [
        (moe_share * full_share, is_moe, window)
        for moe_share, is_moe in ((1 - moe, False), (moe, True))
        for full_share, window in ((full, 0), (1 - full, model.window_tokens))
    ]
    return [kind for kind in kinds if kind[0] > 0]


def layer_time(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, memo: Memo | None = None) -> LayerTime:
    """The average layer: every kind priced and weighted by its share of the model's layers.

    ``memo`` keeps layers for later calls with the same model and system: recompute policies and schedules share them.
    """
    few, piece, back = distinct(plan, cut, None if memo is None else 2)
    known = None if memo is None else memo.get(here := key(few, piece))
    total: dict[str, Floats] = known or {}
    if not known:
        for share, moe, window in layer_mix(model):
            kind = _one_kind(model, few, piece, system, moe, window)
            total = {name: total.get(name, 0.0) + share * value for name, value in kind.items()}
        if memo is not None:
            memo[here] = total
    if back is not None:
        total = {name: np.broadcast_to(value, int(back.max()) + 1)[back] for name, value in total.items()}
    return LayerTime(**_recompute(plan, cut, total))


def _one_kind(model: ModelSpec, plan: ParallelPlan, cut: Shard, system: System, moe: bool, window: int) -> dict[str, Floats]:
    """A layer of one kind without recomputation: the fields of LayerTime, and the FLOPs of its forward and of its attention."""
    ops = layer_ops(model, plan, cut, system.framework, moe=moe, window_tokens=window)
    grads = backward(ops, train_weights=not plan.lora_rank)
    seconds = price_all([op.work for op in (*ops, *grads)], system)
    fwd, fwd_flops = _lanes(ops, seconds[: len(ops)])
    bwd, bwd_flops = _lanes(grads, seconds[len(ops) :])
    out = _expose(plan, system, fwd, "fwd") | _expose(plan, system, bwd, "bwd")
    out |= {"fwd_s": fwd["compute"], "bwd_s": bwd["compute"], "wgrad_s": bwd["wgrad"]}
    out |= {"attention_fwd_s": fwd["attention"], "ffn_fwd_s": fwd["ffn"], "flops": fwd_flops + bwd_flops}
    return out | {"forward_flops": fwd_flops, "attention_flops": fwd["attention_flops"]}


def _recompute(plan: ParallelPlan, cut: Shard, out: dict[str, Floats]) -> dict[str, Floats]:
    """Add the forward work that backward repeats: all of it, all but attention (remat), attention alone (selective), a tiled FFN.

    MeZO has no backward at all.
    """
    out = {name: value + 0.0 * cut.tokens for name, value in out.items()}
    forward_flops, attention_flops = out.pop("forward_flops"), out.pop("attention_flops")
    if plan.optimizer == "mezo":
        zero = 0.0 * cut.tokens
        return out | {"bwd_s": zero, "wgrad_s": zero, "tp_bwd_s": zero, "cp_bwd_s": zero, "ep_bwd_s": zero, "flops": forward_flops}
    wanted = np.asarray(plan.recompute_layers, float)
    part = np.where(wanted < 0, 1.0, np.minimum(wanted / np.maximum(cut.layers, 1), 1.0))
    again: dict[str, Floats] = {}
    if plan.recompute in ("full", "remat"):
        again = {f"{lane}bwd_s": out[f"{lane}fwd_s"] for lane in ("", "tp_", "cp_", "ep_")} | {"flops": forward_flops}
        if plan.recompute == "remat":
            again["bwd_s"] = again["bwd_s"] - out["attention_fwd_s"]
            again["flops"] = again["flops"] - attention_flops
            again["cp_bwd_s"] = 0.0 * cut.tokens
    elif plan.recompute == "selective":
        again, part = {"bwd_s": out["attention_fwd_s"], "flops": attention_flops}, np.asarray(1.0)
    out |= {name: out[name] + part * value for name, value in again.items()}
    tiled = np.asarray(plan.tiled_mlp, float)  # each tile's forward runs once more inside its backward
    return out | {"bwd_s": out["bwd_s"] + tiled * out["ffn_fwd_s"]}


def _lanes(ops: tuple[Op, ...], prices: list[Floats]) -> tuple[dict[str, Floats], Floats]:
    """Seconds by lane (``compute`` split into wgrad, and attention and FFN also alone), all-to-alls apart from ring hops."""
    out: dict[str, Floats] = dict.fromkeys(
        ("compute", "wgrad", "attention", "ffn", "gemm", "attention_flops", "tp", "ring", "a2a", "ep"), 0.0
    )
    total: Floats = 0.0
    for op, once in zip(ops, prices, strict=True):
        seconds = op.count * once
        work = op.count * flops(op.work)
        total = total + work
        if op.lane == "compute":
            key = "wgrad" if op.phase == "wgrad" else "compute"
            out[key] = out[key] + seconds
            if isinstance(op.work, Attention):
                out["attention"], out["attention_flops"] = out["attention"] + seconds, out["attention_flops"] + work
            elif not isinstance(op.work, Stream):
                out["gemm"] = out["gemm"] + seconds
            if op.name.startswith(("ffn", "shared", "expert")):
                out["ffn"] = out["ffn"] + seconds
        elif op.lane == "cp":
            key = "ring" if isinstance(op.work, Collective) and op.work.op == "p2p" else "a2a"
            out[key] = out[key] + seconds
        else:
            out[op.lane] = out[op.lane] + seconds
    return out, total


def _expose(plan: ParallelPlan, system: System, lanes: dict[str, Floats], phase: str) -> dict[str, Floats]:
    """What each axis adds: tensor messages hide behind matmuls, ring hops behind attention, expert messages behind the rest."""
    fw = system.framework
    tp = exposed(lanes["tp"], np.maximum(fw.overlap_tp_frac * lanes["gemm"], fw.overlap_tp_backward_frac * lanes["wgrad"]), 1.0)
    cp = exposed(lanes["ring"], lanes["attention"], fw.overlap_cp_frac) + lanes["a2a"]
    ep = exposed(lanes["ep"], lanes["compute"], fw.overlap_ep_frac)
    return {f"tp_{phase}_s": tp, f"cp_{phase}_s": cp, f"ep_{phase}_s": ep}
