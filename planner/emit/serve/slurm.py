"""serve.slurm: an sbatch script that starts one engine's launcher on every node of a deployment."""

from __future__ import annotations

from collections.abc import Iterable

from .job import ServeJob, parts

ENGINES = ("vllm", "sglang", "tensorrt-llm")


def emit(job: ServeJob, written: Iterable[str]) -> dict[str, str]:
    """The script for deployments of more than one node, for the first engine that was written; nothing otherwise."""
    nodes = parts(job)[-1].node + 1
    engine = next((name for name in ENGINES if name in set(written)), None)
    if nodes == 1 or engine is None:
        return {}
    text = (
        "#!/usr/bin/env bash\n"
        f"#SBATCH --job-name=roofplan-serve-{job.model.name}\n"
        f"#SBATCH --nodes={nodes}\n"
        "#SBATCH --ntasks-per-node=1\n"
        f"#SBATCH --gpus-per-node={job.cluster.gpus_per_node}\n"
        f"#SBATCH --cpus-per-task={max(1, job.cluster.host_cores)}\n"
        "#SBATCH --exclusive\n"
        "#SBATCH --output=%x-%j.log\n"
        "set -euo pipefail\n"
        'cd "$SLURM_SUBMIT_DIR"\n'
        'HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr "\\n" " ")"\n'
        "export HOSTS\n"
        f'ENGINE="${{1:-{engine}}}"\n'
        'srun bash "$ENGINE/launch.sh" "${@:2}"\n'
    )
    return {"serve.slurm": text}
