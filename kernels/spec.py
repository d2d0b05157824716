"""What a benchmarked kernel is: inputs, a run, a float64 reference, floors, and the shapes worth measuring."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from .draw import Draw

Shape = Mapping[str, int | str]
"""Shape columns of one measured point, e.g. ``{"m": 4096, "n": 4096, "k": 4096}``."""
Config = Mapping[str, int]
"""Launch parameters: tile sizes, ``num_warps``, ``num_stages``."""
Inputs = dict[str, Any]

TRITON = "roofplan-triton"
TORCH = "torch"

TORCH_DTYPE: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "fp8_block": torch.float8_e4m3fn,
    "int4_wo": torch.bfloat16,
    "int4_wo_fp16": torch.float16,
    "int8": torch.int8,
}
"""Measured dtype -> dtype of the tensors that enter the matrix unit."""
ITEM_BYTES: dict[str, float] = {
    "bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1, "fp8_block": 1, "int8": 1, "int4": 0.5, "int4_wo": 0.5, "int4_wo_fp16": 0.5,
}  # fmt: skip
TOLERANCE: dict[str, float] = {"float32": 2e-5, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest accepted ``‖out − ref‖ / ‖ref‖`` by the precision of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One kernel and everything needed to check and to time it.

    ``run`` writes the tensors ``outputs`` of its inputs and nothing else; ``reference`` returns the same tensors computed in float64 on
    the CPU. ``flops`` and ``moved_bytes`` are the least work of one call: multiply-add = 2 FLOPs, each input read once, each output
    written once, over ``channel`` (device memory or the host link). ``gpu_checks`` are checked on a GPU only, where Triton's interpreter is
    known to be wrong.
    """

    name: str
    family: str
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    make_inputs: Callable[[Shape, str, Draw], Inputs]
    run: Callable[[Inputs, Config], None]
    reference: Callable[[Inputs], dict[str, torch.Tensor]]
    flops: Callable[[Shape, str], float]
    moved_bytes: Callable[[Shape, str], float]
    shapes: tuple[Shape, ...]
    checks: tuple[Shape, ...]
    configs: Callable[[Shape, str], tuple[Config, ...]] = lambda shape, dtype: ({},)
    aot_shapes: tuple[Shape, ...] = ()
    gpu_checks: tuple[Shape, ...] = ()
    framework: str = TRITON
    check_dtypes: tuple[str, ...] = ("float16", "float32")
    min_capability: Mapping[str, int] = field(default_factory=dict)
    channel: str = "hbm"
    modes: tuple[str, ...] = ("graph", "eager")
    tolerance_factor: float = 1.0

    def supports(self, dtype: str, capability: int) -> bool:
        """Whether a GPU of this compute capability (80, 90, 100, …) can run the kernel in this dtype."""
        return capability >= self.min_capability.get(dtype, 70)


def launch(num_warps: int, num_stages: int, **sizes: int) -> Config:
    """A configuration: tile sizes by name, warps, pipeline stages."""
    return {**sizes, "num_warps": num_warps, "num_stages": num_stages}


def grid(**axes: tuple[int | str, ...]) -> tuple[Shape, ...]:
    """The Cartesian product of the axes as shapes: ``grid(m=(1, 2), k=(64,))`` -> two shapes."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def joined(first: tuple[Shape, ...], second: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Every shape of ``first`` merged with every shape of ``second``."""
    return tuple({**a, **b} for a, b in product(first, second))


def dims(shape: Shape, *names: str) -> tuple[int, ...]:
    """The named integer columns of a shape, in order."""
    return tuple(int(shape[name]) for name in names)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """``ceil(a / b)`` for positive integers."""
    return -(-a // b)


@cache
def all_specs() -> dict[str, KernelSpec]:
    """Every registered kernel by name: the ``SPECS`` of each module of this folder, found by listing it.

    Raises ValueError if two modules register one name.
    """
    found: dict[str, KernelSpec] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        for spec in getattr(importlib.import_module(f"{__package__}.{module}"), "SPECS", ()):
            if spec.name in found:
                raise ValueError(f"two kernels are named {spec.name!r}")
            found[spec.name] = spec
    return found
