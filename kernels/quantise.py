"""Key-value cache quantisation, one scale per token and head: to fp8, int8 and packed int4, and back to 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, grid, joined

LARGEST = {"fp8": 448.0, "fp8_wide": 448.0, "int8": 127.0, "int4": 7.0}
"""Target format -> its largest magnitude; int4 stores -7 … 7 with an offset of 8.

``fp8_wide`` scales as fp8 but stores 16-bit floats: Triton's interpreter rounds fp8 stores wrongly, so this is what it can check.
"""


@triton.jit
def _quantise(x, codes, scales, n_rows, LARGEST: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    """``scale = max|x| / LARGEST`` per row; byte i of an int4 row holds elements i (low half) and i + HALF."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None].to(tl.int64) * 2 * HALF + tl.arange(0, HALF)[None, :]
    ok = (row < n_rows)[:, None]
    first, second = tl.load(x + at, mask=ok, other=0.0).to(tl.float32), tl.load(x + at + HALF, mask=ok, other=0.0).to(tl.float32)
    peak = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
    scale = tl.maximum(peak, 1e-20) / LARGEST
    tl.store(scales + row, scale, mask=row < n_rows)
    first, second = first / scale[:, None], second / scale[:, None]
    if BITS == 8:
        kind: tl.constexpr = codes.dtype.element_ty
        if kind == tl.int8:
            first, second = tl.floor(first + 0.5), tl.floor(second + 0.5)
        tl.store(codes + at, first.to(kind), mask=ok)
        tl.store(codes + at + HALF, second.to(kind), mask=ok)
    else:
        low, high = tl.floor(first + 8.5).to(tl.int32), tl.floor(second + 8.5).to(tl.int32)
        at = row[:, None].to(tl.int64) * HALF + tl.arange(0, HALF)[None, :]
        tl.store(codes + at, (low | (high << 4)).to(tl.uint8), mask=ok)


@triton.jit
def _dequantise(codes, scales, out, n_rows, BITS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None].to(tl.int64) * 2 * HALF + tl.arange(0, HALF)[None, :]
    ok = (row < n_rows)[:, None]
    scale = tl.load(scales + row, mask=row < n_rows, other=0.0)[:, None]
    if BITS == 8:
        first = tl.load(codes + at, mask=ok, other=0.0).to(tl.float32)
        second = tl.load(codes + at + HALF, mask=ok, other=0.0).to(tl.float32)
    else:
        packed = tl.load(codes + row[:, None].to(tl.int64) * HALF + tl.arange(0, HALF)[None, :], mask=ok, other=0).to(tl.int32)
        first, second = (packed & 15).to(tl.float32) - 8.0, (packed >> 4).to(tl.float32) - 8.0
    tl.store(out + at, (first * scale).to(out.dtype.element_ty), mask=ok)
    tl.store(out + at + HALF, (second * scale).to(out.dtype.element_ty), mask=ok)


def _code_tensor(shape: Shape, draw: Draw) -> torch.Tensor:
    tokens, heads, dim = dims(shape, "num_tokens", "num_kv_heads", "head_dim")
    target = str(shape["kv_cache_dtype"])
    kind = torch.uint8 if target == "int4" else torch.float16 if target == "fp8_wide" else TORCH_DTYPE[target]
    width = dim // 2 if target == "int4" else dim
    return draw.empty(tokens, heads, width, dtype=kind)


def _quantise_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, heads, dim = dims(shape, "num_tokens", "num_kv_heads", "head_dim")
    return {
        "x": draw.normal(tokens, heads, dim, dtype=TORCH_DTYPE[dtype]), "codes": _code_tensor(shape, draw),
        "scales": draw.empty(tokens, heads, dtype=torch.float32), "target": str(shape["kv_cache_dtype"]),
    }  # fmt: skip


def _dequantise_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, heads, dim = dims(shape, "num_tokens", "num_kv_heads", "head_dim")
    target, codes = str(shape["kv_cache_dtype"]), _code_tensor(shape, draw)
    if target == "fp8":
        codes.copy_(draw.normal(tokens, heads, dim, dtype=torch.float32, scale=100.0))
    else:
        low, high = (-127, 128) if target == "int8" else (0, 256)
        codes.copy_(draw.integers(low, high, *codes.shape, dtype=torch.int32))
    return {
        "codes": codes, "scales": draw.uniform(tokens, heads, dtype=torch.float32, low=0.01, high=0.1),
        "out": draw.empty(tokens, heads, dim, dtype=TORCH_DTYPE[dtype]), "target": target,
    }  # fmt: skip


