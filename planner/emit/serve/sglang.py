"""sglang/: `sglang.launch_server` for each role of the deployment, a launcher a node, and sglang-router before several replicas."""

from __future__ import annotations

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
    urls,
)

TITLE = "SGLang"
VERSION, ROUTER_VERSION = "0.5.23", "0.3.2"
BOOTSTRAP_PORT = 8998

QUANTIZATION = {"fp8": "fp8"}
"""Weight format -> ``--quantization`` that converts plain weights while loading; a checkpoint in another format says so itself."""

KV_DTYPE = {"bf16": "bfloat16", "fp8": "fp8_e4m3", "nvfp4": "nvfp4", "fp4": "nvfp4"}
"""KV format -> ``--kv-cache-dtype``."""

POLICIES = ("", "sglang", "vllm-v1", "sarathi", "priority")

ROUTER_POLICY = {
    "round-robin": "round_robin", "random": "random", "prefix-hash": "cache_aware", "least-outstanding": "power_of_two",
    "power-of-two": "power_of_two", "kv-aware": "power_of_two", "cache-aware": "cache_aware",
}  # fmt: skip
"""Router -> sglang-router's policy, or the nearest it has."""


def how(job: ServeJob) -> str:
    """How to run it."""
    return "`bash sglang/launch.sh`" if needs_launcher(job) else "`bash sglang/serve.sh`"


def emit(job: ServeJob) -> dict[str, str]:
    """The scripts; CannotExpress for what SGLang has no switch for."""
    check_expressible(job)
    files = {f"sglang/{role}.sh": script(job, role, plan) for role, plan in job.plans().items()}
    if needs_launcher(job):
        bootstrap = [f'BOOTSTRAP_PORT="$(({BOOTSTRAP_PORT} + port))"'] if job.is_split else []
        files["sglang/launch.sh"] = launcher(job, f"SGLang {VERSION}", bootstrap)
    if has_router(job):
        files["sglang/router.sh"] = router(job)
    return files


def check_expressible(job: ServeJob) -> None:
    """CannotExpress for the first thing in any role's plan that SGLang cannot do."""
    for role, plan in job.plans().items():
        width, spec = plan.tp * plan.dp * plan.cp, plan.speculation
        refuse(
            (job.model.linear_attention == "lightning", f"lightning attention of {job.model.name}: not among its models", "vLLM"),
            (plan.attention_ffn, "attention apart from FFN", "prefill on replicas of its own with wide expert parallelism"),
            (plan.ep > 1 and width % plan.ep, f"ep={plan.ep} does not divide the {width} GPUs of a stage", f"ep={width} or a divisor"),
            (
                plan.cp > 1 and (role != "prefill" or job.model.is_mla),
                f"cp={plan.cp}: KV in equal parts over context ranks is for prefill replicas of models with grouped heads",
                "prefill on replicas of its own, or vLLM for latent attention",
            ),
            (plan.redundant_experts and plan.ep == 1, f"redundant_experts={plan.redundant_experts} without ep", "ep > 1"),
            (plan.policy not in POLICIES, f"policy={plan.policy}", "SGLang's own scheduler"),
            (plan.preemption == "swap", "preemption by swapping: SGLang recomputes", "preemption=recompute"),
            (
                plan.experts_in != plan.weight_dtype and plan.experts_in in QUANTIZATION,
                f"experts in {plan.experts_in} beside weights in {plan.weight_dtype}, converted while loading",
                "a checkpoint in those formats, or one format for all",
            ),
            (plan.kv_dtype not in (*KV_DTYPE, "fp16"), f"kv_dtype={plan.kv_dtype}", "bf16, fp8 or nvfp4"),
            (
                spec and spec.method == "mtp" and not job.model.n_mtp_layers,
                f"method=mtp: {job.model.name} has no multi-token-prediction layers",
                "method=chain with a draft model",
            ),
            (spec and spec.gamma_by_batch, "draft tokens by batch size", "vLLM, or one draft_tokens for all batches"),
        )
        for tier, kind in ((t, tier_kind(t)) for t in plan.kv_tiers):
            refuse((kind == "remote", f"KV tier {tier.name!r} outside the node", "--hicache-storage-backend mooncake with its own service"))
        refuse(
            (
                plan.kv_tiers and tier_kind(plan.kv_tiers[0]) != "host",
                "a KV tier on drives without one in host memory",
                "a host tier before it",
            )
        )


