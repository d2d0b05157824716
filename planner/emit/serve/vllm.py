"""vllm/: `vllm serve` for each role of the deployment, a launcher a node, and vllm-router before several replicas."""

from __future__ import annotations

from typing import Any

from ....costmodels.serving_ops import by_all_to_all
from ....scenarios.serving import EnginePlan
from ....scenarios.serving_parts import Speculation
from ..target import refuse
from .job import PLAIN, ROUTER_PORT, Role, ServeJob, limits
from .shell import (
    HEAD,
    Argument,
    Expand,
    bash_array,
    default_port,
    flag,
    has_router,
    hosts_line,
    launcher,
    model_lines,
    needs_launcher,
    rope_lines,
    rope_override,
    spans,
    tier_kind,
    to_flag,
    urls,
)

TITLE = "vLLM"
VERSION, ROUTER_VERSION = "0.33.0", "0.1.17"

QUANTIZATION = {"fp8": "fp8", "fp8_block": "fp8_per_block", "mxfp8": "mxfp8", "int8": "int8_per_channel_weight_only"}
"""Weight format -> ``--quantization`` that converts plain weights while loading; other formats come as checkpoints."""

KV_DTYPE = {"fp8": "fp8", "int8": "int8_per_token_head", "int4": "int4_per_token_head", "nvfp4": "nvfp4", "fp4": "nvfp4"}
"""KV format -> ``--kv-cache-dtype``; 16-bit formats are the engine's own choice."""

POLICIES = ("", "vllm-v1", "sarathi", "priority", "sglang")
"""Scheduling that vLLM's V1 scheduler does: chunked prefill, decodes first."""

ROUTER_POLICY = {
    "round-robin": "round_robin", "random": "random", "prefix-hash": "consistent_hash", "least-outstanding": "sticky_least_loaded",
    "power-of-two": "power_of_two", "kv-aware": "power_of_two", "cache-aware": "cache_aware",
}  # fmt: skip
"""Router -> vllm-router's policy; kv-aware (most free KV) has none, the nearest counts requests."""


def how(job: ServeJob) -> str:
    """How to run it."""
    return "`bash vllm/launch.sh`" if needs_launcher(job) else "`bash vllm/serve.sh`"


def emit(job: ServeJob) -> dict[str, str]:
    """The scripts; CannotExpress for what vLLM has no switch for."""
    check_expressible(job)
    files = {f"vllm/{role}.sh": script(job, role, plan) for role, plan in job.plans().items()}
    if needs_launcher(job):
        side_channel = ['VLLM_NIXL_SIDE_CHANNEL_HOST="${hosts[$node]}"', 'VLLM_NIXL_SIDE_CHANNEL_PORT="$((5600 + (port - 8100) * 64))"']
        files["vllm/launch.sh"] = launcher(job, f"vLLM {VERSION}", side_channel if job.is_split else ())
    if has_router(job):
        files["vllm/router.sh"] = router(job)
    return files


def check_expressible(job: ServeJob) -> None:
    """CannotExpress for the first thing in any role's plan that vLLM cannot do."""
    for role, plan in job.plans().items():
        _check_layout(job, role, plan)
        _check_formats(plan)
        _check_states(job, plan)
        spec = plan.speculation
        refuse(
            (plan.policy not in POLICIES, f"policy={plan.policy}", "vLLM's own scheduler: chunked prefill, decodes first"),
            (plan.preemption == "swap", "preemption by swapping: the V1 engine recomputes", "preemption=recompute"),
            (
                spec and spec.method == "tree",
                "tree drafts: the V1 engine checks chains",
                "method=chain, or SGLang's --speculative-eagle-topk",
            ),
            (
                spec and spec.method == "mtp" and not job.model.n_mtp_layers,
                f"method=mtp: {job.model.name} has no multi-token-prediction layers",
                "method=chain with a draft model",
            ),
        )
        for tier in plan.kv_tiers:
            refuse((tier_kind(tier) == "remote", f"KV tier {tier.name!r} outside the node", "LMCache or Mooncake beside vLLM"))
        refuse(
            (
                plan.kv_tiers and tier_kind(plan.kv_tiers[0]) != "host",
                "a KV tier on drives without one in host memory",
                "a host tier before it",
            )
        )


