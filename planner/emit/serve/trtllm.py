"""tensorrt-llm/: `trtllm-serve` with a YAML file of LLM API options for each role, and its disaggregated server before PD pools."""

from __future__ import annotations

from typing import Any

from ....scenarios.serving import EnginePlan
from ..target import refuse, to_yaml
from .job import ROUTER_PORT, Role, ServeJob, limits, parts
from .shell import HEAD, default_port, has_router, hosts_line, launcher, model_lines, needs_launcher, spans, tier_kind

TITLE = "TensorRT-LLM"
VERSION = "1.2"
SPECIAL = ("qwen3-next", "deepseek-v3.2")
"""Models with recurrent states or sparse attention in the release's list of supported models; GLM-5 came with 1.3."""
NOTE = f"# TensorRT-LLM {VERSION}, PyTorch backend: keys as its LLM API documents them; not parsed by the real program.\n"

KV_DTYPE = {"fp8": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4"}
"""KV format -> ``kv_cache_config.dtype``."""


def how(job: ServeJob) -> str:
    """How to run it; keys are from the documentation."""
    start = "launch.sh" if needs_launcher(job) else "serve.sh"
    return f"`bash tensorrt-llm/{start}`; keys as documented, not checked by the program"


def emit(job: ServeJob) -> dict[str, str]:
    """A script and its options for each role; CannotExpress for what the LLM API has no key for."""
    check_expressible(job)
    files = {}
    for role, plan in job.plans().items():
        files[f"tensorrt-llm/{role}.yaml"] = NOTE + to_yaml(options(job, role, plan))
        files[f"tensorrt-llm/{role}.sh"] = script(job, role)
    if needs_launcher(job):
        files["tensorrt-llm/launch.sh"] = launcher(job, f"TensorRT-LLM {VERSION}")
    if has_router(job):
        files["tensorrt-llm/router.sh"] = router(job)
    return files


def check_expressible(job: ServeJob) -> None:
    """CannotExpress for the first thing in any role's plan without a documented key."""
    special = job.model.special_layers
    refuse(
        (special and not job.model.name.startswith(SPECIAL), f"{special} of {job.model.name}: not among its models", "vLLM or SGLang"),
        (max(spans(job).values()) > 1, "a replica over several nodes: trtllm-serve needs MPI or Slurm's own launch", "vLLM or SGLang"),
        (job.rope_factor > 1, "rope scaling", "rope_parameters in the checkpoint's config.json, vLLM or SGLang"),
        (has_router(job) and not job.is_split, "several replicas without a router of its own", "an HTTP load balancer, vLLM or SGLang"),
    )
    for plan in job.plans().values():
        spec = plan.speculation
        refuse(
            (plan.attention_ffn, "attention apart from FFN", "prefill on replicas of its own with wide expert parallelism"),
            (plan.dp > 1 and plan.tp > 1, f"dp={plan.dp} tp={plan.tp}: attention is either split or copied, not both", "tp=1 or dp=1"),
            (plan.cp > 1, f"cp={plan.cp}", "vLLM or SGLang"),
            (plan.ep > 1 and (plan.tp * plan.dp) % plan.ep, f"ep={plan.ep} of {plan.tp * plan.dp} GPUs", "a divisor"),
            (plan.redundant_experts, f"redundant_experts={plan.redundant_experts}: needs a load balancer file of the model's", "SGLang"),
            (plan.kv_dtype not in (*KV_DTYPE, "bf16", "fp16"), f"kv_dtype={plan.kv_dtype}", "bf16, fp8 or nvfp4"),
            (plan.policy not in ("", "vllm-v1", "sarathi"), f"policy={plan.policy}", "in-flight batching with chunked prefill"),
            (spec and spec.method != "mtp", f"speculation method={spec.method if spec else ''}", "method=mtp, vLLM or SGLang"),
            (spec and spec.gamma_by_batch, "draft tokens by batch size", "vLLM"),
            (len(plan.kv_tiers) > 1, "KV tiers past host memory", "one host tier"),
            (any(tier_kind(t) != "host" for t in plan.kv_tiers), "a KV tier that is not host memory", "a host tier"),
        )


def options(job: ServeJob, role: Role, plan: EnginePlan) -> dict[str, Any]:
    """The options as the LLM API names them; ``tensor_parallel_size`` counts attention's data ranks too."""
    limit = limits(job, plan)
    cache: dict[str, Any] = {"enable_block_reuse": plan.prefix_cache, "free_gpu_memory_fraction": limit.memory_utilization_frac}
    if plan.kv_dtype in KV_DTYPE:
        cache["dtype"] = KV_DTYPE[plan.kv_dtype]
    if plan.kv_tiers:
        cache["host_cache_size"] = int(plan.kv_tiers[0].capacity_bytes)
    if plan.block_tokens >= 2 and plan.block_tokens & (plan.block_tokens - 1) == 0:
        cache["tokens_per_block"] = plan.block_tokens
    found: dict[str, Any] = {"tensor_parallel_size": plan.tp * plan.dp, "pipeline_parallel_size": plan.pp}
    if plan.ep > 1:
        found["moe_expert_parallel_size"] = plan.ep
    if plan.dp > 1:
        found["enable_attention_dp"] = True
    found |= {
        "max_batch_size": limit.max_num_seqs,
        "max_num_tokens": limit.token_budget,
        "max_seq_len": job.context_tokens,
        "enable_chunked_prefill": True,
        "kv_cache_config": cache,
    }
    if plan.speculation:
        found["speculative_config"] = {"decoding_type": "MTP", "num_nextn_predict_layers": plan.speculation.draft_tokens}
    if role != "serve":
        found["cache_transceiver_config"] = {"backend": "DEFAULT", "max_tokens_in_buffer": job.prompt_tokens}
    if role == "prefill":
        found["disable_overlap_scheduler"] = True
    return found


def script(job: ServeJob, role: Role) -> str:
    """The script of one role; further arguments go to ``trtllm-serve``."""
    text = HEAD.format(what=f"One {role} replica of {job.model.name} for TensorRT-LLM {VERSION}; arguments go to it.")
    text += model_lines(job, job.needed_format(()))
    listen = f'--host 0.0.0.0 --port "${{PORT:-{default_port(job)}}}"'
    return text + f'exec trtllm-serve "$MODEL" --backend pytorch {listen} --extra_llm_api_options {role}.yaml "$@"\n'


def router(job: ServeJob) -> str:
    """router.sh: writes the disaggregated server's YAML with the hosts filled in, and starts it."""
    lines = [f"hostname: 0.0.0.0\nport: ${{ROUTER_PORT:-{ROUTER_PORT}}}\nbackend: pytorch\n"]
    for pool, role in (("context_servers", "prefill"), ("generation_servers", "decode")):
        found = [p for p in parts(job) if p.role == role and p.rank == 0]
        urls = ", ".join(f'"${{hosts[{p.node}]}}:{p.port}"' for p in found)
        lines.append(f"{pool}:\n  num_instances: {len(found)}\n  urls: [{urls}]\n")
    return (
        HEAD.format(what=f"The disaggregated server of TensorRT-LLM {VERSION} before both pools; arguments go to it.")
        + hosts_line(job)
        + f"cat > disaggregated.yaml <<YAML\n{''.join(lines)}YAML\n"
        + 'exec trtllm-serve disaggregated -c disaggregated.yaml "$@"\n'
    )
