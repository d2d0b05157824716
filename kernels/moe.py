"""Mixture-of-experts feed-forward: top-k router, permutation by expert, two grouped GEMMs around SwiGLU, weighted return.

Launch shapes depend on sizes only, never on the routing, so that a whole layer can be captured as one CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined, launch, next_power_of_2


@triton.jit
def _route(logits, ids, weights, n_experts, TOPK: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr):
    """The TOPK largest logits of one token and their softmax among themselves."""
    token = tl.program_id(0).to(tl.int64)
    expert, slot = tl.arange(0, EXPERTS), tl.arange(0, SLOTS)
    left = tl.load(logits + token * n_experts + expert, mask=expert < n_experts, other=float("-inf")).to(tl.float32)
    best = tl.full((SLOTS,), float("-inf"), dtype=tl.float32)
    who = tl.zeros((SLOTS,), dtype=tl.int32)
    for i in tl.static_range(TOPK):
        winner = tl.argmax(left, 0).to(tl.int32)
        best = tl.where(slot == i, tl.max(left, 0), best)
        who = tl.where(slot == i, winner, who)
        left = tl.where(expert == winner, float("-inf"), left)
    share = tl.exp(best - tl.max(best, 0))
    tl.store(ids + token * TOPK + slot, who, mask=slot < TOPK)
    tl.store(weights + token * TOPK + slot, share / tl.sum(share, 0), mask=slot < TOPK)


@triton.jit
def gather_rows(x, order, out, topk, width, BLOCK: tl.constexpr):
    """``out[i] = x[order[i] // topk]``: the token copies in expert order."""
    row, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(order + row) // topk
    tl.store(out + row * width + col, tl.load(x + source * width + col, mask=col < width), mask=col < width)


@triton.jit
def return_rows(y, place, weights, out, width, TOPK: tl.constexpr, BLOCK: tl.constexpr):
    """``out[t] = Σ_j weights[t, j] · y[place[t, j]]``."""
    token, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in tl.static_range(TOPK):
        row = tl.load(place + token * TOPK + j)
        acc += tl.load(weights + token * TOPK + j) * tl.load(y + row * width + col, mask=col < width, other=0.0).to(tl.float32)
    tl.store(out + token * width + col, acc.to(out.dtype.element_ty), mask=col < width)


@triton.jit
def _grouped_gemm(x, w, out, starts, tile_expert, tile_first, n, k, n_experts,
                  SWIGLU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """``out[rows of e] = x[rows of e] · w[e]ᵀ``; with SWIGLU ``w[e]`` stacks gate and up, and ``silu(gate) · up`` is written."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert + tile)
    if expert >= n_experts:
        return
    stop = tl.load(starts + expert + 1)
    rows = tl.load(starts + expert) + (tile - tl.load(tile_first + expert)) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_ptr = x + rows[:, None].to(tl.int64) * k + inner[None, :]
    height = 2 * n if SWIGLU else n
    w_ptr = w + (expert.to(tl.int64) * height + cols[None, :]) * k + inner[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        left = inner < k - start
        x_tile = tl.load(x_ptr + start, mask=(rows < stop)[:, None] & left[None, :], other=0.0)
        mask = (cols < n)[None, :] & left[:, None]
        acc = tl.dot(x_tile, tl.load(w_ptr + start, mask=mask, other=0.0), acc)
        if SWIGLU:
            up = tl.dot(x_tile, tl.load(w_ptr + n * k + start, mask=mask, other=0.0), up)
    if SWIGLU:
        acc = acc * tl.sigmoid(acc) * up
    out_ptr = out + rows[:, None].to(tl.int64) * n + cols[None, :]
    tl.store(out_ptr, acc.to(out.dtype.element_ty), mask=(rows < stop)[:, None] & (cols < n)[None, :])


def expert_order(ids: torch.Tensor, n_experts: int, block: int) -> dict[str, torch.Tensor]:
    """Token copies sorted by expert, where each copy went, and which expert each tile of ``block`` rows belongs to."""
    flat = ids.flatten()
    expert, order = torch.sort(flat, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(flat.numel(), device=flat.device))
    starts = torch.searchsorted(expert, torch.arange(n_experts + 1, device=flat.device, dtype=flat.dtype))
    tiles = (starts.diff() + block - 1) // block
    last = tiles.cumsum(0)
    tile = torch.arange(cdiv(flat.numel(), block) + n_experts, device=flat.device)
    return {
        "order": order, "place": place, "starts": starts.to(torch.int32), "tile_first": (last - tiles).to(torch.int32),
        "tile_expert": torch.searchsorted(last, tile, right=True).to(torch.int32),
    }  # fmt: skip


def draw_logits(shape: Shape, draw: Draw, dtype: torch.dtype) -> torch.Tensor:
    """Router logits: ``balanced`` sends each token to consecutive experts in turn, ``power_law_a`` draws expert e with weight (e+1)^-a."""
    tokens, topk, experts = dims(shape, "num_tokens", "topk", "num_experts")
    routing = str(shape["routing"])
    noise = draw.uniform(tokens, experts, dtype=torch.float32, low=1e-6, high=1.0)
    index = torch.arange(experts, device=noise.device)
    if routing == "balanced":
        turn = (index[None, :] - torch.arange(tokens, device=noise.device)[:, None] * topk) % experts
        return draw.given((turn < topk) * 4.0 + noise, dtype)
    weight = -float(routing.removeprefix("power_law_")) * torch.log(index + 1.0)
    return draw.given(weight[None, :] - torch.log(-torch.log(noise)), dtype)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, hidden, inter, topk, experts = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    kind, copies = TORCH_DTYPE[dtype], tokens * topk
    return {
        "x": draw.normal(tokens, hidden, dtype=kind),
        "logits": draw_logits(shape, draw, torch.float32),
        "w_in": draw.normal(experts, 2 * inter, hidden, dtype=kind, scale=hidden**-0.5),
        "w_out": draw.normal(experts, hidden, inter, dtype=kind, scale=inter**-0.5),
        "ids": draw.empty(tokens, topk, dtype=torch.int32),
        "weights": draw.empty(tokens, topk, dtype=torch.float32),
        "permuted": draw.empty(copies, hidden, dtype=kind),
        "middle": draw.empty(copies, inter, dtype=kind),
        "expert_out": draw.empty(copies, hidden, dtype=kind),
        "out": draw.empty(tokens, hidden, dtype=kind),
        "scratch": ("ids", "weights", "permuted", "middle", "expert_out"),
    }


def _run_router(inputs: Inputs, config: Config) -> None:
    logits, ids = inputs["logits"], inputs["ids"]
    (tokens, experts), topk = logits.shape, ids.shape[1]
    _route[(tokens,)](
        logits, ids, inputs["weights"], experts, TOPK=topk, SLOTS=next_power_of_2(topk), EXPERTS=next_power_of_2(experts), num_warps=1
    )


def grouped_gemm(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, plan: dict[str, torch.Tensor], swiglu: bool, config: Config) -> None:
    """Multiply the sorted rows of each expert with its weights; ``plan`` comes from ``expert_order`` with the same BLOCK_M."""
    n, k = out.shape[1], x.shape[1]
    launch = (plan["tile_expert"].numel(), cdiv(n, config["BLOCK_N"]))
    _grouped_gemm[launch](x, w, out, plan["starts"], plan["tile_expert"], plan["tile_first"], n, k, w.shape[0], SWIGLU=swiglu, **config)


def _run_layer(inputs: Inputs, config: Config) -> None:
    x, ids, out = inputs["x"], inputs["ids"], inputs["out"]
    (tokens, hidden), topk, copies = x.shape, ids.shape[1], inputs["permuted"].shape[0]
    _run_router(inputs, config)
    plan = expert_order(ids, inputs["w_in"].shape[0], config["BLOCK_M"])
    gather_rows[(copies, cdiv(hidden, 1024))](x, plan["order"], inputs["permuted"], topk, hidden, BLOCK=1024)
    grouped_gemm(inputs["permuted"], inputs["w_in"], inputs["middle"], plan, True, config)
    grouped_gemm(inputs["middle"], inputs["w_out"], inputs["expert_out"], plan, False, config)
    return_rows[(tokens, cdiv(hidden, 1024))](inputs["expert_out"], plan["place"], inputs["weights"], out, hidden, TOPK=topk, BLOCK=1024)


def _reference_router(inputs: Inputs) -> dict[str, torch.Tensor]:
    best = inputs["logits"].double().topk(inputs["ids"].shape[1])
    return {"ids": best.indices.int(), "weights": best.values.softmax(-1)}


def _reference_layer(inputs: Inputs) -> dict[str, torch.Tensor]:
    routed = _reference_router(inputs)
    x, out = inputs["x"].double(), torch.zeros(inputs["x"].shape, dtype=torch.float64)
    for expert in range(inputs["w_in"].shape[0]):
        token, slot = torch.where(routed["ids"] == expert)
        gate, up = (x[token] @ inputs["w_in"][expert].double().T).chunk(2, dim=1)
        y = (torch.nn.functional.silu(gate) * up) @ inputs["w_out"][expert].double().T
        out.index_add_(0, token, y * routed["weights"][token, slot, None])
    return {"out": out}


def _flops(shape: Shape, dtype: str) -> float:
    """``6 · tokens · topk · hidden · inter``: gate, up and down projections of every token copy."""
    tokens, hidden, inter, topk = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk")
    return 6.0 * tokens * topk * hidden * inter


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """Tokens in and out once, and the weights of the experts certainly hit: all when balanced and enough copies, else topk."""
    tokens, hidden, inter, topk, experts = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    hit = min(experts, tokens * topk) if shape["routing"] == "balanced" else topk
    return (2.0 * tokens * hidden + 3.0 * hit * hidden * inter) * ITEM_BYTES[dtype]


def _router_bytes(shape: Shape, dtype: str) -> float:
    """Logits in, indices and weights out, four bytes each."""
    tokens, topk, experts = dims(shape, "num_tokens", "topk", "num_experts")
    return 4.0 * tokens * (experts + 2 * topk)


def _no_flops(shape: Shape, dtype: str) -> float:
    """Comparisons are not counted as FLOPs."""
    return 0.0


def configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    """Launch configurations to try: tiles grow with the rows that an expert gets (float32 runs under the interpreter: one small tile)."""
    if dtype == "float32":
        return (launch(4, 2, BLOCK_M=16, BLOCK_N=32, BLOCK_K=32),)
    per_expert = int(shape["num_tokens"]) * int(shape["topk"]) / int(shape["num_experts"])
    small = launch(4, 4, BLOCK_M=16, BLOCK_N=64, BLOCK_K=64)
    middle = launch(4, 3, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64)
    large = launch(8, 3, BLOCK_M=128, BLOCK_N=64, BLOCK_K=64)
    return (small, middle) if per_expert <= 16 else (middle, large)


def _check(tokens: int, hidden: int, inter: int, topk: int, experts: int, routing: str) -> Shape:
    return {"num_tokens": tokens, "hidden_size": hidden, "inter_size": inter, "topk": topk, "num_experts": experts,
            "tp_size": 1, "ep_size": 1, "routing": routing}  # fmt: skip


MODELS = tuple({"hidden_size": h, "inter_size": i, "topk": k, "num_experts": e, "tp_size": 1, "ep_size": 1}
                for h, i, k, e in ((4096, 1792, 2, 8), (2048, 768, 8, 128), (7168, 2048, 8, 32), (2880, 360, 4, 128)))  # fmt: skip
"""Mixtral split by 8, Qwen3-30B-A3B, DeepSeek-V3 on one rank of 8, gpt-oss split by 8."""
TOKENS = grid(num_tokens=(1, 8, 64, 256, 1024, 4096, 16384), routing=("balanced", "power_law_1.01", "power_law_1.2"))
_SHAPES = joined(TOKENS, MODELS)
CHECKS = (
    _check(40, 72, 48, 2, 8, "balanced"), _check(21, 130, 65, 3, 7, "power_law_1.2"), _check(1, 64, 32, 2, 4, "balanced"),
    _check(24, 64, 40, 4, 16, "power_law_1.01"),
)  # fmt: skip
BALANCED = tuple(s for s in _SHAPES if s["routing"] == "balanced")
"""For the parts whose time does not depend on where tokens go."""
_COMMON: dict[str, Any] = {"make_inputs": _make_inputs, "shapes": _SHAPES, "checks": CHECKS, "configs": configs}

SPECS = (
    KernelSpec(
        name="moe_layer", family="moe", dtypes=("bfloat16",), outputs=("out",), run=_run_layer, reference=_reference_layer,
        flops=_flops, moved_bytes=_moved_bytes, tolerance_factor=2.0, **_COMMON,
    ),
    KernelSpec(
        name="moe_router", family="moe_router", dtypes=("float32",), outputs=("ids", "weights"), run=_run_router,
        reference=_reference_router, flops=_no_flops, moved_bytes=_router_bytes, check_dtypes=("float32",),
        **_COMMON | {"shapes": BALANCED},
    ),
)  # fmt: skip
