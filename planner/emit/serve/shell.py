"""Bash text shared by the engines' scripts: a script per role, one launcher a node, a router in front."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from ....scenarios.serving_parts import KvTier
from .job import FIRST_PORT, ROUTER_PORT, Part, ServeJob, parts

HEAD = """#!/usr/bin/env bash
# {what}
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
"""

Argument = tuple[str, ...]
"""A flag with its values."""


class Expand(str):
    """An argument in which ``$NAME`` is filled in by the shell when the script runs."""


def quoted(word: str) -> str:
    """One shell word: literal, or in double quotes where the shell is to fill in variables."""
    if isinstance(word, Expand):
        escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`")
        return f'"{escaped}"'
    plain = shlex.quote(word)
    return f"'{word}'" if plain == word and "," in word else plain


def bash_array(name: str, arguments: Iterable[Argument]) -> str:
    """A bash array, one flag with its values a line."""
    lines = "".join(f"  {' '.join(map(quoted, argument))}\n" for argument in arguments)
    return f"{name}=(\n{lines})\n"


def to_flag(data: Any) -> str:
    """JSON on one line, for a flag's value."""
    return json.dumps(data, allow_nan=False)


def flag(name: str, value: object) -> Argument:
    """``--name value``."""
    return (f"--{name}", str(value))


def model_lines(job: ServeJob, needed: str = "") -> str:
    """Lines that set MODEL: the published weights, or an error that says which checkpoint to name (``needed``: its format)."""
    if job.model.hf_ids and not needed:
        return f'MODEL="${{MODEL:-{job.model.hf_ids[0]}}}"\n'
    form = f" in {needed}" if needed else ""
    return f'MODEL="${{MODEL:?set MODEL to a checkpoint of {job.model.name}{form}}}"\n'


def rope_lines(job: ServeJob) -> str:
    """Line that demands ROPE_THETA where the context is stretched: the base is the checkpoint's own."""
    if job.rope_factor == 1:
        return ""
    return ': "${ROPE_THETA:?set ROPE_THETA to rope_theta of the config.json of the checkpoint}"\n'


def rope_override(job: ServeJob) -> Expand:
    """The checkpoint's configuration as JSON with YaRN at the job's factor and ``max_position_embeddings`` already stretched."""
    original = job.model.max_seq_tokens
    stretched = int(original * job.rope_factor)
    return Expand(
        '{"rope_parameters": {"rope_type": "yarn", "rope_theta": $ROPE_THETA, '
        f'"factor": {job.rope_factor}, "original_max_position_embeddings": {original}}}, "max_position_embeddings": {stretched}}}'
    )


def spans(job: ServeJob) -> dict[str, int]:
    """Nodes of one replica of each role."""
    return {part.role: part.rank + 1 for part in parts(job)}


def needs_launcher(job: ServeJob) -> bool:
    """Whether more than one script has to be started."""
    return len(parts(job)) > 1


def hosts_line(job: ServeJob) -> str:
    """Sets the array ``hosts``, one name a node in use, from HOSTS."""
    n = parts(job)[-1].node + 1
    if n == 1:
        return "hosts=(localhost)\n"
    return (
        f'read -r -a hosts <<< "${{HOSTS:?set HOSTS to the names of the {n} nodes, separated by spaces}}"\n'
        f'[ "${{#hosts[@]}}" -ge {n} ] || {{ echo "HOSTS names ${{#hosts[@]}} nodes, {n} are needed" >&2; exit 2; }}\n'
    )


def launcher(job: ServeJob, engine: str, exports: Sequence[str] = ()) -> str:
    """launch.sh: starts this node's part of every replica, and the router on node 0; when one process ends, all are ended.

    ``exports`` are ``NAME=value`` texts set for each replica; ``$port``, ``$replica``, ``$node`` and ``$master`` may stand in them.
    """
    found = parts(job)
    n_nodes = found[-1].node + 1
    rows = "".join(f"  {shlex.quote(_row(job, part))}\n" for part in found)
    node = 'NODE_RANK="${NODE_RANK:-${SLURM_NODEID:?set NODE_RANK to 0 ... ' + f'{n_nodes - 1}, another on each node}}}}"\n'
    router = " and their router" if has_router(job) else ""
    what = f"{engine}: {job.deployment.n_replicas + job.deployment.n_prefill} replica(s) on {n_nodes} node(s){router}."
    set_for_each = " ".join(
        ['CUDA_VISIBLE_DEVICES="$gpus"', 'PORT="$port"', 'REPLICA_RANK="$rank"', 'MASTER_ADDR="${hosts[$master]}"', *exports]
    )
    return (
        HEAD.format(what=what + (" Start it on each node." if n_nodes > 1 else ""))
        + ("NODE_RANK=0\n" if n_nodes == 1 else node)
        + hosts_line(job)
        + f"# script, node, GPUs, port, rank and first node of the replica\nPARTS=(\n{rows})\n"
        + "trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT\n"
        + 'for part in "${PARTS[@]}"; do\n'
        + '  read -r script node gpus port rank master <<< "$part"\n'
        + '  [ "$node" = "$NODE_RANK" ] || continue\n'
        + f'  env {set_for_each} bash "$script" "$@" > "replica-$port-$rank.log" 2>&1 &\n'
        + "done\n"
        + ('if [ "$NODE_RANK" = 0 ]; then\n  bash router.sh &\nfi\n' if has_router(job) else "")
        + "wait -n\n"
    )


def _row(job: ServeJob, part: Part) -> str:
    """A line of PARTS; a lone replica listens where a router would, which is where the benchmark asks."""
    gpus, port = ",".join(map(str, part.gpus)), part.port if has_router(job) else ROUTER_PORT
    return f"{part.role}.sh {part.node} {gpus} {port} {part.rank} {part.master}"


def has_router(job: ServeJob) -> bool:
    """Whether requests go to more than one server."""
    return job.deployment.n_replicas + job.deployment.n_prefill > 1


def urls(job: ServeJob, role: str) -> list[Expand]:
    """Where the replicas of a role listen; the host is filled in by the shell."""
    return [Expand(f"http://${{hosts[{p.node}]}}:{p.port}") for p in parts(job) if p.role == role and p.rank == 0]


def default_port(job: ServeJob) -> int:
    """The port of a role's script when it is started by hand."""
    return FIRST_PORT if has_router(job) else ROUTER_PORT


def tier_kind(tier: KvTier) -> str:
    """``host``, ``drive`` or ``remote``, read off a tier's name; what all replicas share is remote."""
    words = tier.name.lower()
    if tier.shared or any(w in words for w in ("remote", "pool", "object", "s3")):
        return "remote"
    return "drive" if any(w in words for w in ("nvme", "ssd", "disk", "drive", "file")) else "host"
