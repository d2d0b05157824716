"""Linear attention in chunks: a decayed outer-product memory, and the gated delta rule that also erases what it overwrites.

Per head, with state ``S`` [dk, dv], decay ``a_t = exp(g_t)`` and write strength ``β_t``:
``S_t = a_t S_{t-1} + k_t u_tᵀ``, ``o_t = S_tᵀ q_t / √dk``, where ``u_t = v_t`` (decay only) or, by the delta rule,
``u_t = β_t (v_t − a_t S_{t-1}ᵀ k_t)``.
Within a chunk ``U = T (β V) − T (β e^b K) S_0`` with ``T = (I + A)^-1``, ``A_ij = β_i e^{b_i − b_j} k_i·k_j`` below the diagonal, ``b`` the
running sum of ``g``. Source: Yang et al., Gated Delta Networks, arXiv 2412.06464, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch

CHUNK = 64


@triton.jit
def _prepare(k, v, g, beta, w, u, length, heads, CHUNK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr):
    """W = T (β e^b K) and U = T (β V) of one chunk of one head; T by forward substitution, row after row."""
    row, head, batch = tl.arange(0, CHUNK), tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0) * CHUNK + row
    ok = at < length
    token = (batch * length + at).to(tl.int64) * heads + head
    dk, dv = tl.arange(0, DK), tl.arange(0, DV)
    k_tile = tl.load(k + token[:, None] * DK + dk[None, :], mask=ok[:, None], other=0.0)
    strength = tl.load(beta + token, mask=ok, other=0.0)
    b = tl.cumsum(tl.load(g + token, mask=ok, other=0.0), 0)
    below = row[:, None] > row[None, :]
    decay = tl.exp(tl.where(below, b[:, None] - b[None, :], 0.0))
    a = tl.where(below, tl.dot(k_tile, k_tile.T) * decay * strength[:, None], 0.0)
    inverse = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    for i in range(1, CHUNK):
        a_row = tl.sum(tl.where((row == i)[:, None], a, 0.0), 0)
        solved = tl.where(row == i, 1.0, 0.0) - tl.sum(a_row[:, None] * inverse, 0)
        inverse = tl.where((row == i)[:, None], solved[None, :], inverse)
    v_tile = tl.load(v + token[:, None] * DV + dv[None, :], mask=ok[:, None], other=0.0)
    kind = k_tile.dtype
    u_tile = tl.dot((inverse * strength[None, :]).to(kind), v_tile)
    w_tile = tl.dot((inverse * (strength * tl.exp(b))[None, :]).to(kind), k_tile)
    tl.store(u + token[:, None] * DV + dv[None, :], u_tile.to(kind), mask=ok[:, None])
    tl.store(w + token[:, None] * DK + dk[None, :], w_tile.to(kind), mask=ok[:, None])


@triton.jit
def _scan(q, k, u, w, g, out, state, length, heads, scale,
          DELTA: tl.constexpr, CHUNK: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BLOCK_V: tl.constexpr):  # fmt: skip
    """Carry the state over the chunks of one head, for BLOCK_V of its value columns."""
    head, batch = tl.program_id(1), tl.program_id(2)
    row, dk = tl.arange(0, CHUNK), tl.arange(0, DK)
    dv = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    memory = tl.zeros((DK, BLOCK_V), dtype=tl.float32)
    causal = row[:, None] >= row[None, :]
    for start in range(0, length, CHUNK):
        ok = start + row < length
        token = (batch * length + start + row).to(tl.int64) * heads + head
        q_tile = tl.load(q + token[:, None] * DK + dk[None, :], mask=ok[:, None], other=0.0)
        k_tile = tl.load(k + token[:, None] * DK + dk[None, :], mask=ok[:, None], other=0.0)
        kind = k_tile.dtype
        u_tile = tl.load(u + token[:, None] * DV + dv[None, :], mask=ok[:, None], other=0.0)
        decay = tl.load(g + token, mask=ok, other=0.0)
        b = tl.cumsum(decay, 0)
        last = tl.sum(decay, 0)
        kept = memory.to(kind)
        if DELTA:
            w_tile = tl.load(w + token[:, None] * DK + dk[None, :], mask=ok[:, None], other=0.0)
            u_tile = (u_tile - tl.dot(w_tile, kept)).to(kind)
        inner = tl.dot(q_tile, k_tile.T) * tl.exp(tl.where(causal, b[:, None] - b[None, :], -1.0e30))
        o_tile = tl.dot(q_tile, kept) * tl.exp(b)[:, None] + tl.dot(inner.to(kind), u_tile)
        tl.store(out + token[:, None] * DV + dv[None, :], (o_tile * scale).to(kind), mask=ok[:, None])
        aged = (k_tile * tl.exp(last - b)[:, None]).to(kind)
        memory = tl.dot(aged.T, u_tile, memory * tl.exp(last))
    where = ((batch * heads + head) * DK + dk[:, None]) * DV + dv[None, :]
    tl.store(state + where, memory)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    batch, length, heads, dk, dv = dims(shape, "batch_size", "seq_len", "num_heads", "head_dim", "value_dim")
    kind, tokens = TORCH_DTYPE[dtype], batch * length
    return {
        "q": draw.normal(tokens, heads, dk, dtype=kind),
        "k": draw.normal(tokens, heads, dk, dtype=kind, scale=1 / math.sqrt(dk)),
        "v": draw.normal(tokens, heads, dv, dtype=kind),
        "g": draw.uniform(tokens, heads, dtype=torch.float32, low=-0.2, high=0.0),
        "beta": draw.uniform(tokens, heads, dtype=torch.float32),
        "w": draw.empty(tokens, heads, dk, dtype=kind),
        "u": draw.empty(tokens, heads, dv, dtype=kind),
        "out": draw.empty(tokens, heads, dv, dtype=kind),
        "state": draw.empty(batch, heads, dk, dv, dtype=torch.float32),
        "scratch": ("w", "u"),
    }


def _run_scan(inputs: Inputs, config: Config, delta: bool) -> None:
    q, v, (batch, heads, dk, dv) = inputs["q"], inputs["v"], inputs["state"].shape
    length, values = q.shape[0] // batch, inputs["u"] if delta else v
    launch = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    if delta:
        _prepare[(cdiv(length, CHUNK), heads, batch)](
            inputs["k"], v, inputs["g"], inputs["beta"], inputs["w"], inputs["u"], length, heads, CHUNK=CHUNK, DK=dk, DV=dv, **launch
        )
    _scan[(dv // config["BLOCK_V"], heads, batch)](
        q, inputs["k"], values, inputs["w"], inputs["g"], inputs["out"], inputs["state"], length, heads, 1 / math.sqrt(dk),
        DELTA=delta, CHUNK=CHUNK, DK=dk, DV=dv, BLOCK_V=config["BLOCK_V"], **launch,
    )  # fmt: skip


def _run_decay(inputs: Inputs, config: Config) -> None:
    _run_scan(inputs, config, delta=False)


def _run_delta(inputs: Inputs, config: Config) -> None:
    _run_scan(inputs, config, delta=True)


def _recurrence(inputs: Inputs, delta: bool) -> dict[str, torch.Tensor]:
    batch, heads, dk, dv = inputs["state"].shape
    q, k, v, g, beta = (inputs[n].double().unflatten(0, (batch, -1)) for n in ("q", "k", "v", "g", "beta"))
    state, outs = torch.zeros(batch, heads, dk, dv, dtype=torch.float64), []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[:, :, None, None]
        value = v[:, t]
        if delta:
            value = beta[:, t, :, None] * (value - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
        state = state + k[:, t, :, :, None] * value[:, :, None, :]
        outs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / math.sqrt(dk))
    return {"out": torch.stack(outs, 1).flatten(0, 1), "state": state}


def _reference_decay(inputs: Inputs) -> dict[str, torch.Tensor]:
    return _recurrence(inputs, delta=False)


def _reference_delta(inputs: Inputs) -> dict[str, torch.Tensor]:
    return _recurrence(inputs, delta=True)


def _flops(shape: Shape, dtype: str) -> float:
    """``4 · tokens · heads · dk · dv``: one write and one read of the state a token; the chunk form does more."""
    batch, length, heads, dk, dv = dims(shape, "batch_size", "seq_len", "num_heads", "head_dim", "value_dim")
    return 4.0 * batch * length * heads * dk * dv


def _delta_flops(shape: Shape, dtype: str) -> float:
    """``6 · tokens · heads · dk · dv``: the delta rule also reads what it is about to overwrite."""
    return 1.5 * _flops(shape, dtype)


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """q, k, v, gates in; outputs and the last state out."""
    batch, length, heads, dk, dv = dims(shape, "batch_size", "seq_len", "num_heads", "head_dim", "value_dim")
    return batch * heads * (length * ((2 * dk + 2 * dv) * ITEM_BYTES[dtype] + 4) + 4.0 * dk * dv)


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if dtype == "float32":
        return (launch(4, 1, BLOCK_V=32),)
    return (launch(4, 2, BLOCK_V=32), launch(8, 2, BLOCK_V=64))


def _check(batch: int, length: int, heads: int, dk: int, dv: int) -> Shape:
    return {"batch_size": batch, "seq_len": length, "num_heads": heads, "head_dim": dk, "value_dim": dv}


_SHAPES = joined(
    tuple(
        s
        for s in grid(batch_size=(1, 4, 16), seq_len=(512, 2048, 8192, 32768, 131072))
        if int(s["batch_size"]) * int(s["seq_len"]) <= 131072
    ),
    ({"num_heads": 16, "head_dim": 128, "value_dim": 128}, {"num_heads": 32, "head_dim": 128, "value_dim": 128}),
)
_CHECKS = (_check(1, 150, 1, 64, 64), _check(2, 70, 1, 128, 64), _check(1, 33, 2, 64, 128))
_COMMON: dict[str, Any] = {
    "family": "linear_attention", "dtypes": ("bfloat16",), "outputs": ("out", "state"), "make_inputs": _make_inputs,
    "moved_bytes": _moved_bytes, "shapes": _SHAPES, "checks": _CHECKS, "configs": _configs, "tolerance_factor": 3.0,
}  # fmt: skip

SPECS = (
    KernelSpec(name="linear_attention", run=_run_decay, reference=_reference_decay, flops=_flops, **_COMMON),
    KernelSpec(name="gated_delta_rule", run=_run_delta, reference=_reference_delta, flops=_delta_flops, **_COMMON),
)
