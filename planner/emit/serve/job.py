"""A serving deployment to emit: the model, its replicas and where each of them runs, the requests, the promises, the prediction."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ....scenarios.deployment import Deployment
from ....scenarios.errors import BadInput
from ....scenarios.hardware import Cluster
from ....scenarios.model import ModelSpec
from ....scenarios.registry import accelerator
from ....scenarios.serving import EnginePlan, serving_engine

Role = Literal["serve", "prefill", "decode"]
"""What a replica does: both phases, or one of them."""

FIRST_PORT, ROUTER_PORT = 8100, 8000
PLAIN = ("bf16", "fp16")
"""Formats of 16 bits: one serves for the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one scheduler may carry in a step, the size of its KV blocks and the part of memory it may take."""

    max_num_seqs: int
    token_budget: int
    block_tokens: int
    memory_utilization_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The GPUs one replica has on one node: ``rank`` counts the replica's nodes, ``master`` is the first of them."""

    role: Role
    replica: int
    node: int
    gpus: tuple[int, ...]
    rank: int
    master: int

    @property
    def port(self) -> int:
        return FIRST_PORT + self.replica


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeJob:
    """One deployment with everything an emitter needs; ``predicted`` are the prediction's numbers (``make_job`` names them).

    ``context_tokens`` is the longest request, prompt and answer together.
    """

    model: ModelSpec
    deployment: Deployment
    cluster: Cluster
    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    slo: Mapping[str, float]
    shared_prefix_tokens: int = 0
    rope_scaling: float = False
    predicted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        """Whether prefill runs on replicas of its own."""
        return self.deployment.n_prefill > 0

    def plans(self) -> dict[Role, EnginePlan]:
        """The plan of each role there is."""
        if self.is_split:
            return {"prefill": self.deployment.prefill_plan, "decode": self.deployment.plan}
        return {"serve": self.deployment.plan}

    @property
    def rope_factor(self) -> float:
        """How many times positions are stretched: as asked for, or the power of two the context needs; 1 where it fits as it is."""
        factor = float(self.rope_scaling) if self.rope_scaling > 1 else 1.0
        while self.rope_scaling and self.model.max_seq_tokens * factor < self.context_tokens:
            factor *= 2
        return factor

    def needed_format(self, converts: Collection[str]) -> str:
        """The format a checkpoint must be made in first; '' where the published one serves as it is or is converted while loading.

        ``converts`` are the formats an engine makes of 16-bit weights while it loads them.
        """
        model = self.model
        for plan in self.plans().values():
            for asked, own in ((plan.weight_dtype, model.weight_dtype), (plan.experts_in, model.experts_in)):
                if asked != own and not (own in PLAIN and (asked in PLAIN or asked in converts)):
                    return asked
        return ""


