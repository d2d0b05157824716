"""Row-wise and element-wise kernels of a transformer layer: RMSNorm with its residual addition, rotary embedding, SwiGLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, next_power_of_2

EPS = 1e-6
ROPE_BASE = 10_000.0


@triton.jit
def _rms_norm(x, residual, gain, out, residual_out, width, eps, BLOCK: tl.constexpr):
    """``r = x + residual``; ``out = r / sqrt(mean(r²) + eps) · gain``; ``residual_out = r``."""
    row, total = tl.program_id(0).to(tl.int64) * width, tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, width, BLOCK):
        col = start + tl.arange(0, BLOCK)
        ok = col < width
        both = tl.load(x + row + col, mask=ok, other=0.0).to(tl.float32) + tl.load(residual + row + col, mask=ok, other=0.0).to(tl.float32)
        tl.store(residual_out + row + col, both.to(residual_out.dtype.element_ty), mask=ok)
        total += both * both
    shrink = 1.0 / tl.sqrt(tl.sum(total, 0) / width + eps)
    for start in range(0, width, BLOCK):
        col = start + tl.arange(0, BLOCK)
        ok = col < width
        both = tl.load(x + row + col, mask=ok, other=0.0).to(tl.float32) + tl.load(residual + row + col, mask=ok, other=0.0).to(tl.float32)
        tl.store(out + row + col, (both * shrink * tl.load(gain + col, mask=ok, other=0.0)).to(out.dtype.element_ty), mask=ok)


@triton.jit
def _rope(x, cosines, sines, out, n_heads, HALF: tl.constexpr, HEADS: tl.constexpr):
    """Rotate dimensions (i, i + HALF) of every head of one token by the angle whose cosine and sine are tabled at [token, i]."""
    token, head, i = tl.program_id(0).to(tl.int64), tl.arange(0, HEADS), tl.arange(0, HALF)
    cos, sin = tl.load(cosines + token * HALF + i)[None, :], tl.load(sines + token * HALF + i)[None, :]
    at = (token * n_heads + head[:, None]) * 2 * HALF + i[None, :]
    ok = (head < n_heads)[:, None]
    first, second = tl.load(x + at, mask=ok, other=0.0).to(tl.float32), tl.load(x + at + HALF, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + at, (first * cos - second * sin).to(out.dtype.element_ty), mask=ok)
    tl.store(out + at + HALF, (second * cos + first * sin).to(out.dtype.element_ty), mask=ok)


@triton.jit
def _swiglu(x, out, width, BLOCK: tl.constexpr):
    """``out = silu(x[:, :width]) · x[:, width:]``."""
    row, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = col < width
    gate = tl.load(x + row * 2 * width + col, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + col, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * width + col, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=ok)


def _norm_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, width = dims(shape, "num_tokens", "hidden_size")
    kind = TORCH_DTYPE[dtype]
    return {
        "x": draw.normal(tokens, width, dtype=kind), "residual": draw.normal(tokens, width, dtype=kind),
        "gain": draw.normal(width, dtype=torch.float32), "out": draw.empty(tokens, width, dtype=kind),
        "residual_out": draw.empty(tokens, width, dtype=kind),
    }  # fmt: skip


def _norm_run(inputs: Inputs, config: Config) -> None:
    x, width = inputs["x"], inputs["x"].shape[1]
    block = min(config["BLOCK"], next_power_of_2(width))
    _rms_norm[(x.shape[0],)](
        x, inputs["residual"], inputs["gain"], inputs["out"], inputs["residual_out"], width, EPS, BLOCK=block, num_warps=config["num_warps"]
    )


def _norm_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    both = inputs["x"].double() + inputs["residual"].double()
    return {"out": both * (both.square().mean(1, keepdim=True) + EPS).rsqrt() * inputs["gain"].double(), "residual_out": both}


def _norm_bytes(shape: Shape, dtype: str) -> float:
    """x and residual in, both outputs out, the gains."""
    tokens, width = dims(shape, "num_tokens", "hidden_size")
    return 4.0 * tokens * width * ITEM_BYTES[dtype] + 4 * width


def _rope_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, heads, dim = dims(shape, "num_tokens", "num_heads", "head_dim")
    kind = TORCH_DTYPE[dtype]
    inverse = ROPE_BASE ** (-torch.arange(0, dim, 2, device=draw.device) / dim)
    angles = torch.arange(tokens, device=draw.device)[:, None] * inverse[None, :]
    return {
        "x": draw.normal(tokens, heads, dim, dtype=kind), "out": draw.empty(tokens, heads, dim, dtype=kind),
        "cosines": draw.given(angles.cos(), torch.float32), "sines": draw.given(angles.sin(), torch.float32),
    }  # fmt: skip


def _rope_run(inputs: Inputs, config: Config) -> None:
    tokens, heads, dim = inputs["x"].shape
    _rope[(tokens,)](
        inputs["x"], inputs["cosines"], inputs["sines"], inputs["out"], heads, HALF=dim // 2, HEADS=next_power_of_2(heads), **config
    )


def _rope_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    first, second = inputs["x"].double().chunk(2, dim=2)
    cos, sin = inputs["cosines"].double()[:, None], inputs["sines"].double()[:, None]
    return {"out": torch.cat([first * cos - second * sin, second * cos + first * sin], 2)}


def _rope_bytes(shape: Shape, dtype: str) -> float:
    """Vectors in and out, four-byte cosines and sines in."""
    tokens, heads, dim = dims(shape, "num_tokens", "num_heads", "head_dim")
    return 2.0 * tokens * heads * dim * ITEM_BYTES[dtype] + 4.0 * tokens * dim


def _swiglu_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, width = dims(shape, "num_tokens", "inter_size")
    kind = TORCH_DTYPE[dtype]
    return {"x": draw.normal(tokens, 2 * width, dtype=kind), "out": draw.empty(tokens, width, dtype=kind)}


def _swiglu_run(inputs: Inputs, config: Config) -> None:
    tokens, width = inputs["out"].shape
    _swiglu[(tokens, cdiv(width, config["BLOCK"]))](inputs["x"], inputs["out"], width, **config)


def _swiglu_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    gate, up = inputs["x"].double().chunk(2, dim=1)
    return {"out": torch.nn.functional.silu(gate) * up}


def _swiglu_bytes(shape: Shape, dtype: str) -> float:
    """Gate and up in, product out."""
    tokens, width = dims(shape, "num_tokens", "inter_size")
    return 3.0 * tokens * width * ITEM_BYTES[dtype]


def _no_flops(shape: Shape, dtype: str) -> float:
    """Bound by memory on every card: element-wise arithmetic is not counted."""
    return 0.0


def _row_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"BLOCK": 4096, "num_warps": 8}, {"BLOCK": 1024, "num_warps": 4})


def _rope_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"num_warps": 4}, {"num_warps": 8})


_TOKENS = (1, 16, 128, 1024, 4096, 16384, 65536)


def _spec(name: str, outputs: tuple[str, ...], parts: tuple[Callable[..., Any], ...], shapes: tuple[Shape, ...],
          checks: tuple[Shape, ...], configs: Callable[[Shape, str], tuple[Config, ...]]) -> KernelSpec:  # fmt: skip
    make_inputs, run, reference, moved_bytes = parts
    return KernelSpec(
        name=name, family="elementwise", dtypes=("bfloat16",), outputs=outputs, make_inputs=make_inputs, run=run, reference=reference,
        flops=_no_flops, moved_bytes=moved_bytes, shapes=shapes, checks=checks, configs=configs,
    )  # fmt: skip


SPECS = (
    _spec("rms_norm", ("out", "residual_out"), (_norm_inputs, _norm_run, _norm_reference, _norm_bytes),
          grid(num_tokens=_TOKENS, hidden_size=(2048, 4096, 8192)),
          grid(num_tokens=(5,), hidden_size=(1, 200, 1025)), _row_configs),
    _spec("rope", ("out",), (_rope_inputs, _rope_run, _rope_reference, _rope_bytes),
          grid(num_tokens=_TOKENS, num_heads=(8, 40), head_dim=(64, 128)),
          ({"num_tokens": 9, "num_heads": 5, "head_dim": 64}, {"num_tokens": 70, "num_heads": 2, "head_dim": 128}), _rope_configs),
    _spec("swiglu", ("out",), (_swiglu_inputs, _swiglu_run, _swiglu_reference, _swiglu_bytes),
          grid(num_tokens=_TOKENS, inter_size=(1792, 14336)),
          ({"num_tokens": 5, "inter_size": 333}, {"num_tokens": 2, "inter_size": 1024}), _row_configs),
)  # fmt: skip
