"""One AdamW step over a flat shard: 32-bit master weights and moments, 16-bit gradients in and weights out.

Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithm 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, grid

LR, BETA1, BETA2, EPS, DECAY, STEP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 10


@triton.jit
def _adamw(grad, master, m, v, new_master, new_m, new_v, weight, n, lr, beta1, beta2, eps, decay, fix1, fix2, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < n
    g, p = tl.load(grad + at, mask=ok, other=0.0).to(tl.float32), tl.load(master + at, mask=ok, other=0.0)
    m1 = beta1 * tl.load(m + at, mask=ok, other=0.0) + (1 - beta1) * g
    v1 = beta2 * tl.load(v + at, mask=ok, other=0.0) + (1 - beta2) * g * g
    p = p * (1 - lr * decay) - lr * (m1 / fix1) / (tl.sqrt(v1 / fix2) + eps)
    tl.store(new_m + at, m1, mask=ok)
    tl.store(new_v + at, v1, mask=ok)
    tl.store(new_master + at, p, mask=ok)
    tl.store(weight + at, p.to(weight.dtype.element_ty), mask=ok)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    n, kind = int(shape["num_params"]), TORCH_DTYPE[dtype]
    outs = {name: draw.empty(n, dtype=torch.float32) for name in ("new_master", "new_m", "new_v")}
    return {
        "grad": draw.normal(n, dtype=kind), "master": draw.normal(n, dtype=torch.float32), "m": draw.normal(n, dtype=torch.float32),
        "v": draw.uniform(n, dtype=torch.float32), "weight": draw.empty(n, dtype=kind), **outs,
    }  # fmt: skip


def _run(inputs: Inputs, config: Config) -> None:
    n = inputs["grad"].numel()
    tensors = (inputs[name] for name in ("grad", "master", "m", "v", "new_master", "new_m", "new_v", "weight"))
    _adamw[(cdiv(n, config["BLOCK"]),)](*tensors, n, LR, BETA1, BETA2, EPS, DECAY, 1 - BETA1**STEP, 1 - BETA2**STEP, **config)


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    g, p, m, v = (inputs[name].double() for name in ("grad", "master", "m", "v"))
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
    p = p * (1 - LR * DECAY) - LR * (m / (1 - BETA1**STEP)) / ((v / (1 - BETA2**STEP)).sqrt() + EPS)
    return {"new_master": p, "new_m": m, "new_v": v, "weight": p}


def _no_flops(shape: Shape, dtype: str) -> float:
    """Bound by memory on every card: element-wise arithmetic is not counted."""
    return 0.0


def _moved_bytes(shape: Shape, dtype: str) -> float:
    """Master, m and v in and out at four bytes, gradient in and weight out: 28 bytes a parameter in 16-bit training."""
    return float(int(shape["num_params"])) * (24 + 2 * ITEM_BYTES[dtype])


def _configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 4096, "num_warps": 8})


SPECS = (
    KernelSpec(
        name="adamw",
        family="optimizer",
        dtypes=("bfloat16",),
        outputs=("new_master", "new_m", "new_v", "weight"),
        make_inputs=_make_inputs,
        run=_run,
        reference=_reference,
        flops=_no_flops,
        moved_bytes=_moved_bytes,
        shapes=grid(num_params=(2**16, 2**20, 2**24, 2**26, 2**28)),
        checks=({"num_params": 1000}, {"num_params": 4097}, {"num_params": 1}),
        configs=_configs,
    ),
)
