"""Trains the plan of plan.json with DeepSpeed: ZeRO, offload, Ulysses sequence parallelism, tiled MLP and loss, checkpoints on the host.

bash launch_torchrun.sh                             the plan as priced, on synthetic tokens
bash launch_torchrun.sh --data tokens.bin           on your tokens: one flat file, cut into sequences
torchrun --nproc_per_node 2 train.py --tiny         the same architecture, small, random weights: runs on a CPU
"""

import argparse
import json

import deepspeed
import parts
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps")
    parser.add_argument("--data", help=".bin (uint16, uint32 above 65,536 tokens) or .npy of token ids; default: synthetic")
    parser.add_argument("--weights", help="a Hugging Face model or folder to start from; default: random weights of config.json")
    parser.add_argument("--lr", type=float, help="learning rate instead of ds_config.json's")
    parser.add_argument("--save", help="folder for a DeepSpeed checkpoint at the end")
    parser.add_argument("--measured", default="measured.csv", help="where to write what was measured")
    parser.add_argument("--tiny", action="store_true", help="shrink the model and the sequence; any number of ranks")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    return parser.parse_args()


def deepspeed_config(args, plan):
    """ds_config.json, with the batch of the ranks that really run and, without a GPU, torch's Adam instead of a compiled one."""
    config = json.loads((parts.HERE / "ds_config.json").read_text())
    config["train_batch_size"] = plan["dp"] * plan["micro_batch"] * plan["grad_accum"]
    if plan["cp"] > 1:
        config["sequence_parallel_size"] = plan["cp"]
    if args.lr is not None:
        config["optimizer"]["params"]["lr"] = args.lr
    if not torch.cuda.is_available() and config["optimizer"]["type"] == "AdamW":
        config["optimizer"]["params"]["torch_adam"] = True
        config["zero_force_ds_cpu_optimizer"] = False
    return config


def load_model(args, config, ds_config, plan):
    """The model in the training dtype; under ZeRO-3 its weights are sharded as they are made, never whole on one rank."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan["precision"]]
    kind = parts.attention_kind(plan)
    alive = HfDeepSpeedConfig(ds_config) if plan["zero_stage"] == 3 else None
    torch.manual_seed(0)
    if args.weights:
        model = AutoModelForCausalLM.from_pretrained(args.weights, dtype=dtype, attn_implementation=kind)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kind)
    del alive
    if plan["lora_rank"]:
        from peft import LoraConfig, inject_adapter_in_model

        model = inject_adapter_in_model(LoraConfig(r=plan["lora_rank"], target_modules="all-linear"), model)
        model.enable_input_require_grads()
    return model.train()


def main():
    args = arguments()
    job = parts.read_job()
    plan = job["plan"]
    rank, local_rank, world = parts.ranks()
    config = AutoConfig.from_pretrained(args.weights or parts.HERE / "config.json")
    if args.tiny:
        parts.shrink(config, job, world)
    elif world != plan["dp"] * plan["cp"]:
        raise SystemExit(f"the plan is for {plan['dp'] * plan['cp']} ranks, started with {world}; use the launchers, or --tiny")

    deepspeed.init_distributed()
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ds_config = deepspeed_config(args, plan)
    model = load_model(args, config, ds_config, plan)

    UlyssesSPAttentionHF.register_with_transformers(  # wraps the attention the model was built with; does nothing when cp = 1
        model, model.config._attn_implementation, sequence_parallel_size=plan["cp"], micro_batch_size=plan["micro_batch"],
        seq_length=job["workload"]["seq_tokens"], seq_length_is_variable=False,
    )  # fmt: skip
    parts.save_memory(model, plan)
    wrapped = parts.WithLoss(model, plan["fused_loss"])
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    # Without mpu= ZeRO shards and averages over all ranks, which is right: each has the mean loss of as many tokens. With it, DeepSpeed
    # 0.19.8 sums gradients over the sequence ranks in stages 0 to 2 and clips by a wrong norm.
    engine, *_ = deepspeed.initialize(model=wrapped, model_parameters=trained, config=ds_config)

    tokens = parts.Tokens(args.data, config.vocab_size, job["workload"]["seq_tokens"])
    place = {"plan": plan, "dp_rank": rank // plan["cp"], "cp_rank": rank % plan["cp"], "device": device}
    meter = parts.Meter(job, config, world, rank)
    for step in range(args.steps):
        total = torch.zeros((), device=device)
        for micro in range(plan["grad_accum"]):
            loss = engine(**tokens.batch(step, micro, **place))
            engine.backward(loss)
            engine.step()
            total += loss.detach() / plan["grad_accum"]
        dist.all_reduce(total)
        meter.step(step, total.item() / world)
    meter.finish(args.measured)
    if args.save:
        engine.save_checkpoint(args.save)
    parts.leave()


if __name__ == "__main__":
    main()
