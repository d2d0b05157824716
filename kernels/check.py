"""Checks kernels against their float64 references: on a GPU in every dtype, or in Triton's interpreter in the dtypes it gets right."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from .device import find_device, pretend
from .draw import Draw, poison
from .spec import TOLERANCE, Config, Inputs, KernelSpec, Shape, all_specs

_NAME_OF = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
TF32_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One kernel, dtype and shape: the worst output's error against its tolerance, or what went wrong."""

    kernel: str
    dtype: str
    shape: dict[str, int | str]
    config: dict[str, int]
    error: float
    tolerance: float
    fault: str
    wall_s: float

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance and nothing went wrong."""
        return not self.fault and self.error <= self.tolerance


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """``max(‖out − ref‖ / ‖ref‖, max|out − ref| / (8 max|ref|))`` in float64; infinite if any element is NaN."""
    got, want = out.detach().cpu().double(), ref.double()
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    diff = (got - want).abs()
    norm = diff.norm() / want.norm().clamp_min(1e-30)
    peak = diff.max() / want.abs().max().clamp_min(1e-30) / 8 if diff.numel() else torch.zeros(())
    return float(torch.maximum(norm, peak))


def tolerance_of(spec: KernelSpec, dtype: str, out: torch.Tensor) -> float:
    """The accepted error: that of the lower of compute and output precision, times the kernel's own factor."""
    names = [n for n in (dtype, _NAME_OF.get(out.dtype, "")) if n in TOLERANCE]
    base = max((TOLERANCE[n] for n in names), default=TOLERANCE["float16"])
    if out.device.type == "cuda":
        base = max(base, TF32_TOLERANCE)
    return base * spec.tolerance_factor


def check_one(spec: KernelSpec, shape: Shape, dtype: str, config: Config, seed: int, device: str) -> CheckResult:
    """Draw, poison, run, compare: every output element written and right, no input changed, no guard band touched."""
    start = time.perf_counter()
    draw = Draw(seed, device, guard=True)
    inputs = spec.make_inputs(shape, dtype, draw)
    result = CheckResult(
        kernel=spec.name, dtype=dtype, shape=dict(shape), config=dict(config), error=0.0, tolerance=0.0, fault="", wall_s=0.0
    )
    before = _snapshot(spec, inputs)
    want = spec.reference({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
    for name in spec.outputs:
        poison(inputs[name])
    spec.run(inputs, config)
    if device == "cuda":
        torch.cuda.synchronize()
    for name in spec.outputs:
        error, limit = relative_error(inputs[name], want[name]), tolerance_of(spec, dtype, inputs[name])
        if error * max(result.tolerance, 1e-30) >= result.error * limit:
            result = replace(result, error=error, tolerance=limit)
    changed = [k for k, v in _snapshot(spec, inputs).items() if not torch.equal(_bits(v), _bits(before[k]))]
    fault = f"changed its input {changed[0]}" if changed else "wrote outside its tensors" if draw.overwritten() else ""
    return replace(result, fault=fault, wall_s=time.perf_counter() - start)


def cases(specs: Sequence[KernelSpec], interpreted: bool, capability: int) -> Iterator[tuple[KernelSpec, Shape, str, Config, int]]:
    """Every (kernel, shape, dtype, config, capability) to check.

    In the interpreter the configurations take turns over the shapes, and so do the code paths of cards with and without tensor
    descriptors (capability 90 and 80).
    """
    for spec in specs:
        for j, dtype in enumerate(spec.check_dtypes if interpreted else dict.fromkeys(spec.dtypes + spec.check_dtypes)):
            if not interpreted and not spec.supports(dtype, capability):
                continue
            for i, shape in enumerate(spec.checks if interpreted else spec.checks + spec.gpu_checks):
                configs = spec.configs(shape, dtype)
                for config in [configs[i % len(configs)]] if interpreted else configs:
                    yield spec, shape, dtype, config, (90, 80)[(i + j) % 2]


def run_checks(specs: Sequence[KernelSpec], seed: int) -> Iterator[CheckResult]:
    """Check the kernels on the GPU, or in the interpreter where TRITON_INTERPRET=1; a kernel that raises is a fault, not an end."""
    found = find_device()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    device = "cpu" if interpreted or found is None else "cuda"
    for i, (spec, shape, dtype, config, path) in enumerate(cases(specs, interpreted, found.capability if found else 0)):
        try:
            with pretend(path):
                yield check_one(spec, shape, dtype, config, seed + i, device)
        except Exception as error:
            yield CheckResult(
                kernel=spec.name, dtype=dtype, shape=dict(shape), config=dict(config), error=float("inf"), tolerance=0.0,
                fault=f"{type(error).__name__}: {str(error)[:300]}", wall_s=0.0,
            )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """``python -m roofplan.kernels.check [SEED [KERNEL …]]``: one JSON line per check; exit 1 if any fails."""
    if find_device() is None and os.environ.get("TRITON_INTERPRET") != "1":
        print("no CUDA GPU found; set TRITON_INTERPRET=1 to check in the interpreter", file=sys.stderr)
        return 2
    seed = int(arguments[0]) if arguments else 0
    known = all_specs()
    chosen = [known[name] for name in arguments[1:]] or list(known.values())
    failed = 0
    for result in run_checks(chosen, seed):
        failed += not result.ok
        print(json.dumps(asdict(result) | {"ok": result.ok}), flush=True)
    return 1 if failed else 0


def _snapshot(spec: KernelSpec, inputs: Inputs) -> dict[str, torch.Tensor]:
    scratch = set(spec.outputs) | set(inputs.get("scratch", ()))
    return {k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor) and k not in scratch}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
