"""What a deployment asks for that no released engine does: its status, where its code is, and the nearest thing that runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .job import ServeJob

STATUS = "research-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One such feature; ``repository`` is '' when no public code is known; ``emitted`` says whether the files run the nearest instead."""

    what: str
    repository: str
    nearest: str
    emitted: bool
    status: str = STATUS


def notes(job: ServeJob) -> list[Note]:
    """The research-only features of a deployment."""
    found = []
    if job.deployment.prefill_sm_frac:
        found.append(
            Note(
                what="semi-PD: prefill and decode on shares of the same SMs",
                repository="infinigence/Semi-PD",
                nearest="chunked prefill on the same replicas (SGLang has --enable-pdmux, with a configuration of its own)",
                emitted=True,
            )
        )
    plans = job.plans().values()
    if any(plan.policy == "layered" for plan in plans):
        found.append(
            Note(
                what="layered prefill",
                repository="scale-snu/layered-prefill",
                nearest="chunked prefill with a larger budget",
                emitted=True,
            )
        )
    if any(plan.speculation and plan.speculation.controller == "goodput" for plan in plans):
        found.append(
            Note(
                what="speculation length chosen by goodput each step (SmartSpec)",
                repository="",
                nearest="draft tokens by batch size in vLLM (num_speculative_tokens_per_batch_size), or a fixed length",
                emitted=True,
            )
        )
    if any(plan.attention_ffn for plan in plans):
        found.append(
            Note(
                what="attention-FFN disaggregation (AFD)",
                repository="stepfun-ai/StepMesh",
                nearest="prefill on replicas of its own with wide expert parallelism",
                emitted=False,
            )
        )
    if job.deployment.autoscale:
        scale = job.deployment.autoscale
        found.append(
            Note(
                what=f"autoscaling between {scale.min_replicas} and {scale.max_replicas} replicas",
                repository="",
                nearest=f"the smallest pool; a Kubernetes autoscaler on {scale.target_requests} requests a replica",
                emitted=True,
                status="not emitted",
            )
        )
    return found


def deployable(job: ServeJob) -> ServeJob:
    """The job with each such feature replaced by the nearest that runs on the same GPUs; attention apart from FFN stays and is refused."""
    deployment = job.deployment
    if deployment.autoscale:
        deployment = replace(deployment, n_replicas=max(deployment.n_replicas, deployment.autoscale.min_replicas), autoscale=None)
    changes = {}
    for name in ("plan", "prefill"):
        plan = getattr(deployment, name)
        if plan is None:
            continue
        if plan.policy == "layered":
            plan = replace(plan, policy="")
        if plan.speculation and plan.speculation.controller == "goodput":
            plan = replace(plan, speculation=replace(plan.speculation, controller="fixed"))
        changes[name] = plan
    return replace(job, deployment=replace(deployment, prefill_sm_frac=0.0, **changes))
