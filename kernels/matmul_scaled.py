"""GEMMs whose scales change along k: fp8 with a scale per 1x128 / 128x128 block, and 4-bit weights in groups of 128."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .draw import Draw
from .matmul import LAYERS, SHAPES, tile_of
from .spec import TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, joined, launch

BLOCK = 128


@triton.jit
def _gemm_fp8_block(a, w, c, a_scale, w_scale, m, n, k, n_blocks,
                    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_ptr = a + rows[:, None].to(tl.int64) * k + inner[None, :]
    w_ptr = w + cols[None, :].to(tl.int64) * k + inner[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for block in range(n_blocks):
        start = block * BLOCK_K
        left = inner < k - start
        a_tile = tl.load(a_ptr + start, mask=(rows < m)[:, None] & left[None, :], other=0.0)
        w_tile = tl.load(w_ptr + start, mask=(cols < n)[None, :] & left[:, None], other=0.0)
        a_s = tl.load(a_scale + rows * n_blocks + block, mask=rows < m, other=0.0)
        w_s = tl.load(w_scale + (cols // 128) * n_blocks + block, mask=cols < n, other=0.0)
        acc += tl.dot(a_tile, w_tile) * a_s[:, None] * w_s[None, :]
    c_ptr = c + rows[:, None].to(tl.int64) * n + cols[None, :]
    tl.store(c_ptr, acc.to(c.dtype.element_ty), mask=(rows < m)[:, None] & (cols < n)[None, :])


@triton.jit
def _gemm_int4(a, w, c, scale, zero, m, n, k, n_groups,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HALF: tl.constexpr, GROUP_M: tl.constexpr):  # fmt: skip
    """Byte j of a group of 2·HALF weights holds weight j in its low and weight j + HALF in its high half."""
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, HALF)
    a_ptr = a + rows[:, None].to(tl.int64) * k + inner[None, :]
    w_ptr = w + cols[None, :].to(tl.int64) * (k // 2) + inner[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(n_groups):
        packed = tl.load(w_ptr + group * HALF, mask=(cols < n)[None, :], other=0)
        s = tl.load(scale + cols * n_groups + group, mask=cols < n, other=0.0)[None, :]
        z = tl.load(zero + cols * n_groups + group, mask=cols < n, other=0.0)[None, :]
        low = (((packed & 15).to(tl.float32) - z) * s).to(a.dtype.element_ty)
        high = (((packed >> 4).to(tl.float32) - z) * s).to(a.dtype.element_ty)
        first = tl.load(a_ptr + group * 2 * HALF, mask=(rows < m)[:, None], other=0.0)
        second = tl.load(a_ptr + group * 2 * HALF + HALF, mask=(rows < m)[:, None], other=0.0)
        acc = tl.dot(first, low, acc)
        acc = tl.dot(second, high, acc)
    c_ptr = c + rows[:, None].to(tl.int64) * n + cols[None, :]
    tl.store(c_ptr, acc.to(c.dtype.element_ty), mask=(rows < m)[:, None] & (cols < n)[None, :])


def _fp8_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    m, n, k = dims(shape, "m", "n", "k")
    blocks = cdiv(k, BLOCK)
    return {
        "a": draw.normal(m, k, dtype=torch.float8_e4m3fn),
        "w": draw.normal(n, k, dtype=torch.float8_e4m3fn),
        "c": draw.empty(m, n, dtype=torch.float16),
        "a_scale": draw.uniform(m, blocks, dtype=torch.float32, low=0.1),
        "w_scale": draw.uniform(cdiv(n, BLOCK), blocks, dtype=torch.float32, low=0.1),
    }


def _fp8_run(inputs: Inputs, config: Config) -> None:
    a, w = inputs["a"], inputs["w"]
    (m, k), n = a.shape, w.shape[0]
    grid = (cdiv(m, config["BLOCK_M"]) * cdiv(n, config["BLOCK_N"]),)
    blocks = cdiv(k, BLOCK)
    _gemm_fp8_block[grid](a, w, inputs["c"], inputs["a_scale"], inputs["w_scale"], m, n, k, blocks, BLOCK_K=BLOCK, GROUP_M=8, **config)


def _fp8_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    k, n = inputs["a"].shape[1], inputs["w"].shape[0]
    a = inputs["a"].double() * inputs["a_scale"].double().repeat_interleave(BLOCK, 1)[:, :k]
    scale = inputs["w_scale"].double().repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return {"c": a @ (inputs["w"].double() * scale).T}


def _fp8_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    small = int(shape["m"]) <= 64
    return (
        launch(4, 3, BLOCK_M=64, BLOCK_N=64 if small else 128),
        launch(4 if small else 8, 3, BLOCK_M=16 if small else 128, BLOCK_N=128),
    )


def _int4_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    m, n, k = dims(shape, "m", "n", "k")
    if k % BLOCK:
        raise ValueError(f"k={k} is not a multiple of the group size {BLOCK}")
    kind = TORCH_DTYPE[dtype]
    return {
        "a": draw.normal(m, k, dtype=kind),
        "w": draw.integers(0, 256, n, k // 2, dtype=torch.uint8),
        "c": draw.empty(m, n, dtype=kind),
        "scale": draw.uniform(n, k // BLOCK, dtype=kind, low=0.01, high=0.02),
        "zero": draw.integers(0, 16, n, k // BLOCK, dtype=kind),
    }


def _int4_run(inputs: Inputs, config: Config) -> None:
    a, w = inputs["a"], inputs["w"]
    (m, k), n = a.shape, w.shape[0]
    grid = (cdiv(m, config["BLOCK_M"]) * cdiv(n, config["BLOCK_N"]),)
    _gemm_int4[grid](a, w, inputs["c"], inputs["scale"], inputs["zero"], m, n, k, k // BLOCK, HALF=BLOCK // 2, GROUP_M=8, **config)


def _int4_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    packed = inputs["w"].view(inputs["w"].shape[0], -1, BLOCK // 2)
    weights = torch.cat([packed & 15, packed >> 4], dim=2).double()
    weights = (weights - inputs["zero"].double()[:, :, None]) * inputs["scale"].double()[:, :, None]
    return {"c": inputs["a"].double() @ weights.flatten(1).T}


def _int4_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    if int(shape["m"]) <= 16:
        return (launch(4, 4, BLOCK_M=16, BLOCK_N=64),)
    return (launch(4, 3, BLOCK_M=64, BLOCK_N=64), launch(8, 3, BLOCK_M=128, BLOCK_N=64))


def _flops(shape: Shape, dtype: str) -> float:
    """``2 m n k``."""
    m, n, k = dims(shape, "m", "n", "k")
    return 2.0 * m * n * k


def _fp8_bytes(shape: Shape, dtype: str) -> float:
    """One byte an operand element, four a scale, two a result."""
    m, n, k = dims(shape, "m", "n", "k")
    blocks = cdiv(k, BLOCK)
    return float(m) * k + float(n) * k + 4.0 * (m * blocks + cdiv(n, BLOCK) * blocks) + 2.0 * m * n


def _int4_bytes(shape: Shape, dtype: str) -> float:
    """16-bit activations and results, half a byte a weight, a 16-bit scale and zero per group."""
    m, n, k = dims(shape, "m", "n", "k")
    return 2.0 * m * k + 0.5 * n * k + 4.0 * n * (k // BLOCK) + 2.0 * m * n


_SMALL_ROWS = joined(tuple({"m": m} for m in (1, 4, 16, 64, 256, 1024, 4096)), tuple({"n": n, "k": k} for n, k in LAYERS))

SPECS = (
    KernelSpec(
        name="gemm_fp8_block",
        family="gemm",
        dtypes=("fp8_block",),
        outputs=("c",),
        make_inputs=_fp8_inputs,
        run=_fp8_run,
        reference=_fp8_reference,
        flops=_flops,
        moved_bytes=_fp8_bytes,
        shapes=SHAPES,
        checks=({"m": 70, "n": 200, "k": 256}, {"m": 17, "n": 130, "k": 200}, {"m": 1, "n": 64, "k": 128}),
        configs=_fp8_configs,
        check_dtypes=("fp8_block",),
        min_capability={"fp8_block": 89},
    ),
    KernelSpec(
        name="gemm_int4",
        family="gemm",
        dtypes=("int4_wo",),
        outputs=("c",),
        make_inputs=_int4_inputs,
        run=_int4_run,
        reference=_int4_reference,
        flops=_flops,
        moved_bytes=_int4_bytes,
        shapes=_SMALL_ROWS,
        checks=({"m": 70, "n": 200, "k": 256}, {"m": 129, "n": 33, "k": 128}, {"m": 3, "n": 65, "k": 256}),
        configs=_int4_configs,
        check_dtypes=("int4_wo_fp16",),
        tolerance_factor=2.0,
    ),
)
