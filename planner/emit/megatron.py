"""megatron/pretrain.sh: the plan as arguments of Megatron-LM's pretrain_gpt.py, as megatron-core 0.16.1 reads them."""

from __future__ import annotations

from . import launch
from .target import CannotExpress, Job, refuse

TITLE = "Megatron-LM arguments"
HOW = "`MEGATRON_LM=/path/to/Megatron-LM bash megatron/pretrain.sh`"

Arguments = list[tuple[str, ...]]
"""Each a flag and its values."""

CP_COMM = {"zigzag": "p2p", "allgather": "all_gather", "ulysses": "a2a", "ulysses-ring": "a2a+p2p"}
FP8_RECIPES = {"fp8": "tensorwise", "fp8_block": "blockwise", "mxfp8": "mxfp8"}
STATE_DTYPES = {"adamw-bf16": "bf16", "adamw-8bit": "fp8"}


def emit(job: Job) -> dict[str, str]:
    """A launcher that holds the arguments; CannotExpress for what Megatron-LM has no flag for."""
    what = f"{job.world} ranks of Megatron-LM (core 0.16.1) on {job.nodes} node(s); extra arguments go to pretrain_gpt.py"
    head = launch.HEAD.format(what=what) + ': "${MEGATRON_LM:?set MEGATRON_LM to a checkout of Megatron-LM}"\n'
    path = 'export PYTHONPATH="$MEGATRON_LM${PYTHONPATH:+:$PYTHONPATH}"\n'
    array = launch.bash_array("ARGUMENTS", arguments(job))
    command = launch.torchrun_command(job, '"$MEGATRON_LM/pretrain_gpt.py"', '"${ARGUMENTS[@]}"')
    return {"megatron/pretrain.sh": head + launch.environment(job) + _connections(job) + path + array + command}


def arguments(job: Job) -> Arguments:
    """All arguments, by subject: model, layout, memory, precision, batch and optimizer, data."""
    check_expressible(job)
    return [*_model(job), *_attention(job), *_experts(job), *_layout(job), *_memory(job), *_precision(job), *_training(job)]


def check_expressible(job: Job) -> None:
    """CannotExpress for plans outside Megatron-LM's switches."""
    plan, model = job.plan, job.model
    refuse(
        (plan.cp > 1 and plan.cp_kind == "ring", "cp_kind=ring: Megatron's ring is always balanced", "cp_kind=zigzag"),
        (
            plan.schedule not in ("1f1b", "interleaved") and plan.pp > 1,
            f"schedule={plan.schedule}: no flag",
            "1f1b or interleaved, or torchtitan",
        ),
        (plan.sharding in ("fsdp", "hsdp") or plan.zero_stage > 1, "ZeRO stage 2 or 3 or FSDP", "zero_stage=1, the distributed optimizer"),
        (plan.recompute == "remat", "recompute=remat is research-only here: no flag", "recompute=full or selective"),
        (plan.offload_params, "offload_params: no flag", "train.py (DeepSpeed)"),
        (plan.offload_activations, "offload_activations of checkpoints: no flag", "train.py (DeepSpeed)"),
        (plan.tiled_mlp, "tiled_mlp: no flag for training", "tp, or train.py"),
        (plan.fused_loss, "fused_loss: the logits are always whole", "tp, which splits the vocabulary, or train.py"),
        (plan.lora_rank, f"lora_rank={plan.lora_rank}: pretrain_gpt.py has no adapters", "train.py, which uses peft"),
        (plan.optimizer in ("lion", "mezo"), f"optimizer={plan.optimizer}: no flag", "adamw"),
        (plan.precision not in ("bf16", "fp16", "fp32", *FP8_RECIPES), f"precision={plan.precision}: no flag", "bf16 or fp8"),
        (plan.offload_optimizer and plan.optimizer != "adamw", "offload of another optimizer than AdamW", "adamw"),
        (model.norm == "rmsnorm" and model.position == "alibi", "ALiBi positions: no flag", "rope"),
    )


