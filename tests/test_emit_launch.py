"""Launchers: valid shell, the right number of ranks and nodes, the allocator the plan was priced with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from emit_jobs import ALST, job_of
from roofplan.planner.emit import launch
from roofplan.planner.emit.registry import emit_plan
from roofplan.planner.emit.target import CannotExpress

LAYOUTS: list[dict[str, Any]] = [
    ALST,
    {**ALST, "dp": 4},
    {"dp": 16, "tp": 2, "sharding": "fsdp", "zero_stage": 3},
    {"tp": 4, "pp": 4, "dp": 2, "grad_accum": 4, "recompute": "full", "recompute_layers": 3, "framework": "megatron"},
    {"cp": 8, "dp": 2, "cp_kind": "allgather", "sharding": "fsdp", "zero_stage": 3},
]


def scripts(layout: dict[str, Any]) -> dict[str, str]:
    job = job_of(**layout)
    files = emit_plan(model=job.model, plan=job.plan, work=job.work, cluster=job.cluster, accelerator=job.accelerator).files
    return {name: text for name, text in files.items() if name.endswith((".sh", ".slurm"))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_launcher_is_valid_shell(layout: dict[str, Any], tmp_path: Path) -> None:
    found = scripts(layout)
    assert found
    for name, text in found.items():
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "set -euo pipefail" in text


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher with stand-ins for torchrun and deepspeed that print how they were called."""
    for name in ("torchrun", "deepspeed"):
        (folder / name).write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$0" "$@" "$PYTORCH_CUDA_ALLOC_CONF" "$PWD"\n')
        (folder / name).chmod(0o755)
    (folder / "launch.sh").write_text(script)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **environment}
    return subprocess.run(["bash", str(folder / "launch.sh"), "--steps", "3"], env=env, text=True, capture_output=True, check=False)


def test_one_node(tmp_path: Path) -> None:
    job = job_of(**ALST)
    done = run(launch.torchrun(job, "train.py"), tmp_path)
    program, *arguments, allocator, folder = done.stdout.splitlines()
    assert program.endswith("torchrun")
    assert arguments == ["--standalone", "--nproc_per_node", "8", "train.py", "--steps", "3"]
    assert (allocator, folder) == ("expandable_segments:True", str(tmp_path))
    done = run(launch.deepspeed_launcher(job), tmp_path)
    assert done.stdout.splitlines()[1:-2] == ["--num_gpus", "8", "train.py", "--steps", "3"]


def test_several_nodes_need_to_know_each_other(tmp_path: Path) -> None:
    job = job_of(**ALST, dp=4)
    done = run(launch.torchrun(job, "train.py"), tmp_path)
    assert done.returncode != 0
    assert "set MASTER_ADDR to the host name of node 0" in done.stderr
    done = run(launch.torchrun(job, "train.py"), tmp_path, MASTER_ADDR="n0")
    assert "set NODE_RANK to 0 ... 3, another on each node" in done.stderr
    done = run(launch.torchrun(job, "train.py"), tmp_path, MASTER_ADDR="n0", NODE_RANK="2")
    assert done.stdout.splitlines()[1:-4] == [
        "--nnodes", "4", "--nproc_per_node", "8", "--node_rank", "2", "--master_addr", "n0", "--master_port", "29500", "train.py",
    ]  # fmt: skip
    done = run(launch.torchrun(job, "train.py"), tmp_path, MASTER_ADDR="n0", SLURM_NODEID="3")
    assert done.stdout.splitlines()[5:7] == ["--node_rank", "3"]
    assert launch.hostfile(job) == "".join(f"node{i} slots=8\n" for i in range(4))
    done = run(launch.deepspeed_launcher(job), tmp_path)
    assert done.stdout.splitlines()[1:9] == ["--hostfile", "hostfile", "--num_nodes", "4", "--num_gpus", "8", "--master_port", "29500"]


def test_environment_follows_the_plan() -> None:
    assert "expandable_segments" not in launch.environment(job_of(dp=8, expandable_segments=False))
    cores = job_of(dp=8).cluster.host_cores // 8
    assert f"OMP_NUM_THREADS:-{cores}" in launch.environment(job_of(dp=8, offload_optimizer=1))
    assert "OMP_NUM_THREADS:-1" in launch.environment(job_of(dp=8))


def test_arrays_are_quoted() -> None:
    assert launch.bash_array("A", [("--x", "([0]*3+[1]*58)"), ("--y",)]) == "A=(\n  --x '([0]*3+[1]*58)'\n  --y\n)\n"


def test_no_launcher_without_its_script() -> None:
    with pytest.raises(CannotExpress, match="tp=8"):
        launch.emit(job_of(tp=8))