def limits(job: ServeJob, plan: EnginePlan) -> Limits:
    """What the simulator ran the plan with, for one of its ``dp`` schedulers: the plan's numbers, the engine's where those are 0."""
    engine, gpu = serving_engine(plan.engine), accelerator(job.cluster.gpu)
    own_budget, own_seqs = engine.limits_on(gpu.name, gpu.hbm_bytes, plan.dp)
    return Limits(
        max_num_seqs=-(-(plan.max_num_seqs or own_seqs) // plan.dp),
        token_budget=-(-(plan.token_budget or own_budget) // plan.dp),
        block_tokens=plan.block_tokens or engine.block_tokens,
        memory_utilization_frac=engine.memory_utilization_frac,
    )


def parts(job: ServeJob) -> list[Part]:
    """Where each replica runs: prefill replicas first, packed on nodes in order; a replica larger than a node takes whole nodes.

    BadInput when a larger replica is not whole nodes, or the cluster has too few GPUs.
    """
    per_node = job.cluster.gpus_per_node
    counts: list[tuple[Role, int]] = [("serve", job.deployment.n_replicas)]
    if job.is_split:
        counts = [("prefill", job.deployment.n_prefill), ("decode", job.deployment.n_replicas)]
    found: list[Part] = []
    node, used, replica = 0, 0, 0
    for role, count in counts:
        n_gpus = job.plans()[role].n_gpus
        if n_gpus > per_node and n_gpus % per_node:
            raise BadInput(f"a {role} replica of {n_gpus} GPUs is not whole nodes of {per_node}; take a multiple of {per_node} or fewer")
        for _ in range(count):
            if used + min(n_gpus, per_node) > per_node:
                node, used = node + 1, 0
            spans = -(-n_gpus // per_node)
            gpus = tuple(range(used, used + min(n_gpus, per_node)))
            found += [Part(role=role, replica=replica, node=node + k, gpus=gpus, rank=k, master=node) for k in range(spans)]
            node, used = node + spans - 1, used + len(gpus)
            replica += 1
    if found[-1].node >= job.cluster.n_nodes:
        n = job.deployment.n_gpus
        raise BadInput(
            f"{replica} replicas of {n} GPUs in all need {found[-1].node + 1} nodes of {per_node}, the cluster has {job.cluster.n_nodes} "
            f"({job.cluster.n_gpus} GPUs)"
        )
    return found


def make_job(
    *,
    model: ModelSpec,
    deployment: Deployment,
    cluster: Cluster,
    prompt_tokens: int,
    output_tokens: int,
    context_tokens: int = 0,
    slo: Mapping[str, float] | None = None,
    shared_prefix_tokens: int = 0,
    rope_scaling: float = False,
    predicted: Mapping[str, Any] | None = None,
) -> ServeJob:
    """A ServeJob whose numbers agree; BadInput for lengths below 1, a context over the model's, replicas the cluster has no room for.

    ``cluster.n_gpus`` is what the deployment may use (at least ``deployment.n_gpus``). ``prompt_tokens`` and ``output_tokens`` are the
    benchmark's request, ``context_tokens`` the longest request to be allowed (0: their sum), ``shared_prefix_tokens`` the part of the
    prompts that is one and the same (prefix caching). ``slo`` holds what is promised: ``ttft_s``, ``tpot_s``, ``e2e_s``, each optional.
    ``rope_scaling`` (true, or a factor) allows a context over the model's own.

    ``predicted`` may hold, all optional: ``goodput_per_s`` (requests a second within the promises), ``rate_per_s`` (of the others),
    ``ttft_s``, ``tpot_s`` (means at that rate), ``output_tokens_per_s_per_gpu``, ``cost_usd_per_mtoken``, ``error_frac``,
    ``why`` (sentences), and ``curve``: rows ``{"rate_per_s", "ttft_s_mean", "ttft_s_p50", "ttft_s_p99", "tpot_s_mean",
    "tpot_s_p50", "tpot_s_p99", "e2e_s_mean", "output_tokens_per_s"}`` of which only ``rate_per_s`` must be there.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if value < 1:
            raise BadInput(f"{name}={value} must be at least 1")
    context = context_tokens or prompt_tokens + output_tokens
    if context < prompt_tokens + output_tokens:
        raise BadInput(f"context_tokens={context} is less than a prompt and its answer, {prompt_tokens + output_tokens}")
    if not 0 <= shared_prefix_tokens < prompt_tokens:
        raise BadInput(f"shared_prefix_tokens={shared_prefix_tokens} must be from 0 to below prompt_tokens={prompt_tokens}")
    if context > model.max_seq_tokens and not rope_scaling:
        raise BadInput(
            f"a context of {context:,} tokens is over the {model.max_seq_tokens:,} that {model.name} was made for; "
            "shorten it, take a model with a longer context, or ask for rope scaling"
        )
    if context > model.max_seq_tokens and model.position != "rope":
        raise BadInput(f"{model.name} has {model.position} positions: rope scaling cannot stretch its {model.max_seq_tokens:,} tokens")
    job = ServeJob(
        model=model,
        deployment=deployment,
        cluster=cluster,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        slo={name: value for name, value in (slo or {}).items() if math.isfinite(value)},
        shared_prefix_tokens=shared_prefix_tokens,
        rope_scaling=rope_scaling,
        predicted=dict(predicted or {}),
    )
    parts(job)
    return job