def _launch(codes: torch.Tensor, target: str, rows: int) -> tuple[tuple[int], dict[str, int]]:
    n_rows, half = codes.shape[0] * codes.shape[1], codes.shape[2] // (1 if target == "int4" else 2)
    return (cdiv(n_rows, rows),), {"BITS": 4 if target == "int4" else 8, "HALF": half}


def _quantise_run(inputs: Inputs, config: Config) -> None:
    codes, target = inputs["codes"], inputs["target"]
    launch, sizes = _launch(codes, target, config["ROWS"])
    _quantise[launch](inputs["x"], codes, inputs["scales"], codes.shape[0] * codes.shape[1], LARGEST=LARGEST[target], **sizes, **config)


def _dequantise_run(inputs: Inputs, config: Config) -> None:
    codes = inputs["codes"]
    launch, sizes = _launch(codes, inputs["target"], config["ROWS"])
    _dequantise[launch](codes, inputs["scales"], inputs["out"], codes.shape[0] * codes.shape[1], **sizes, **config)


def _quantise_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    x, target = inputs["x"].double(), inputs["target"]
    scale = x.abs().amax(2) / LARGEST[target]
    scaled = x / scale[:, :, None]
    if target == "fp8":
        codes = scaled.to(torch.float8_e4m3fn).double()
    elif target == "fp8_wide":
        codes = scaled
    elif target == "int8":
        codes = (scaled + 0.5).floor()
    else:
        low, high = (scaled + 8.5).floor().chunk(2, 2)
        codes = low + 16 * high
    return {"codes": codes, "scales": scale}


def _dequantise_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    codes = inputs["codes"]
    values = torch.cat([codes & 15, codes >> 4], 2).double() - 8 if inputs["target"] == "int4" else codes.double()
    return {"out": values * inputs["scales"].double()[:, :, None]}


def _no_flops(shape: Shape, dtype: str) -> float:
    """Bound by memory on every card: element-wise arithmetic is not counted."""
    return 0.0


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """16-bit values one way, codes and a four-byte scale per row the other."""
    tokens, heads, dim = dims(shape, "num_tokens", "num_kv_heads", "head_dim")
    return float(tokens * heads) * (dim * (ITEM_BYTES[dtype] + ITEM_BYTES[str(shape["kv_cache_dtype"])]) + 4)


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"ROWS": 16, "num_warps": 4}, {"ROWS": 4, "num_warps": 4})


def _check(tokens: int, heads: int, dim: int, target: str) -> Shape:
    return {"num_tokens": tokens, "num_kv_heads": heads, "head_dim": dim, "kv_cache_dtype": target}


_SIZES = grid(num_tokens=(64, 1024, 8192, 65536, 262144), num_kv_heads=(8,), head_dim=(128,))


def _spec(name: str, outputs: tuple[str, ...], parts: tuple[Callable[..., Any], ...], targets: tuple[str, ...],
          checks: tuple[Shape, ...], gpu_checks: tuple[Shape, ...], least: int) -> KernelSpec:  # fmt: skip
    make_inputs, run, reference = parts
    return KernelSpec(
        name=name, family="kv_quant", dtypes=("bfloat16",), outputs=outputs, make_inputs=make_inputs, run=run, reference=reference,
        flops=_no_flops, moved_bytes=_moved_bytes, shapes=joined(_SIZES, grid(kv_cache_dtype=targets)), checks=checks,
        gpu_checks=gpu_checks, configs=_configs, min_capability={"bfloat16": least}, tolerance_factor=2.0, check_dtypes=("float16",),
        aot_shapes=tuple(_check(8192, 8, 128, t) for t in targets),
    )  # fmt: skip


_OUT, _BACK = (_quantise_inputs, _quantise_run, _quantise_reference), (_dequantise_inputs, _dequantise_run, _dequantise_reference)
SPECS = (
    _spec("kv_quantise", ("codes", "scales"), _OUT, ("int8", "int4"), (_check(9, 3, 64, "int8"), _check(70, 2, 128, "int4")), (), 70),
    _spec("kv_dequantise", ("out",), _BACK, ("int8", "int4"), (_check(9, 3, 64, "int4"), _check(33, 2, 128, "int8")), (), 70),
    _spec("kv_quantise_fp8", ("codes", "scales"), _OUT, ("fp8",), (_check(9, 3, 64, "fp8_wide"), _check(33, 2, 128, "fp8_wide")),
          (_check(9, 3, 64, "fp8"), _check(70, 2, 128, "fp8")), 89),
    _spec("kv_dequantise_fp8", ("out",), _BACK, ("fp8",), (_check(9, 3, 64, "fp8"), _check(65, 1, 128, "fp8")), (), 89),
)  # fmt: skip