def _model(job: Job) -> Arguments:
    model = job.model
    position = {"rope": "rope", "learned": "learned_absolute", "none": "none"}.get(model.position)
    if position is None:
        raise CannotExpress(f"{model.position} positions: no flag", "rope")
    found: Arguments = [
        ("--num-layers", str(model.n_layers)),
        ("--hidden-size", str(model.hidden)),
        ("--ffn-hidden-size", str(model.ffn_hidden or model.moe_ffn_hidden)),
        ("--num-attention-heads", str(model.n_heads)),
        ("--seq-length", str(job.seq_tokens)),
        ("--max-position-embeddings", str(max(job.seq_tokens, model.max_seq_tokens))),
        ("--position-embedding-type", position),
        ("--normalization", "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm"),
        ("--attention-dropout", "0.0"),
        ("--hidden-dropout", "0.0"),
    ]
    if model.position == "rope":
        found.append(("--rotary-base", "500000"))
    for flag, present in (
        ("--swiglu", model.gated_mlp),
        ("--disable-bias-linear", not model.linear_bias),
        ("--add-qkv-bias", model.qkv_bias and not model.linear_bias),
        ("--qk-layernorm", model.qk_norm),
        ("--untie-embeddings-and-output-weights", not model.tied_embeddings),
    ):
        if present:
            found.append((flag,))
    if model.n_mtp_layers:
        found.append(("--mtp-num-layers", str(model.n_mtp_layers)))
    return found


def _attention(job: Job) -> Arguments:
    model, plan = job.model, job.plan
    found: Arguments = [("--attention-backend", "flash" if plan.attention == "flash" else "unfused")]
    if model.is_mla:
        found += [("--multi-latent-attention",), ("--kv-lora-rank", str(model.kv_lora_rank))]
        found += [("--q-lora-rank", str(model.q_lora_rank))] if model.q_lora_rank else []
        found += [
            ("--qk-head-dim", str(model.head_dim)),
            ("--qk-pos-emb-head-dim", str(model.rope_head_dim)),
            ("--v-head-dim", str(model.v_dim)),
        ]
        return found
    found.append(("--kv-channels", str(model.head_dim)))
    if model.n_kv_heads != model.n_heads:
        found += [("--group-query-attention",), ("--num-query-groups", str(model.n_kv_heads))]
    if model.window_tokens:
        found.append(("--window-size", f"{model.window_tokens - 1},0"))
        if model.full_attention_every:
            found.append(("--window-attn-skip-freq", str(model.full_attention_every)))
    return found


def _experts(job: Job) -> Arguments:
    model, plan = job.model, job.plan
    if not model.n_experts:
        return []
    dense = model.n_dense_layers
    layers = f"[0]*{dense}+[1]*{model.n_layers - dense}" if model.moe_every == 1 else str(model.moe_every)
    found: Arguments = [
        ("--num-experts", str(model.n_experts)),
        ("--moe-router-topk", str(model.top_k)),
        ("--moe-ffn-hidden-size", str(model.moe_ffn_hidden)),
        ("--moe-layer-freq", f"({layers})" if dense else "1" if model.moe_every == 1 else layers),
        ("--moe-grouped-gemm",),
        ("--moe-token-dispatcher-type", "alltoall"),
        ("--moe-router-load-balancing-type", "aux_loss"),
        ("--moe-aux-loss-coeff", "0.001"),
        ("--expert-model-parallel-size", str(plan.ep)),
        ("--expert-tensor-parallel-size", str(plan.expert_tp)),
    ]
    if model.shared_hidden:
        found.append(("--moe-shared-expert-intermediate-size", str(model.shared_hidden)))
    if model.n_expert_groups > 1:
        found += [("--moe-router-num-groups", str(model.n_expert_groups)), ("--moe-router-group-topk", str(model.top_k_groups))]
    return found


