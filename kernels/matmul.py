"""Dense GEMM ``C[m,n] = A[m,k] · W[n,k]ᵀ``: bf16, fp16, fp8 with a scale per tensor, int8 with a scale per row and column."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .device import has_tma
from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, joined, launch


@triton.jit
def tile_of(pid, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The (row, column) tile of a program, walked in groups of GROUP_M rows so that neighbours share W in the L2."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(n, BLOCK_N)
    first = (pid // per_group) * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    return first + (pid % per_group) % rows, (pid % per_group) // rows


@triton.jit
def _scaled(acc, a_scale, w_scale, rows, cols, m, n, SCALE: tl.constexpr):
    if SCALE == 0:
        out = acc
    elif SCALE == 1:
        out = acc * (tl.load(a_scale) * tl.load(w_scale))
    else:
        a_s = tl.load(a_scale + rows, mask=rows < m, other=0.0)
        w_s = tl.load(w_scale + cols, mask=cols < n, other=0.0)
        out = acc.to(tl.float32) * a_s[:, None] * w_s[None, :]
    return out


@triton.jit
def _gemm_tma(a, w, c, a_scale, w_scale, m, n, k, SCALE: tl.constexpr, ACC: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        acc = tl.dot(a.load([tile_m * BLOCK_M, start]), w.load([tile_n * BLOCK_N, start]).T, acc, out_dtype=ACC)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    c.store([tile_m * BLOCK_M, tile_n * BLOCK_N], _scaled(acc, a_scale, w_scale, rows, cols, m, n, SCALE).to(c.dtype))


@triton.jit
def _gemm_masked(a, w, c, a_scale, w_scale, m, n, k, SCALE: tl.constexpr, ACC: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    a_ptr = a + rows[:, None].to(tl.int64) * k + inner[None, :]
    w_ptr = w + cols[None, :].to(tl.int64) * k + inner[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        left = inner < k - start
        a_tile = tl.load(a_ptr + start, mask=(rows < m)[:, None] & left[None, :], other=0.0)
        w_tile = tl.load(w_ptr + start, mask=(cols < n)[None, :] & left[:, None], other=0.0)
        acc = tl.dot(a_tile, w_tile, acc, out_dtype=ACC)
    out = _scaled(acc, a_scale, w_scale, rows, cols, m, n, SCALE)
    c_ptr = c + rows[:, None].to(tl.int64) * n + cols[None, :]
    tl.store(c_ptr, out.to(c.dtype.element_ty), mask=(rows < m)[:, None] & (cols < n)[None, :])


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether rows start on 16 bytes, as tensor descriptors require."""
    return all(t.shape[-1] * t.element_size() % 16 == 0 for t in tensors)


def _run(inputs: Inputs, config: Config) -> None:
    a, w, c = inputs["a"], inputs["w"], inputs["c"]
    (m, k), n = a.shape, w.shape[0]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    acc = tl.int32 if a.dtype == torch.int8 else tl.float32
    if has_tma(a) and aligned(a, w, c):
        kernel = _gemm_tma
        tensors = (
            TensorDescriptor.from_tensor(a, [block_m, block_k]),
            TensorDescriptor.from_tensor(w, [block_n, block_k]),
            TensorDescriptor.from_tensor(c, [block_m, block_n]),
        )
    else:
        kernel, tensors = _gemm_masked, (a, w, c)
    grid = (cdiv(m, block_m) * cdiv(n, block_n),)
    kernel[grid](*tensors, inputs["a_scale"], inputs["w_scale"], m, n, k, SCALE=inputs["scale"], ACC=acc, GROUP_M=8, **config)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    m, n, k = dims(shape, "m", "n", "k")
    kind = TORCH_DTYPE[dtype]
    scale = {"fp8": 1, "int8": 2}.get(dtype, 0)
    out = torch.float16 if scale else kind
    if dtype == "int8":
        a, w = draw.integers(-127, 128, m, k, dtype=kind), draw.integers(-127, 128, n, k, dtype=kind)
    else:
        a, w = draw.normal(m, k, dtype=kind), draw.normal(n, k, dtype=kind)
    size_a, size_w = {0: (1, 1), 1: (1, 1), 2: (m, n)}[scale]
    a_scale = draw.uniform(size_a, dtype=torch.float32, low=0.01, high=0.02)
    w_scale = draw.uniform(size_w, dtype=torch.float32, low=0.01, high=0.02)
    return {"a": a, "w": w, "c": draw.empty(m, n, dtype=out), "a_scale": a_scale, "w_scale": w_scale, "scale": scale}


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    c = inputs["a"].double() @ inputs["w"].double().T
    if inputs["scale"]:
        c = c * inputs["a_scale"].double()[:, None] * inputs["w_scale"].double()[None, :]
    return {"c": c}


def flops(shape: Shape, dtype: str) -> float:
    """``2 m n k``."""
    m, n, k = dims(shape, "m", "n", "k")
    return 2.0 * m * n * k


def moved_bytes(shape: Shape, dtype: str) -> float:
    """``(m k + n k) item + 2 m n``: both operands once, the 16-bit result once."""
    m, n, k = dims(shape, "m", "n", "k")
    return (float(m) * k + float(n) * k) * ITEM_BYTES[dtype] + float(m) * n * (4 if dtype == "float32" else 2)


def configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    """Tile shapes to try, the one for this height first; the second fits the shared memory of small cards."""
    wide = 128 if ITEM_BYTES[dtype] == 1 else 64
    if dtype == "float32":
        return (launch(4, 3, BLOCK_M=64, BLOCK_N=64, BLOCK_K=32),)
    if int(shape["m"]) <= 64:
        return (
            launch(4, 4, BLOCK_M=16 if int(shape["m"]) <= 16 else 64, BLOCK_N=64, BLOCK_K=wide),
            launch(4, 3, BLOCK_M=64, BLOCK_N=32, BLOCK_K=wide),
        )
    return (
        launch(8, 3, BLOCK_M=128, BLOCK_N=128, BLOCK_K=wide),
        launch(4, 3, BLOCK_M=64, BLOCK_N=128, BLOCK_K=wide // 2),
        launch(8, 3, BLOCK_M=128, BLOCK_N=256, BLOCK_K=64),
    )


LAYERS: tuple[tuple[int, int], ...] = (
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (57344, 8192), (8192, 28672),
    (128256, 4096), (1280, 8192), (8192, 1024), (2112, 7168), (256, 256),
)  # fmt: skip
"""(n, k) of the linear layers of Llama-3 8B and 70B (whole and split by 8), of DeepSeek-V3's down projection, and a tiny one."""

ROWS = (1, 4, 16, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHAPES = joined(tuple({"m": m} for m in ROWS), tuple({"n": n, "k": k} for n, k in LAYERS))
CHECKS: tuple[Shape, ...] = (
    {"m": 128, "n": 192, "k": 256}, {"m": 77, "n": 129, "k": 91}, {"m": 1, "n": 200, "k": 136}, {"m": 33, "n": 72, "k": 48},
)  # fmt: skip

SPECS = (
    KernelSpec(
        name="gemm",
        family="gemm",
        dtypes=("bfloat16", "float16", "fp8", "int8"),
        outputs=("c",),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=flops,
        moved_bytes=moved_bytes,
        shapes=SHAPES,
        checks=CHECKS,
        configs=configs,
        check_dtypes=("float16", "float32", "int8", "fp8"),
        min_capability={"fp8": 89},
    ),
)