def _check_layout(job: ServeJob, role: Role, plan: EnginePlan) -> None:
    world, per_node = plan.tp * plan.pp * plan.cp, job.cluster.gpus_per_node
    spread = plan.tp * plan.dp * plan.cp
    refuse(
        (plan.attention_ffn, "attention apart from FFN", "prefill on replicas of its own with wide expert parallelism"),
        (
            plan.ep > 1 and plan.ep != spread,
            f"ep={plan.ep}: experts are spread over all tp x dp x cp = {spread} GPUs of a stage",
            f"ep={spread} or 1",
        ),
        (plan.dp > 1 and world > per_node, f"{world} GPUs of one data rank span nodes", f"tp x pp x cp of at most {per_node}, or dp=1"),
        (plan.dp > 1 and plan.n_gpus > per_node and per_node % world, f"data ranks of {world} GPUs in nodes of {per_node}", "a divisor"),
        (plan.cp > 1 and role == "decode", f"cp={plan.cp} on replicas that receive KV", "cp on the prefill replicas only"),
        (
            plan.cp > 1 and job.is_split and plan.tp > 1,
            f"cp={plan.cp} tp={plan.tp} on a prefill replica: NIXL sends a KV cache split by cp only with tp=1",
            "tp=1",
        ),
        (
            plan.cp > 1 and not job.model.is_mla,
            f"cp={plan.cp}: prompts split over ranks keep KV in equal parts for latent attention (MLA) only",
            "tp, or SGLang",
        ),
        (plan.redundant_experts and plan.ep == 1, f"redundant_experts={plan.redundant_experts} without ep", "ep > 1"),
    )


def _check_formats(plan: EnginePlan) -> None:
    refuse(
        (plan.kv_dtype not in (*KV_DTYPE, "bf16", "fp16"), f"kv_dtype={plan.kv_dtype}", "bf16, fp8, int8, int4 or nvfp4"),
        (
            plan.experts_in != plan.weight_dtype and plan.experts_in in QUANTIZATION,
            f"experts in {plan.experts_in} beside weights in {plan.weight_dtype}, converted while loading",
            "a checkpoint in those formats, or one format for all",
        ),
    )


def _check_states(job: ServeJob, plan: EnginePlan) -> None:
    """Recurrent states move between pools of equal tensor parallelism only (vLLM documentation, NixlConnector Compatibility Matrix)."""
    if not job.model.n_linear_layers:
        return
    widths = {p.tp for p in job.plans().values()}
    refuse(
        (plan.state_dtype != "fp32", f"recurrent states in {plan.state_dtype}", "SGLang's --mamba-ssm-dtype"),
        (len(widths) > 1, f"recurrent states between pools of tp={min(widths)} and tp={max(widths)}", "one tp for both pools"),
    )


def script(job: ServeJob, role: Role, plan: EnginePlan) -> str:
    """The script of one role: what stays open is asked for by name, further arguments go to ``vllm serve``."""
    n_nodes = spans(job)[role]
    what = f"One {role} replica of {job.model.name} on {plan.n_gpus} GPU(s) for vLLM {VERSION}; arguments go to `vllm serve`."
    text = HEAD.format(what=what) + model_lines(job, job.needed_format(QUANTIZATION)) + rope_lines(job)
    spec = plan.speculation
    if spec and spec.method == "chain":
        text += f'DRAFT_MODEL="${{DRAFT_MODEL:{f"-{spec.draft_model}" if spec.draft_model else "?set DRAFT_MODEL to the draft model"}}}"\n'
    if len(plan.kv_tiers) > 1:
        text += 'KV_FOLDER="${KV_FOLDER:?set KV_FOLDER to a folder on the drives that keep KV blocks}"\n'
    text += bash_array("ARGUMENTS", arguments(job, role, plan))
    if n_nodes > 1:
        text += _many_nodes(plan, n_nodes)
    return text + f'exec vllm serve "$MODEL" --host 0.0.0.0 --port "${{PORT:-{default_port(job)}}}" "${{ARGUMENTS[@]}}" "$@"\n'


