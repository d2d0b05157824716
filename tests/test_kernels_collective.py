"""The collective probe on two CPU processes: it moves the right data, and its rows have the columns of the public tables."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="kernels need torch")
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from roofplan.kernels.collective import OPS, buffers, call, group_sizes, measure_collectives

RANKS = 2


def moves_the_right_data(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    for op in OPS:
        source, out = buffers(op, 64, RANKS, torch.device("cpu"), torch.bfloat16)
        source.copy_(torch.arange(source.numel()) + 100 * rank)
        out.fill_(float("nan"))
        call(op, source, out)
        n = torch.arange(32)
        expected = {
            "all_reduce": 2.0 * n + 100,
            "all_gather": torch.cat([n[:16], n[:16] + 100]),
            "reduce_scatter": 2.0 * n[16 * rank : 16 * rank + 16] + 100,
            "alltoall": torch.cat([n[16 * rank : 16 * rank + 16], n[16 * rank : 16 * rank + 16] + 100]),
            "p2p": n.float() if rank == 1 else torch.full((32,), float("nan")),
        }[op]
        torch.testing.assert_close((source if op == "all_reduce" else out).float(), expected.float(), equal_nan=True)
    dist.destroy_process_group()


def test_every_collective_moves_the_right_data(tmp_path: Path) -> None:
    mp.spawn(moves_the_right_data, args=(str(tmp_path),), nprocs=RANKS)


def test_rows_of_every_op_and_size() -> None:
    rows = measure_collectives(RANKS, "gloo", sizes=(1024, 4096, 1026), n_calls=2, n_samples=3)
    assert [(r["op"], r["message_bytes"]) for r in rows] == [(op, size) for op in OPS for size in (1024, 4096)]
    for row in rows:
        assert row["family"] == "nccl"
        assert row["num_gpus"] == RANKS
        assert row["message_elements"] == int(row["message_bytes"]) // 2
        assert 0 < float(row["p10_us"]) <= float(row["latency_us"]) <= float(row["p90_us"])


@pytest.mark.parametrize("op", OPS)
def test_message_bytes_count_as_in_nccl_tests(op: str) -> None:
    source, out = buffers(op, 4096, 4, torch.device("cpu"), torch.bfloat16)
    assert source.nbytes == (1024 if op == "all_gather" else 4096)
    assert out.nbytes == (1024 if op == "reduce_scatter" else 4096)


def test_messages_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide into 3 parts"):
        buffers("alltoall", 64, 3, torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="ops: all_reduce"):
        buffers("broadcast", 64, 2, torch.device("cpu"), torch.bfloat16)


def test_group_sizes_of_a_machine() -> None:
    assert group_sizes(1) == []
    assert group_sizes(6) == [2, 4]
    assert group_sizes(8) == [2, 4, 8]
