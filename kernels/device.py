"""The GPU at hand: name, compute capability, memory, caches, driver and clocks, as recorded beside each measurement."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

INTERPRETER_SMS = 16
SMEM_LIMIT_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Compute capability -> largest shared memory of one block, bytes. Source: CUDA C++ Programming Guide, technical specifications."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU as its driver reports it."""

    name: str
    uuid: str
    capability: int
    n_sms: int
    n_gpus: int
    hbm_bytes: int
    l2_bytes: int
    driver: str
    torch_version: str
    triton_version: str


_pretended: ContextVar[int] = ContextVar("_pretended", default=90)


@contextmanager
def pretend(capability: int) -> Iterator[None]:
    """While open, tensors off the GPU count as living on a card of this compute capability."""
    token = _pretended.set(capability)
    try:
        yield
    finally:
        _pretended.reset(token)


def has_tma(tensor: torch.Tensor) -> bool:
    """Whether the tensor's card copies tiles by descriptor in hardware (Hopper and later); older cards use masked pointer loads."""
    if tensor.device.type == "cuda":
        return int(torch.cuda.get_device_capability(tensor.device)[0]) >= 9
    return _pretended.get() >= 90


def n_sms(tensor: torch.Tensor) -> int:
    """Streaming multiprocessors of the tensor's GPU, or a small constant on the CPU (interpreter)."""
    if tensor.device.type == "cuda":
        return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
    return 132 if tensor.device.type == "meta" else INTERPRETER_SMS


def find_device() -> Device | None:
    """The first CUDA GPU, or None where there is none."""
    if not torch.cuda.is_available():
        return None
    props = torch.cuda.get_device_properties(0)
    try:
        import triton

        triton_version = str(triton.__version__)
    except ImportError:
        triton_version = ""
    return Device(
        name=props.name,
        uuid=str(getattr(props, "uuid", "")),
        capability=props.major * 10 + props.minor,
        n_sms=props.multi_processor_count,
        n_gpus=torch.cuda.device_count(),
        hbm_bytes=props.total_memory,
        l2_bytes=int(getattr(props, "L2_cache_size", 0)) or 64 * 2**20,
        driver=_smi("driver_version"),
        torch_version=str(torch.__version__),
        triton_version=triton_version,
    )


def clock_mhz() -> float:
    """The present SM clock in MHz, or 0 where nvidia-smi cannot tell."""
    try:
        return float(_smi("clocks.sm"))
    except ValueError:
        return 0.0


def _smi(field: str) -> str:
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
