"""Which layout a measured row of one node ran, where its columns misstate it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .serving_formats import Unusable
from .serving_names import count
from .serving_recipes import Run

NODE_GPUS = 8


def node_layout(row: Mapping[str, Any], moe: bool) -> tuple[int, int, int]:
    """(tp, attention dp, ep) of a one-node run. Unusable where the columns contradict each other.

    Rows with expert parallelism may carry ``tp·ep`` as tp, or ``dp·ep`` as attention dp, and moe_tp = ep (tp 64, ep 8 on eight GPUs); or
    the node's width as both tp and attention dp, and their product as ep (tp 4, dp 4, ep 16 on four GPUs): such vLLM runs were launched
    with --tensor-parallel-size and --enable-expert-parallel alone.
    """
    tp, dp = count(row, "tp_size", 1), max(count(row, "attention_dp_size", 1), 1)
    moe_tp, ep = max(count(row, "moe_tp_size", 1), 1), max(count(row, "moe_ep_size", 1), 1)
    if moe and tp * dp > NODE_GPUS and moe_tp == ep and ep * ep == tp * dp and 1 in (tp, dp):
        return (ep, 1, ep) if dp == 1 else (1, ep, ep)
    if moe and dp > 1 and tp == dp and (moe_tp, ep) == (1, tp * dp):
        return tp, 1, tp
    if tp * dp > NODE_GPUS or (moe and moe_tp * ep != tp * dp):
        raise Unusable(f"tp={tp}, attention dp={dp}, moe tp={moe_tp}, ep={ep} are not a layout of one node")
    return tp, dp, ep


def dp_attention(run: Run) -> bool:
    """Whether a run whose columns read as tensor parallelism with expert parallelism had one attention rank a GPU instead.

    vLLM's 4-bit MiniMax on two Blackwell GPUs: the table's columns are the same for both, the search space of the day says which ran.
    Source: InferenceX ``.github/configs/nvidia-master.yaml``, minimaxm2.5-fp4-b200-vllm and -b300-vllm, 2026-04-08 to 2026-04-22.
    """
    if (run.engine, run.model, run.tp, run.dp, run.ep) != ("vllm", "minimax-m2", 2, 1, 2) or not (run.four_bit and run.blackwell):
        return False
    least = {(1024, False): 512, (1024, True): 256, (8192, True): 512 if run.gpu == "b300" else 1 << 30}
    return run.concurrency >= least.get((run.isl, run.date >= "2026-04-20"), 1 << 30)
