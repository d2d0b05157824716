"""Trains the plan of plan.json with plain PyTorch: FSDP2 (fully_shard), tensor and sequence parallelism, HSDP, CPU offload.

bash launch_fsdp2.sh                                    the plan as priced, on synthetic tokens
bash launch_fsdp2.sh --data tokens.bin                  on your tokens: one flat file, cut into sequences
torchrun --nproc_per_node 2 train_fsdp2.py --tiny       the same architecture, small, random weights: runs on a CPU
"""

import argparse
from contextlib import nullcontext

import parts
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps")
    parser.add_argument("--data", help=".bin (uint16, uint32 above 65,536 tokens) or .npy of token ids; default: synthetic")
    parser.add_argument("--weights", help="a Hugging Face model or folder to start from; default: random weights of config.json")
    parser.add_argument("--lr", type=float, help="learning rate instead of the plan's")
    parser.add_argument("--clip", type=float, help="bound of the gradient norm instead of the plan's; 0: none")
    parser.add_argument("--measured", default="measured.csv", help="where to write what was measured")
    parser.add_argument("--tiny", action="store_true", help="shrink the model and the sequence; any number of ranks")
    return parser.parse_args()


def shard_tensors(model, mesh):
    """Tensor parallelism as Megatron lays it out: columns then rows; between them the sequence is split, so norms keep 1/tp of it."""
    split, whole = Shard(1), Replicate()
    layer_plan = {
        "input_layernorm": SequenceParallel(),
        "post_attention_layernorm": SequenceParallel(use_local_output=True),
        "self_attn": PrepareModuleInput(input_kwarg_layouts={"hidden_states": split}, desired_input_kwarg_layouts={"hidden_states": whole}),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),  # of each rank's own heads, where a model has it
        "self_attn.k_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
        "self_attn.o_proj": RowwiseParallel(output_layouts=split),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=split),
    }
    for layer in model.model.layers:
        present = {name: style for name, style in layer_plan.items() if not name.endswith("_norm") or hasattr(layer.self_attn, name[10:])}
        parallelize_module(layer, mesh, present)
        layer.mlp.forward = gathered(layer.mlp.forward, mesh)
    ends = {
        "model.embed_tokens": RowwiseParallel(input_layouts=whole, output_layouts=split),
        "model.norm": SequenceParallel(use_local_output=True),
        "lm_head": ColwiseParallel(input_layouts=split, output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, ends)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def gathered(forward, mesh):
    """``forward`` of the whole of what each tensor rank holds a part of; tiles of the sequence are gathered one by one."""
    return lambda part: forward(DTensor.from_local(part, mesh, [Shard(1)]).redistribute(placements=[Replicate()]))


class VocabSplitLoss(parts.WithLoss):
    """The loss when hidden states are split over the sequence and logits over the vocabulary."""

    def __init__(self, model, fused_loss, tp):
        super().__init__(model, fused_loss)
        self.tp = tp

    def loss_sum(self, hidden, labels):
        logits = self.model.lm_head(hidden).float()
        return cross_entropy(logits.flatten(0, 1), labels.transpose(1, 2).flatten(), reduction="sum").full_tensor()

    def forward(self, input_ids, position_ids, labels):
        """Labels as (batch, position within a tensor rank's part, tensor rank), so that they tile as the hidden states do."""
        return super().forward(input_ids, position_ids, labels.unflatten(1, (self.tp, -1)).transpose(1, 2))


def load_model(args, config, plan):
    """Random weights stay on the meta device until they are sharded; given weights are read whole by every rank, then sharded."""
    kwargs = {"dtype": torch.float32, "attn_implementation": parts.attention_kind(plan)}  # the master weights
    if args.weights:
        return AutoModelForCausalLM.from_pretrained(args.weights, **kwargs)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **kwargs)


def shard_data(wrapped, mesh, plan):
    """FSDP2: each layer, then what remains, sharded over the data ranks and gathered when used."""
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options = {
        "mesh": mesh,
        "reshard_after_forward": plan["zero_stage"] == 3,
        "mp_policy": bf16 if plan["precision"] == "bf16" else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if plan["offload_params"] else OffloadPolicy(),
    }
    for layer in wrapped.model.get_decoder().layers:
        fully_shard(layer, **options)
    fully_shard(wrapped, **options)


def main():
    args = arguments()
    job = parts.read_job()
    plan = job["plan"]
    rank, local_rank, world = parts.ranks()
    config = AutoConfig.from_pretrained(args.weights or parts.HERE / "config.json")
    if args.tiny:
        parts.shrink(config, job, world)
    elif world != plan["dp"] * plan["tp"]:
        raise SystemExit(f"the plan is for {plan['dp'] * plan['tp']} ranks, started with {world}; use the launcher, or --tiny")

    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    shards = plan["hsdp_group"] or plan["dp"]
    mesh = init_device_mesh(device.type, (plan["dp"] // shards, shards, plan["tp"]), mesh_dim_names=("replicate", "shard", "tp"))

    torch.manual_seed(0)
    model = load_model(args, config, plan).train()
    wrapped = parts.WithLoss(model, plan["fused_loss"])
    if plan["tp"] > 1:
        shard_tensors(model, mesh["tp"])
        wrapped = VocabSplitLoss(model, plan["fused_loss"], plan["tp"])
    parts.save_memory(model, plan)
    shard_data(wrapped, mesh["replicate", "shard"] if plan["hsdp_group"] else mesh["shard"], plan)
    if not args.weights:
        wrapped.to_empty(device="cpu" if plan["offload_params"] else device)
        model.initialize_weights()
    make = torch.optim.SGD if plan["optimizer"] == "sgd" else torch.optim.AdamW
    lr = job["training"]["learning_rate"] if args.lr is None else args.lr
    clip = job["training"]["gradient_clipping"] if args.clip is None else args.clip
    optimizer = make(wrapped.parameters(), lr=lr, weight_decay=0.0)

    tokens = parts.Tokens(args.data, config.vocab_size, job["workload"]["seq_tokens"])
    place = {"plan": plan, "dp_rank": rank // plan["tp"], "cp_rank": 0, "device": device}
    meter = parts.Meter(job, config, world, rank)
    for step in range(args.steps):
        total = torch.zeros((), device=device)
        for micro in range(plan["grad_accum"]):
            with loss_parallel() if plan["tp"] > 1 else nullcontext():
                loss = wrapped(**tokens.batch(step, micro, **place)) / plan["grad_accum"]
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(wrapped.parameters(), clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        meter.step(step, total.item() / world)
    meter.finish(args.measured)
    parts.leave()


if __name__ == "__main__":
    main()
