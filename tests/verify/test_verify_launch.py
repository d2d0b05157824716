"""The launchers as real programs see them: shellcheck finds nothing, and torchrun starts ranks that train."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from roofplan.planner.emit.registry import emit_plan
from roofplan.planner.emit.write import write_folder

from .plans import job_of

pytest.importorskip("torch", reason="torch is not installed: tests/verify/install.sh")
BIN = Path(sys.executable).parent
WITHOUT_SHM = "import deepspeed, runpy, sys\ndeepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] = False\n"
"""DeepSpeed would compile an operator for minutes on a machine that has not yet; the launcher itself is unchanged."""


def write_plan(folder: Path, **layout: object) -> Path:
    """The whole folder of a plan."""
    job = job_of(**layout)  # type: ignore[arg-type]
    emitted = emit_plan(model=job.model, plan=job.plan, work=job.work, cluster=job.cluster, accelerator=job.accelerator)
    write_folder(emitted.files, folder)
    return folder


def launch(folder: Path, script: str) -> str:
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    command = ["bash", str(folder / script), "--tiny", "--steps", "4", "--lr", "0.01"]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def losses(log: str) -> list[float]:
    return [float(x) for x in re.findall(r"^step \d+: loss ([0-9.]+)", log, re.MULTILINE)]


@pytest.mark.parametrize("launcher", ["launch_torchrun.sh", "launch_deepspeed.sh"])
def test_launchers_start_train_py(launcher: str, tmp_path: Path) -> None:
    """An ALST plan for two GPUs, on two CPU ranks."""
    folder = write_plan(tmp_path / "plan", cp=2, cp_kind="ulysses", zero_stage=3, recompute="full", tiled_mlp=1, fused_loss=1)
    script = folder / "train.py"
    script.write_text(WITHOUT_SHM + script.read_text())
    found = losses(launch(folder, launcher))
    assert len(found) == 4
    assert found[-1] < found[0]


def test_torchrun_starts_train_fsdp2_py(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "plan", tp=2, sharding="fsdp", zero_stage=3)
    found = losses(launch(folder, "launch_fsdp2.sh"))
    assert len(found) == 4
    assert found[-1] < found[0]


@pytest.mark.parametrize(
    "layout",
    [
        {"cp": 8, "cp_kind": "ulysses", "zero_stage": 3},
        {"dp": 32, "zero_stage": 3, "offload_optimizer": 1},
        {"dp": 16, "tp": 2, "sharding": "fsdp", "zero_stage": 3},
        {"tp": 4, "pp": 4, "dp": 2, "grad_accum": 4, "framework": "megatron"},
    ],
    ids=str,
)
def test_shellcheck_finds_nothing(layout: dict[str, object], tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "plan", **layout)
    scripts = [str(p) for p in folder.rglob("*") if p.suffix in (".sh", ".slurm")]
    assert scripts
    done = subprocess.run([str(BIN / "shellcheck"), *scripts], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