def _layout(job: Job) -> Arguments:
    plan = job.plan
    found: Arguments = [
        ("--tensor-model-parallel-size", str(plan.tp)),
        ("--pipeline-model-parallel-size", str(plan.pp)),
        ("--context-parallel-size", str(plan.cp)),
    ]
    if plan.tp > 1 and plan.sequence_parallel:
        found.append(("--sequence-parallel",))
    if plan.cp > 1:
        found.append(("--cp-comm-type", CP_COMM[plan.cp_kind]))
    if plan.cp_kind == "ulysses-ring" and plan.cp > 1:
        found.append(("--hierarchical-context-parallel-sizes", str(plan.cp_inner), str(plan.cp // plan.cp_inner)))
    if plan.pp > 1 and plan.vpp > 1:
        found.append(("--num-virtual-stages-per-pipeline-rank", str(plan.vpp)))
    if plan.pp > 1 and plan.layers_first:
        found.append(("--decoder-first-pipeline-num-layers", str(plan.layers_first)))
    if plan.pp > 1 and plan.layers_last:
        found.append(("--decoder-last-pipeline-num-layers", str(plan.layers_last)))
    if plan.sharding == "zero" and plan.zero_stage == 1:
        found += [("--use-distributed-optimizer",), ("--overlap-grad-reduce",), ("--overlap-param-gather",)]
    return found


def _memory(job: Job) -> Arguments:
    plan = job.plan
    found: Arguments = []
    if plan.recompute == "selective":
        found.append(("--recompute-granularity", "selective"))
    elif plan.recompute == "full":
        method, layers = ("uniform", 1) if plan.recompute_layers < 0 else ("block", plan.recompute_layers)
        found += [("--recompute-granularity", "full"), ("--recompute-method", method), ("--recompute-num-layers", str(layers))]
    if plan.offload_optimizer:
        found += [("--optimizer-cpu-offload",), ("--optimizer-offload-fraction", f"{float(plan.offload_optimizer):g}")]
    return found


def _precision(job: Job) -> Arguments:
    plan = job.plan
    found: Arguments = [] if plan.precision == "fp32" else [("--fp16",)] if plan.precision == "fp16" else [("--bf16",)]
    if plan.precision in FP8_RECIPES:
        found += [("--fp8-format", "e4m3" if plan.precision == "fp8_block" else "hybrid"), ("--fp8-recipe", FP8_RECIPES[plan.precision])]
    if plan.optimizer in STATE_DTYPES or plan.offload_optimizer:
        found.append(("--use-precision-aware-optimizer",))
    if plan.optimizer in STATE_DTYPES:
        dtype = STATE_DTYPES[plan.optimizer]
        found += [("--exp-avg-dtype", dtype), ("--exp-avg-sq-dtype", dtype)]
    return found


def _training(job: Job) -> Arguments:
    plan = job.plan
    return [
        ("--micro-batch-size", str(plan.micro_batch)),
        ("--global-batch-size", str(job.global_batch)),
        ("--train-iters", "10"),
        ("--optimizer", "sgd" if plan.optimizer == "sgd" else "adam"),
        ("--lr", f"{job.learning_rate:g}"),
        ("--weight-decay", "0.0"),
        ("--adam-beta2", "0.95"),
        ("--clip-grad", f"{job.gradient_clipping:g}"),
        ("--tokenizer-type", "NullTokenizer"),
        ("--vocab-size", str(job.model.vocab)),
        ("--mock-data",),
        ("--eval-iters", "0"),
        ("--log-interval", "1"),
        ("--log-throughput",),
        ("--distributed-timeout-minutes", "60"),
    ]


def _connections(job: Job) -> str:
    """One hardware queue, so that communication starts before the matmul it hides behind; GPUs before Blackwell need it."""
    arch = job.accelerator.compute_capability
    split = job.plan.tp > 1 or job.plan.cp > 1
    return "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" if split and not arch.startswith(("10", "12")) else ""
