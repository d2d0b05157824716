"""job.slurm: an sbatch script that starts one of the plan's launchers on every node."""

from __future__ import annotations

from . import fsdp, launch, megatron, torchtitan
from .target import CannotExpress, Job

TITLE = "Slurm job"
HOW = "`sbatch job.slurm`, or `sbatch job.slurm LAUNCHER ARGUMENTS`"

LAUNCHERS = {
    "deepspeed": (launch.emit, "launch_torchrun.sh"),
    "fsdp2": (fsdp.emit, "launch_fsdp2.sh"),
    "megatron": (megatron.emit, "megatron/pretrain.sh"),
    "torchtitan": (torchtitan.emit, "torchtitan/run.sh"),
}
"""Framework -> the emitter of its launcher, and the launcher."""


def emit(job: Job) -> dict[str, str]:
    """job.slurm for the launcher of the plan's own framework, or the first that can express the plan; CannotExpress if none can."""
    launcher = launcher_of(job)
    text = (
        "#!/usr/bin/env bash\n"
        f"#SBATCH --job-name=roofplan-{job.model.name}\n"
        f"#SBATCH --nodes={job.nodes}\n"
        "#SBATCH --ntasks-per-node=1\n"
        f"#SBATCH --gpus-per-node={job.ranks_per_node}\n"
        f"#SBATCH --cpus-per-task={max(1, job.cluster.host_cores)}\n"
        "#SBATCH --exclusive\n"
        "#SBATCH --output=%x-%j.log\n"
        "set -euo pipefail\n"
        'cd "$SLURM_SUBMIT_DIR"\n'
        'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"\n'
        "export MASTER_ADDR\n"
        f'LAUNCHER="${{1:-{launcher}}}"\n'
        'srun bash "$LAUNCHER" "${@:2}"\n'
    )
    return {"job.slurm": text}


def launcher_of(job: Job) -> str:
    """The launcher of the plan's framework if that framework can express the plan, else the first that can."""
    order = sorted(LAUNCHERS, key=lambda framework: framework != job.plan.framework)
    for framework in order:
        emitter, name = LAUNCHERS[framework]
        try:
            emitter(job)
        except CannotExpress:
            continue
        return name
    raise CannotExpress("no launcher can express the plan", "see the other targets")