def script(job: ServeJob, role: Role, plan: EnginePlan) -> str:
    """The script of one role; further arguments go to SGLang."""
    n_nodes, spec = spans(job)[role], plan.speculation
    what = f"One {role} replica of {job.model.name} on {plan.n_gpus} GPU(s) for SGLang {VERSION}; arguments go to it."
    text = HEAD.format(what=what) + model_lines(job, job.needed_format(QUANTIZATION)) + rope_lines(job)
    if spec and spec.method != "mtp":
        given = f"-{spec.draft_model}" if spec.draft_model else "?set DRAFT_MODEL to the draft model"
        text += f'DRAFT_MODEL="${{DRAFT_MODEL:{given}}}"\n'
    if len(plan.kv_tiers) > 1:
        text += (
            'export SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR="${KV_FOLDER:?set KV_FOLDER to a folder on the drives that keep KV blocks}"\n'
        )
    text += bash_array("ARGUMENTS", arguments(job, role, plan))
    if n_nodes > 1:
        text += (
            ': "${MASTER_ADDR:?set MASTER_ADDR to the host name of the first node}"\n'
            ': "${REPLICA_RANK:?set REPLICA_RANK to the number of this node}"\n'
            f'ARGUMENTS+=(--nnodes {n_nodes} --node-rank "$REPLICA_RANK" --dist-init-addr "$MASTER_ADDR:5000")\n'
        )
    listen = f'--host 0.0.0.0 --port "${{PORT:-{default_port(job)}}}"'
    return text + f'exec python3 -m sglang.launch_server --model-path "$MODEL" {listen} "${{ARGUMENTS[@]}}" "$@"\n'