def _many_nodes(plan: EnginePlan, n_nodes: int) -> str:
    """Arguments that differ from node to node: vLLM's own processes on each, only the first answers requests."""
    need = (
        ': "${MASTER_ADDR:?set MASTER_ADDR to the host name of the first node}"\n'
        ': "${REPLICA_RANK:?set REPLICA_RANK to the number of this node}"\n'
    )
    if plan.dp > 1:
        local = plan.dp // n_nodes
        ranks = (
            f'ARGUMENTS+=(--data-parallel-size-local {local} --data-parallel-address "$MASTER_ADDR" --data-parallel-rpc-port 13345)\n'
            f'[ "$REPLICA_RANK" = 0 ] || ARGUMENTS+=(--headless --data-parallel-start-rank "$((REPLICA_RANK * {local}))")\n'
        )
    else:
        ranks = (
            f'ARGUMENTS+=(--nnodes {n_nodes} --node-rank "$REPLICA_RANK" --master-addr "$MASTER_ADDR")\n'
            '[ "$REPLICA_RANK" = 0 ] || ARGUMENTS+=(--headless)\n'
        )
    return need + ranks


def arguments(job: ServeJob, role: Role, plan: EnginePlan) -> list[Argument]:
    """The arguments of ``vllm serve`` after the model that say what the plan says; those the shell fills in are Expand."""
    found = [flag("served-model-name", job.model.name), flag("max-model-len", job.context_tokens)]
    sizes = {"tensor": plan.tp, "pipeline": plan.pp, "data": plan.dp, "prefill-context": plan.cp, "decode-context": plan.cp}
    found += [flag(f"{axis}-parallel-size", size) for axis, size in sizes.items() if size > 1]
    if plan.ep > 1:
        found.append(("--enable-expert-parallel",))
    if plan.dp > 1 and by_all_to_all(plan):  # DeepEP's other kernels are for prompts and allow no CUDA graph
        found.append(flag("all2all-backend", "deepep_high_throughput" if role == "prefill" else "deepep_low_latency"))
    if plan.redundant_experts:
        found += [("--enable-eplb",), flag("eplb-config", to_flag({"num_redundant_experts": plan.redundant_experts}))]
    if plan.weight_dtype in ("bf16", "fp16"):
        found.append(flag("dtype", {"bf16": "bfloat16", "fp16": "float16"}[plan.weight_dtype]))
    if plan.weight_dtype in QUANTIZATION and job.model.weight_dtype in PLAIN:
        found.append(flag("quantization", QUANTIZATION[plan.weight_dtype]))
    if plan.kv_dtype in KV_DTYPE:
        found.append(flag("kv-cache-dtype", KV_DTYPE[plan.kv_dtype]))
    elif "nvfp4" in (plan.weight_dtype, plan.experts_in):  # such a checkpoint asks for 8 bits
        found.append(flag("kv-cache-dtype", {"bf16": "bfloat16", "fp16": "float16"}.get(plan.kv_dtype, "auto")))
    if job.model.linear_attention == "gated-delta":  # the other kinds keep 32 bits by themselves
        found.append(flag("mamba-ssm-cache-dtype", "float32"))
    if job.rope_factor > 1:
        found.append(("--hf-overrides", rope_override(job)))
    return found + _scheduler(job, plan) + _kv_transfer(role, plan) + _speculation(job, plan)


