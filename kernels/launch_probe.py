"""The price of a launch: a chain of tiny kernels, from torch and from Triton, eager and replayed as a CUDA graph."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .draw import Draw
from .spec import TORCH, TRITON, Config, Inputs, KernelSpec, Shape, grid


@triton.jit
def _add_one(x):
    tl.store(x, tl.load(x) + 1.0)


def _make_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    return {"x": draw.given([0.0], torch.float32), "zero": draw.given([0.0], torch.float32), "n": int(shape["num_launches"])}


def _torch_run(inputs: Inputs, config: Config) -> None:
    x = inputs["x"]
    x.copy_(inputs["zero"])
    for _ in range(inputs["n"] - 1):
        x.add_(1.0)


def _triton_run(inputs: Inputs, config: Config) -> None:
    x = inputs["x"]
    x.copy_(inputs["zero"])
    for _ in range(inputs["n"] - 1):
        _add_one[(1,)](x, num_warps=1)


def _reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {"x": torch.full((1,), float(inputs["n"] - 1), dtype=torch.float64)}


def _nothing(shape: Shape, dtype: str) -> float:
    """No work to speak of."""
    return 0.0


def _spec(framework: str) -> KernelSpec:
    return KernelSpec(
        name=f"launch_{'torch' if framework == TORCH else 'triton'}", family="launch", framework=framework, dtypes=("float32",),
        outputs=("x",), make_inputs=_make_inputs, run=_torch_run if framework == TORCH else _triton_run, reference=_reference,
        flops=_nothing, moved_bytes=_nothing, shapes=grid(num_launches=(1, 2, 8, 32, 128)), checks=grid(num_launches=(1, 5)),
        check_dtypes=("float32",),
    )  # fmt: skip


SPECS = (_spec(TORCH), _spec(TRITON))