def arguments(job: ServeJob, role: Role, plan: EnginePlan) -> list[Argument]:
    """The arguments of ``sglang.launch_server`` that say what the plan says; ``--tp-size`` counts all GPUs of a stage."""
    limit = limits(job, plan)
    found = [flag("served-model-name", job.model.name), flag("context-length", job.context_tokens)]
    sizes = {"tp-size": plan.tp * plan.dp * plan.cp, "pp-size": plan.pp, "attn-dp-size": plan.dp, "ep-size": plan.ep}
    found += [flag(name, size) for name, size in sizes.items() if size > 1]
    if plan.cp > 1:
        found += [flag("attn-cp-size", plan.cp), ("--enable-prefill-cp",), flag("cp-strategy", "zigzag"), ("--enable-kv-cache-sharding",)]
    if plan.dp > 1 and by_all_to_all(plan):
        mode = {"prefill": "normal", "decode": "low_latency", "serve": "auto"}[role]
        found += [flag("moe-a2a-backend", "deepep"), flag("deepep-mode", mode)]
    if plan.redundant_experts:
        found += [("--enable-eplb",), flag("ep-num-redundant-experts", plan.redundant_experts)]
    if plan.weight_dtype in ("bf16", "fp16"):
        found.append(flag("dtype", {"bf16": "bfloat16", "fp16": "float16"}[plan.weight_dtype]))
    if plan.weight_dtype in QUANTIZATION and job.model.weight_dtype in PLAIN:
        found.append(flag("quantization", QUANTIZATION[plan.weight_dtype]))
    found.append(flag("kv-cache-dtype", KV_DTYPE.get(plan.kv_dtype, "auto")))
    if job.model.n_linear_layers:
        found.append(flag("mamba-ssm-dtype", {"fp32": "float32", "bf16": "bfloat16"}[plan.state_dtype]))
    if job.rope_factor > 1:
        found.append(("--json-model-override-args", rope_override(job)))
    found += [
        flag("max-running-requests", limit.max_num_seqs * plan.dp),
        flag("chunked-prefill-size", limit.token_budget * plan.dp),
        flag("max-prefill-tokens", limit.token_budget),
        flag("mem-fraction-static", limit.memory_utilization_frac),
    ]
    if role == "serve" and mixes(plan):
        found.append(("--enable-mixed-chunk",))
    if plan.policy == "priority":
        found += [("--enable-priority-scheduling",), ("--schedule-low-priority-values-first",)]
    if plan.block_tokens:
        found.append(flag("page-size", plan.block_tokens))
    if plan.kv_blocks:
        found.append(flag("max-total-tokens", plan.kv_blocks // plan.dp * limit.block_tokens))
    if not plan.prefix_cache:
        found.append(("--disable-radix-cache",))
    return found + ([] if role == "decode" else _tiers(plan)) + _transfer(role) + _speculation(plan.speculation)


def mixes(plan: EnginePlan) -> bool:
    """Whether a step carries prompts and decodes together, as vLLM's do; SGLang's own steps carry one or the other."""
    return plan.policy in ("vllm-v1", "sarathi") or (not plan.policy and plan.engine.startswith("vllm"))


def _tiers(plan: EnginePlan) -> list[Argument]:
    """Host memory, then files; ``--hicache-size`` is gigabytes of one rank."""
    if not plan.kv_tiers:
        return []
    per_rank = plan.kv_tiers[0].capacity_bytes / 1e9 / (plan.tp * plan.pp * plan.dp * plan.cp)
    found = [("--enable-hierarchical-cache",), flag("hicache-size", max(1, round(per_rank)))]
    return found + ([flag("hicache-storage-backend", "file")] if len(plan.kv_tiers) > 1 else [])


def _transfer(role: Role) -> list[Argument]:
    if role == "serve":
        return []
    found = [flag("disaggregation-mode", role), flag("disaggregation-transfer-backend", "nixl")]
    if role == "prefill":
        found.append(("--disaggregation-bootstrap-port", Expand(f"${{BOOTSTRAP_PORT:-{BOOTSTRAP_PORT}}}")))
    return found


def _speculation(spec: Speculation | None) -> list[Argument]:
    """Chains and trees of a draft model, or the model's own extra heads; a chain of γ checks γ + 1 tokens."""
    if spec is None:
        return []
    width = spec.tree_width if spec.method == "tree" else 1
    algorithm = {"mtp": "NEXTN", "chain": "STANDALONE", "tree": "EAGLE"}[spec.method]
    found = [
        flag("speculative-algorithm", algorithm),
        flag("speculative-num-steps", spec.draft_tokens),
        flag("speculative-eagle-topk", width),
        flag("speculative-num-draft-tokens", spec.draft_tokens * width + 1),
    ]
    draft: list[Argument] = [] if spec.method == "mtp" else [("--speculative-draft-model-path", Expand("$DRAFT_MODEL"))]
    return found + draft


def router(job: ServeJob) -> str:
    """router.sh: sglang-router before the replicas, with prefill and decode pools where there are two."""
    found = [flag("policy", ROUTER_POLICY[job.deployment.router])]
    if job.is_split:
        found.append(("--pd-disaggregation",))
        for url in urls(job, "prefill"):
            found.append(("--prefill", url, str(BOOTSTRAP_PORT + int(url.rsplit(":", 1)[1]))))
        found += [("--decode", url) for url in urls(job, "decode")]
    else:
        found.append(("--worker-urls", *urls(job, "serve")))
    text = HEAD.format(what=f"sglang-router {ROUTER_VERSION} before the replicas; arguments go to it.") + hosts_line(job)
    text += bash_array("ARGUMENTS", found)
    return (
        text
        + f'exec python3 -m sglang_router.launch_router --host 0.0.0.0 --port "${{ROUTER_PORT:-{ROUTER_PORT}}}" "${{ARGUMENTS[@]}}" "$@"\n'
    )
