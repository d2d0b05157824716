"""Launchers of train.py: launch_torchrun.sh, and launch_deepspeed.sh with its hostfile; one node or many."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from . import deepspeed, script
from .target import Job

TITLE = "launchers (torchrun, deepspeed)"
HOW = "`bash launch_torchrun.sh` or `bash launch_deepspeed.sh`"

HEAD = """#!/usr/bin/env bash
# {what}
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
"""


def emit(job: Job) -> dict[str, str]:
    """The two launchers of train.py and a hostfile; CannotExpress where train.py itself is not emitted."""
    script.emit(job)
    deepspeed.check_expressible(job)
    return {
        "launch_torchrun.sh": torchrun(job, "train.py"),
        "launch_deepspeed.sh": deepspeed_launcher(job),
        "hostfile": hostfile(job),
    }


def environment(job: Job) -> str:
    """Environment every launcher sets: the allocator the plan was priced with, one OpenMP thread per core a rank has."""
    threads = max(1, job.cluster.host_cores // job.ranks_per_node) if job.plan.offload_optimizer else 1
    lines = [f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"']
    if job.plan.expandable_segments:
        lines.append('export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"')
    return "\n".join(lines) + "\n"


def torchrun(job: Job, training_script: str) -> str:
    """A torchrun launcher: on several nodes it is started on each, with MASTER_ADDR naming the first and NODE_RANK (or Slurm) counting."""
    what = f"{job.world} ranks of {training_script} on {job.nodes} node(s); arguments go to the script"
    return HEAD.format(what=what) + environment(job) + torchrun_command(job, training_script)


def torchrun_command(job: Job, *program: str, last: str = "") -> str:
    """The line that starts ``program`` on every rank of this node: its own arguments, the launcher's, then ``last``."""
    tail = " ".join([*program, '"$@"', *([last] if last else [])]) + "\n"
    if job.nodes == 1:
        return f"exec torchrun --standalone --nproc_per_node {job.ranks_per_node} {tail}"
    return (
        ': "${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}"\n'
        f'NODE_RANK="${{NODE_RANK:-${{SLURM_NODEID:?set NODE_RANK to 0 ... {job.nodes - 1}, another on each node}}}}"\n'
        f'exec torchrun --nnodes {job.nodes} --nproc_per_node {job.ranks_per_node} --node_rank "$NODE_RANK" \\\n'
        f'  --master_addr "$MASTER_ADDR" --master_port "${{MASTER_PORT:-29500}}" {tail}'
    )


def bash_array(name: str, arguments: Iterable[tuple[str, ...]]) -> str:
    """A bash array of arguments, one flag with its values a line."""
    lines = "".join(f"  {shlex.join(argument)}\n" for argument in arguments)
    return f"{name}=(\n{lines})\n"


def deepspeed_launcher(job: Job) -> str:
    """The deepspeed launcher, started once: it reaches the nodes of ``hostfile`` over ssh."""
    text = HEAD.format(what=f"{job.world} ranks of train.py on {job.nodes} node(s) through the deepspeed launcher") + environment(job)
    if job.nodes == 1:
        return text + f'exec deepspeed --num_gpus {job.ranks_per_node} train.py "$@"\n'
    return text + (
        f"exec deepspeed --hostfile hostfile --num_nodes {job.nodes} --num_gpus {job.ranks_per_node} \\\n"
        '  --master_port "${MASTER_PORT:-29500}" train.py "$@"\n'
    )


def hostfile(job: Job) -> str:
    """One line per node for the deepspeed launcher; the names are to be replaced by the real ones."""
    return "".join(f"node{i} slots={job.ranks_per_node}\n" for i in range(job.nodes))
