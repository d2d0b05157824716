"""Measurement tables that are checked but never fitted: other kernels and layouts, each row as the call that prices it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..costmodels.arrays import Array
from ..costmodels.collectives import Network
from ..costmodels.roofline import Roofline
from ..scenarios import registry
from ..scenarios.calibration import Calibration
from ..scenarios.errors import BadFile
from ..scenarios.hardware import Accelerator
from .tables import columns_of

HEAD_DIMS = {"qwen3-a3b-30b-moe": 128.0}
"""Models whose heads are not ``hidden / q_heads`` wide."""

PRODUCTS = ("attn_pre_proj_us", "attn_post_proj_us", "mlp_up_proj_us", "mlp_down_proj_us")
EXPERTS = ("num_tokens", "num_experts", "topk", "experts_per_device", "hidden", "expert_hidden", "routed_tokens")
ATTENTION = ("model", "phase", "tp", "hidden", "q_heads", "kv_heads", "batch_size", "prefill_chunk", "kv_len")

FOREIGN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vidur_attention": ("device", "attn_us", ATTENTION),
    "frontier_attention": ("device", "attn_us", ATTENTION),
    "frontier_moe": ("device", "grouped_gemm_us", EXPERTS),
}
"""Table -> its names for the GPU and the time, and the columns it must have."""

NOT_KERNELS = {
    "aic_serving_e2e": ("gpu", "serving points, not kernels: see `roofplan validate --serving`"),
    "splitwise_e2e": ("hardware", "whole requests, not kernels: see `roofplan validate --serving`"),
}
"""Tables that kernel prices say nothing about -> their column that names the GPU, and why."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rows of one family and the function that prices them; ``seconds`` are the measured times. ``reason``: why they have no price."""

    family: str
    rows: Any
    seconds: Array
    price: Callable[[], Array]
    reason: str = ""


def calls(table: str, frame: Any, roofline: Roofline, network: Network) -> Iterator[Call]:
    """The rows of one GPU that some call of Roofline or Network prices."""
    if not len(frame):
        return
    if table in ("vidur_attention", "frontier_attention"):
        for _, part in frame.groupby(["phase", "model"]):
            yield from _attention(part, roofline)
    elif table == "frontier_moe":
        yield _experts(frame, roofline)
    elif table == "vidur_mlp" and "attn_pre_proj_us" in frame:
        yield from _products(frame, roofline)
    elif table == "vidur_network":
        yield from _networks(frame, network)


def _attention(frame: Any, roofline: Roofline) -> Iterator[Call]:
    """Attention of one model's heads. Rows that would read their cache faster than the memory's peak by half and more are left alone."""
    c = columns_of(frame)
    phase, dim = str(c["phase"][0]), HEAD_DIMS.get(str(c["model"][0]), float(c["hidden"][0] / c["q_heads"][0]))
    heads, kv_heads = c["q_heads"] / c["tp"], np.maximum(c["kv_heads"] / c["tp"], 1)
    new = np.ones_like(heads) if phase == "decode" else c["prefill_chunk"]
    cache_bytes = 4 * dim * c["batch_size"] * kv_heads * c["kv_len"]
    real = c["latency_us"] * 1e-6 > cache_bytes / (2 * roofline.gpu.hbm_bytes_per_s)

    def price() -> Array:
        return roofline.attention_s(
            batch=c["batch_size"][real], q_tokens=new[real], kv_tokens=(c["kv_len"] + new)[real], n_heads=heads[real],
            n_kv_heads=kv_heads[real], qk_dim=dim, v_dim=dim, phase=phase,
        )  # fmt: skip

    if real.any():
        yield Call(f"attention.{phase}", frame[real], c["latency_us"][real] * 1e-6, price)
    if not real.all():
        yield Call(f"attention.{phase}", frame[~real], np.zeros(0), price, "reads its cache at over twice the peak of the memory")


def _experts(frame: Any, roofline: Roofline) -> Call:
    """Up, gate and down products of the experts of one device; gating, routing and shuffling are other columns."""
    c = columns_of(frame)
    experts, hidden, width = (c[n] for n in ("experts_per_device", "hidden", "expert_hidden"))
    even = c["num_tokens"] * c["topk"] * experts / c["num_experts"]
    pairs = np.where(np.isnan(c["routed_tokens"]), even, c["routed_tokens"])

    def price() -> Array:
        return roofline.grouped_gemm_s(pairs, experts, 2 * width, hidden) + roofline.grouped_gemm_s(pairs, experts, hidden, width)

    return Call("grouped_gemm.bf16", frame, c["latency_us"] * 1e-6, price)


def _products(frame: Any, roofline: Roofline) -> Iterator[Call]:
    """The four products of a dense layer; norms, rotary embedding and activations are other columns."""
    c = columns_of(frame)
    for name in ("tp", "ffn_hidden", "q_heads", "kv_heads", *PRODUCTS):
        if c[name].dtype.kind != "f" or (name not in PRODUCTS and not np.all((c[name] > 0) & (c[name] < np.inf))):
            raise BadFile(f"vidur_mlp: column {name} must hold numbers above 0 alone")
    m, tp, hidden, ffn = c["num_tokens"], c["tp"], c["hidden"], c["ffn_hidden"]
    qkv = (c["q_heads"] + 2 * c["kv_heads"]) * hidden / c["q_heads"] / tp
    shapes = (qkv, hidden), (hidden, hidden / tp), (2 * ffn / tp, hidden), (hidden, ffn / tp)
    for name, (n, k) in zip(PRODUCTS, shapes, strict=True):
        at = np.nonzero(c[name] > 0)[0]

        def price(n: Array = n, k: Array = k, at: Any = at) -> Array:
            return roofline.gemm_s(m[at], n[at], k[at])

        if len(at):
            yield Call("gemm.bf16", frame.iloc[at], c[name][at] * 1e-6, price)


def _networks(frame: Any, network: Network) -> Iterator[Call]:
    """All-reduces, and sends between nodes: ``devices_per_node`` ranks on each node. Sends inside a node are a family that is fitted."""
    width = network.cluster.gpus_per_node
    for (op, workers, here), part in frame.groupby(["collective", "num_workers", "devices_per_node"]):
        c, one = columns_of(part), workers == here

        def reduce(c: Any = c, n: float = workers, stride: float = 1 if one else width // here) -> Array:
            return network.all_reduce_s(c["bytes"], n, stride)

        def send(c: Any = c) -> Array:
            return network.p2p_s(c["bytes"], width, senders=1)

        if op == "all_reduce" or (op == "send_recv" and not one):
            yield Call(f"{op}.{'node' if one else 'nodes'}", part, c["latency_us"] * 1e-6, reduce if op == "all_reduce" else send)


def engines(gpu: Accelerator, fits: Calibration) -> tuple[Roofline, Network]:
    """What prices the kernels and the collectives of a card."""
    cluster = registry.cluster(gpu.name, 8)
    return Roofline(gpu, fits), Network(cluster, gpu, registry.link(cluster.intra), registry.link(cluster.inter), fits)
