"""Compiles every kernel ahead of time, without a GPU, exactly as a run on that GPU would launch it, and reads what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from .device import SMEM_LIMIT_BYTES, pretend
from .draw import Draw
from .spec import TRITON, Config, KernelSpec, Shape, all_specs

CAPABILITIES = (80, 90, 100)
MAX_REGISTERS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one compiled kernel takes of a multiprocessor. ``stack_bytes`` counts spilled registers too."""

    kernel: str
    function: str
    dtype: str
    capability: int
    config: dict[str, int]
    registers: int
    stack_bytes: int
    smem_bytes: int
    threads: int
    fault: str = ""

    @property
    def fits(self) -> bool:
        """Whether the device can launch it at all: shared memory, registers per thread and per multiprocessor."""
        within = self.smem_bytes <= SMEM_LIMIT_BYTES[self.capability] and self.registers <= MAX_REGISTERS
        return not self.fault and within and self.registers * self.threads <= 65_536


class _PretendDriver:
    """Stands in for the CUDA driver: names a target, has no device."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return -int(self._target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def launches_compile_only(capability: int) -> Iterator[list[Any]]:
    """While open, launching a kernel compiles it for this capability instead of running it; yields the compiled kernels in order.

    The pretended driver stays active afterwards: compile ahead of time in a process of its own.
    """
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    triton.runtime.driver.set_active(_PretendDriver(capability))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = run


def resources(spec: KernelSpec, shape: Shape, dtype: str, config: Config, capability: int) -> list[Resources]:
    """Registers, stack and shared memory of each Triton function that one call of the kernel launches on such a GPU."""
    inputs = spec.make_inputs(shape, dtype, Draw(0, "meta"))
    with pretend(capability), launches_compile_only(capability) as compiled:
        spec.run(inputs, config)
    rows: dict[str, Resources] = {}
    for kernel in compiled:
        registers, stack = _usage(kernel.asm["cubin"])
        rows[kernel.hash] = Resources(
            kernel=spec.name, function=kernel.metadata.name, dtype=dtype, capability=capability, config=dict(config),
            registers=registers, stack_bytes=stack, smem_bytes=kernel.metadata.shared, threads=32 * kernel.metadata.num_warps,
        )  # fmt: skip
    return list(rows.values())


def cases(specs: Sequence[KernelSpec], capabilities: Sequence[int], thorough: bool) -> Iterator[tuple[KernelSpec, Shape, str, Config, int]]:
    """What to compile: each kernel at its ``aot_shapes`` (or its last benchmark shape), in its first dtype and configuration or in all."""
    for spec in specs:
        if spec.framework != TRITON:
            continue
        for capability in capabilities:
            legal = [d for d in spec.dtypes if spec.supports(d, capability)]
            for dtype in legal if thorough else legal[:1]:
                for shape in spec.aot_shapes or spec.shapes[-1:]:
                    configs = spec.configs(shape, dtype)
                    for config in configs if thorough else configs[:1]:
                        yield spec, shape, dtype, config, capability


def main(arguments: Sequence[str]) -> int:
    """``python -m roofplan.kernels.aot [--all] [CAPABILITY …]``: one JSON line per compiled function; exit 1 if one does not fit."""
    capabilities = [int(a) for a in arguments if a.isdigit()] or list(CAPABILITIES)
    names = [a for a in arguments if not a.isdigit() and a != "--all"]
    known = all_specs()
    failed = 0
    chosen = [known[n] for n in names] or list(known.values())
    for spec, shape, dtype, config, capability in cases(chosen, capabilities, "--all" in arguments):
        try:
            rows = resources(spec, shape, dtype, config, capability)
        except Exception as error:
            rows = [Resources(
                kernel=spec.name, function="", dtype=dtype, capability=capability, config=dict(config), registers=0, stack_bytes=0,
                smem_bytes=0, threads=0, fault=f"{type(error).__name__}: {str(error)[-400:]}",
            )]  # fmt: skip
        for row in rows:
            failed += not row.fits
            print(json.dumps(asdict(row) | {"fits": row.fits}), flush=True)
    return 1 if failed else 0


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and stack bytes of a cubin, as ``cuobjdump -res-usage`` reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True, timeout=60).stdout
    finally:
        os.unlink(file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text[:200]!r}")
    return int(found.group(1)), int(found.group(2))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
