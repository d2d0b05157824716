"""Collective times over the GPUs of one machine through torch.distributed: what NCCL reaches, one process per GPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .point import Row

OPS = ("all_reduce", "all_gather", "reduce_scatter", "alltoall", "p2p")
SIZES = tuple(2**i for i in range(10, 31, 2))
"""Message bytes as nccl-tests counts them: all-gather its output, reduce-scatter its input, all-to-all the buffer of one rank."""

_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
"""Newer torch names first: the older ones warn."""


def buffers(op: str, n_bytes: int, n_ranks: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of one rank for a message of ``n_bytes``; raises ValueError if it does not divide over the ranks."""
    n, left = divmod(n_bytes, dtype.itemsize)
    if left or n % n_ranks or op not in OPS:
        raise ValueError(f"{op} of {n_bytes} bytes does not divide into {n_ranks} parts of {dtype}; ops: {', '.join(OPS)}")
    share = n // n_ranks
    n_in, n_out = {"all_gather": (share, n), "reduce_scatter": (n, share)}.get(op, (n, n))
    return torch.empty(n_in, dtype=dtype, device=device), torch.empty(n_out, dtype=dtype, device=device)


def call(op: str, source: torch.Tensor, out: torch.Tensor) -> None:
    """Run one collective out of place; ``p2p`` sends from rank 0 to rank 1 while the others wait. All-reduce works on ``source``."""
    if op == "all_reduce":
        dist.all_reduce(source)
    elif op == "all_gather":
        _GATHER(out, source)
    elif op == "reduce_scatter":
        _SCATTER(out, source)
    elif op == "alltoall":
        dist.all_to_all_single(out, source)
    elif dist.get_rank() == 0:
        dist.send(source, 1)
    elif dist.get_rank() == 1:
        dist.recv(out, 0)


def time_collective(op: str, n_bytes: int, dtype: torch.dtype, device: torch.device, n_calls: int, n_samples: int) -> list[float]:
    """Seconds a call, one number a sample: ``n_calls`` back to back, the slowest rank counts."""
    source, out = buffers(op, n_bytes, dist.get_world_size(), device, dtype)
    samples = []
    for sample in range(n_samples + 1):
        source.normal_()
        dist.barrier()
        _wait(device)
        start = time.perf_counter()
        for _ in range(n_calls):
            call(op, source, out)
        _wait(device)
        slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if sample:
            samples.append(float(slowest) / n_calls)
    return samples


def _worker(rank: int, n_ranks: int, backend: str, folder: str, jobs: Sequence[tuple[str, int]], n_calls: int, n_samples: int) -> None:
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=n_ranks)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(rank)
    lines = []
    for op, n_bytes in jobs:
        calls = n_calls if n_bytes < 2**24 else max(1, n_calls // 5)
        samples = sorted(time_collective(op, n_bytes, torch.bfloat16, device, calls, n_samples))
        lines.append({"op": op, "message_bytes": n_bytes, "samples_s": samples})
    if rank == 0:
        Path(folder, "out.json").write_text(json.dumps(lines), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure_collectives(
    n_ranks: int, backend: str = "nccl", ops: Sequence[str] = OPS, sizes: Sequence[int] = SIZES, n_calls: int = 20, n_samples: int = 9
) -> list[Row]:
    """Measurement rows of every (op, size) over ``n_ranks`` GPUs (or CPU processes with ``backend="gloo"``)."""
    jobs = [(op, size) for op in ops for size in sizes if size % (2 * n_ranks) == 0]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(n_ranks, backend, folder, jobs, n_calls, n_samples), nprocs=n_ranks)
        found = json.loads(Path(folder, "out.json").read_text(encoding="utf-8"))
    rows: list[Row] = []
    for line in found:
        samples, n = line["samples_s"], len(line["samples_s"])
        rows.append({
            "framework": "torch", "framework_version": str(torch.__version__), "kernel": f"torch_{backend}", "family": "nccl",
            "op": line["op"], "dtype": "bfloat16", "num_gpus": n_ranks, "message_bytes": line["message_bytes"],
            "message_elements": line["message_bytes"] // 2, "latency_us": 1e6 * samples[n // 2], "p10_us": 1e6 * samples[n // 10],
            "p90_us": 1e6 * samples[(9 * n) // 10], "mode": "eager", "n_samples": n,
        })  # fmt: skip
    return rows


def group_sizes(n_gpus: int) -> list[int]:
    """2, 4, 8, 16, as far as there are GPUs."""
    return [n for n in (2, 4, 8, 16) if n <= n_gpus]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
