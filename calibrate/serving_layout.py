"""Which layout a measured row of one node ran, where its columns misstate it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .serving_formats import Unusable
from .serving_names import count
from .serving_recipes import NOMINAL, Run

NODE_GPUS = 8


def node_layout(row: Mapping[str, Any], moe: bool) -> tuple[int, int, int]:
    """(tp, attention dp, ep) of a one-node run. Unusable where the columns contradict each other.

    Rows with expert parallelism may carry ``tp·ep`` as tp, or ``dp·ep`` as attention dp, and moe_tp = ep (tp 64, ep 8 on eight GPUs;
    InferenceX's tp 4, ep 2 on two: it always splits experts over all); or the node's width as both tp and attention dp, and their product
    as ep (tp 4, dp 4, ep 16 on four GPUs): such vLLM runs were launched with --tensor-parallel-size and --enable-expert-parallel alone.
    """
    tp, dp = count(row, "tp_size", 1), max(count(row, "attention_dp_size", 1), 1)
    moe_tp, ep = max(count(row, "moe_tp_size", 1), 1), max(count(row, "moe_ep_size", 1), 1)
    suite = (count(row, "isl"), count(row, "osl")) in NOMINAL
    if moe and (tp * dp > NODE_GPUS or suite) and moe_tp == ep > 1 and ep * ep == tp * dp and 1 in (tp, dp):
        return (ep, 1, ep) if dp == 1 else (1, ep, ep)
    if moe and dp > 1 and tp == dp and (moe_tp, ep) == (1, tp * dp):
        return tp, 1, tp
    if tp * dp > NODE_GPUS or (moe and moe_tp * ep != tp * dp):
        raise Unusable(f"tp={tp}, attention dp={dp}, moe tp={moe_tp}, ep={ep} are not a layout of one node")
    return tp, dp, ep


def as_launched(run: Run) -> Run:
    """The run with the layout that its script or the search space of its day gave it, where its table's columns do not hold that.

    Source: InferenceX, ``benchmarks/*_trt_slurm.sh`` at e06929c70 (2025-11-01; from 17d5e204f on the columns say it), and
    ``.github/configs/nvidia-master.yaml``, minimaxm2.5-fp4-b200-vllm and -b300-vllm, 2026-04-08 to 2026-04-22.
    """
    if run.engine.startswith("trtllm") and run.model.startswith(("deepseek", "gpt-oss")) and run.date < "2025-11-03":
        split, ranks = _scripted(run)
        return replace(run, tp=1, dp=run.tp, ep=run.tp) if ranks else replace(run, ep=run.tp if split else 1)
    if _ranks_of_the_day(run):
        return replace(run, tp=1, dp=run.tp * run.dp)
    return run


def _scripted(run: Run) -> tuple[bool, bool]:
    """Whether TensorRT-LLM's script of 2025 split experts whole over the GPUs, and whether each GPU had its own attention."""
    clients, load = run.concurrency, (run.isl, run.osl)
    if run.model.startswith("gpt-oss"):
        return not run.blackwell or clients >= 256, run.blackwell and clients >= 256
    if not run.four_bit:
        most = {(1024, 1024): 32 if run.blackwell else 64, (8192, 1024): 64 if run.blackwell else 32}.get(load, 64)
        return True, clients > most
    if load == (8192, 1024):
        return clients > 32, clients > 32
    alone = 32 if run.tp == 4 else {(1024, 1024): 8}.get(load, 16)
    return clients > alone, clients >= 256


def _ranks_of_the_day(run: Run) -> bool:
    """Whether vLLM's 4-bit MiniMax on two Blackwell GPUs had attention ranks: its columns are the same with and without."""
    if (run.engine, run.model, run.tp, run.dp, run.ep) != ("vllm", "minimax-m2", 2, 1, 2) or not (run.four_bit and run.blackwell):
        return False
    least = {(1024, False): 512, (1024, True): 256, (8192, True): 512 if run.gpu == "b300" else 1 << 30}
    return run.concurrency >= least.get((run.isl, run.date >= "2026-04-20"), 1 << 30)