def _scheduler(job: ServeJob, plan: EnginePlan) -> list[Argument]:
    limit = limits(job, plan)
    found = [
        flag("max-num-seqs", limit.max_num_seqs),
        flag("max-num-batched-tokens", max(limit.token_budget, limit.max_num_seqs)),
        ("--enable-chunked-prefill",),
        ("--enable-prefix-caching" if plan.prefix_cache else "--no-enable-prefix-caching",),
        flag("gpu-memory-utilization", limit.memory_utilization_frac),
    ]
    if plan.block_tokens:
        found.append(flag("block-size", plan.block_tokens))
    if plan.kv_blocks:
        found.append(flag("num-gpu-blocks-override", plan.kv_blocks // plan.dp))
    if plan.policy == "priority":
        found.append(flag("scheduling-policy", "priority"))
    return found


def _kv_transfer(role: Role, plan: EnginePlan) -> list[Argument]:
    """NIXL between prefill and decode, the offloading connector for KV tiers, or both under one."""
    connectors: list[dict[str, Any]] = []
    if role != "serve":
        connectors.append({"kv_connector": "NixlConnector", "kv_role": "kv_producer" if role == "prefill" else "kv_consumer"})
    if plan.kv_tiers:
        extra: dict[str, Any] = {"cpu_bytes_to_use": int(plan.kv_tiers[0].capacity_bytes)}
        if len(plan.kv_tiers) > 1:
            extra |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [{"type": "fs", "root_dir": "$KV_FOLDER"}]}
        connectors.append({"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra})
    if not connectors:
        return []
    many = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": connectors}}
    text = to_flag(connectors[0] if len(connectors) == 1 else many)
    return [("--kv-transfer-config", Expand(text) if "$" in text else text)]


def _speculation(job: ServeJob, plan: EnginePlan) -> list[Argument]:
    spec = plan.speculation
    if spec is None:
        return []
    most = max([spec.draft_tokens, *(gamma for _, gamma in spec.gamma_by_batch)])
    config: dict[str, Any] = {"method": "mtp" if spec.method == "mtp" else "draft_model", "num_speculative_tokens": most}
    if spec.gamma_by_batch:
        config["num_speculative_tokens_per_batch_size"] = gamma_ranges(spec, limits(job, plan).max_num_seqs)
    draft: list[Argument] = [("--spec-model", Expand("$DRAFT_MODEL"))] if spec.method == "chain" else []
    return [flag("speculative-config", to_flag(config)), *draft]


def gamma_ranges(spec: Speculation, max_num_seqs: int) -> list[list[int]]:
    """γ by batch size as vLLM's (first, last, tokens) rows from 1 to ``max_num_seqs``; none are drafted over the last named batch."""
    rows, first = [], 1
    for batch, gamma in spec.gamma_by_batch:
        rows.append([first, batch, gamma])
        first = batch + 1
    return rows + ([[first, max_num_seqs, 0]] if first <= max_num_seqs else [])


def router(job: ServeJob) -> str:
    """router.sh: vllm-router before the replicas, with prefill and decode pools where there are two."""
    found = [flag("policy", ROUTER_POLICY[job.deployment.router])]
    if job.is_split:
        found += [("--vllm-pd-disaggregation",), flag("kv-connector", "nixl")]
        found += [(f"--{role}", url) for role in ("prefill", "decode") for url in urls(job, role)]
    else:
        found.append(("--worker-urls", *urls(job, "serve")))
    text = HEAD.format(what=f"vllm-router {ROUTER_VERSION} before the replicas; arguments go to it.") + hosts_line(job)
    text += bash_array("ARGUMENTS", found)
    return text + f'exec vllm-router --host 0.0.0.0 --port "${{ROUTER_PORT:-{ROUTER_PORT}}}" "${{ARGUMENTS[@]}}" "$@"\n'
