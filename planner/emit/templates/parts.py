"""What the training scripts of this folder share: the plan, the data, checkpointing, tiling, the loss and the measurement."""

import csv
import importlib.util
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).resolve().parent
LOGITS_TILE_BYTES = 2**30  # one tile of fp32 logits


def read_job():
    """plan.json: plan (the layout), workload, training, predicted, truth_row (the columns a measurement completes)."""
    return json.loads((HERE / "plan.json").read_text())


def shrink(config, job, world):
    """The same architecture small enough for a CPU: in place, layout kept as far as ``world`` ranks allow."""
    plan = job["plan"]
    for axis in ("tp", "cp"):
        plan[axis] = math.gcd(plan[axis], world)
    if plan["tp"] * plan["cp"] > world:
        plan["tp"] = 1
    plan["dp"] = world // (plan["tp"] * plan["cp"])
    plan["hsdp_group"] = plan["hsdp_group"] and math.gcd(plan["hsdp_group"], plan["dp"])
    group = config.num_attention_heads // config.num_key_value_heads
    kv = 8 if group == 1 else 2
    if kv * group % (plan["cp"] * plan["tp"]) or kv % plan["tp"]:
        kv = plan["cp"] * plan["tp"]
    config.num_key_value_heads, config.num_attention_heads, config.head_dim = kv, kv * group, 8
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size = 64, 128, 2, 256
    for name, value in {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "layer_types"):
        setattr(config, name, None if name != "layer_types" else ["full_attention"] * 2)
    job["predicted"] = {}
    job["workload"]["seq_tokens"] = 32 * plan["cp"] * plan["tp"]
    job["workload"]["global_batch"] = plan["dp"] * plan["micro_batch"] * plan["grad_accum"]


class Tokens:
    """Sequences of a flat token file: .npy, or .bin of uint16 (uint32 above 65,536 tokens). Without one, patterns whose loss must fall."""

    def __init__(self, path, vocab, seq_tokens):
        self.vocab, self.seq = vocab, seq_tokens
        dtype = np.uint16 if vocab <= 2**16 else np.uint32
        self.data = None if path is None else np.load(path, mmap_mode="r") if path.endswith(".npy") else np.memmap(path, dtype, "r")
        if self.data is not None and len(self.data) <= seq_tokens:
            raise SystemExit(f"{path} holds {len(self.data):,} tokens; one sequence needs {seq_tokens + 1:,}")

    def read(self, index, start, stop):
        """Tokens start..stop of sequence ``index``, and the tokens that follow each: a rank reads only its own slice."""
        if self.data is None:
            at = np.arange(start, stop + 1)
            tokens = (7 * index + (index % 5 + 1) * at) % min(self.vocab, 32)
        else:
            offset = index % ((len(self.data) - 1) // self.seq) * self.seq
            tokens = np.asarray(self.data[offset + start : offset + stop + 1]).astype(np.int64)
        return torch.from_numpy(tokens[:-1].copy()), torch.from_numpy(tokens[1:].copy())

    def batch(self, step, micro, *, plan, dp_rank, cp_rank, device):
        """The micro-batch of this data rank, and of its sequences the part of this sequence rank: every rank its own samples."""
        size, accum, dp, cp = (plan[k] for k in ("micro_batch", "grad_accum", "dp", "cp"))
        first = ((step * accum + micro) * dp + dp_rank) * size
        part = self.seq // cp
        start = cp_rank * part
        rows = [self.read(first + i, start, start + part) for i in range(size)]
        inputs, labels = (torch.stack(column).to(device) for column in zip(*rows, strict=True))
        positions = torch.arange(start, start + part, device=device).expand(size, -1)
        return {"input_ids": inputs, "position_ids": positions, "labels": labels}


class KeepAttention(TorchDispatchMode):
    """Records what the attention kernels return, or replays it: their forward then runs once even under recomputation."""

    def __init__(self, kept, replay, offload):
        super().__init__()
        self.kept, self.replay, self.offload = kept, replay, offload

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if not ("scaled_dot_product" in name or "flash_attn" in name) or "backward" in name:
            return func(*args, **(kwargs or {}))
        if self.replay:
            leaves, shape = self.kept.pop(0)
            return tree_unflatten([to_device(*leaf) for leaf in leaves], shape)
        out = func(*args, **(kwargs or {}))
        leaves, shape = tree_flatten(out)
        self.kept.append(([to_host(leaf, self.offload) for leaf in leaves], shape))
        return out


def to_host(value, offload):
    """(copy, device it came from): in pinned host memory when ``offload`` and on a GPU. torch rounds pinned sizes up to powers of two."""
    if not (offload and isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value, None
    host = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
    return host.copy_(value), value.device


def to_device(value, device):
    """Undo ``to_host``."""
    return value if device is None else value.to(device, non_blocking=True)


class Checkpoint(torch.autograd.Function):
    """Keeps a layer's input, on the host if ``offload``, and recomputes the layer in backward; with ``remat`` all but its attention."""

    @staticmethod
    def forward(ctx, layer, offload, remat, hidden):
        ctx.layer, ctx.offload, ctx.kept = layer, offload, [] if remat else None
        ctx.saved = to_host(hidden.detach(), offload)
        with torch.no_grad(), attention_mode(ctx, replay=False):
            return layer(hidden)

    @staticmethod
    def backward(ctx, grad):
        hidden = to_device(*ctx.saved).detach().requires_grad_()
        with torch.enable_grad(), attention_mode(ctx, replay=True):
            out = ctx.layer(hidden)
        ctx.saved = None
        torch.autograd.backward(out, grad)
        return None, None, None, hidden.grad


def attention_mode(ctx, replay):
    """Nothing, or the mode that keeps (``replay``: gives back) this layer's attention."""
    return nullcontext() if ctx.kept is None else KeepAttention(ctx.kept, replay, ctx.offload)


def checkpointed(forward, offload, remat):
    """``forward`` of a decoder layer, checkpointed; the arguments beside the hidden states carry no gradient."""

    def run(hidden, *args, **kwargs):
        return Checkpoint.apply(lambda h: forward(h, *args, **kwargs), offload, remat, hidden)

    return run


def tiled(forward, tile_tokens):
    """``forward`` of an MLP over pieces of the sequence, each recomputed in backward: one piece's activations live at a time."""

    def run(hidden):
        pieces = hidden.split(tile_tokens, dim=1)
        return torch.cat([checkpoint(forward, piece, use_reentrant=False) for piece in pieces], dim=1)

    return run


def save_memory(model, plan):
    """Apply the plan's recompute, activation offload and MLP tiling to a Hugging Face decoder."""
    layers = model.get_decoder().layers
    n_recompute = len(layers) if plan["recompute_layers"] < 0 else plan["recompute_layers"]
    n_offload = round(plan["offload_activations"] * n_recompute)
    for i, layer in enumerate(layers):
        if plan["tiled_mlp"] and hasattr(layer.mlp, "gate_proj"):
            layer.mlp.forward = tiled(layer.mlp.forward, model.config.hidden_size)
        if plan["recompute"] in ("full", "remat") and i < n_recompute:
            layer.forward = checkpointed(layer.forward, i < n_offload, plan["recompute"] == "remat")


class WithLoss(torch.nn.Module):
    """A causal language model whose forward returns the mean loss; the logits in one piece, or tiled over the sequence."""

    def __init__(self, model, fused_loss):
        super().__init__()
        self.model, self.fused_loss = model, fused_loss

    def loss_sum(self, hidden, labels):
        logits = self.model.get_output_embeddings()(hidden).float()
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def forward(self, input_ids, position_ids, labels):
        hidden = self.model.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        if not self.fused_loss:
            return self.loss_sum(hidden, labels) / labels.numel()
        tile = max(1, LOGITS_TILE_BYTES // (4 * self.model.config.vocab_size * len(labels)))
        tile = min(tile, -(-labels.shape[1] // 2))
        pairs = zip(hidden.split(tile, dim=1), labels.split(tile, dim=1), strict=True)
        return sum(checkpoint(self.loss_sum, h, y, use_reentrant=False) for h, y in pairs) / labels.numel()


def attention_kind(plan):
    """The fastest attention installed: FlashAttention 3, 2, else torch's own (which is flash too, on shapes it supports)."""
    if plan["attention"] == "unfused":
        return "eager"
    if torch.cuda.is_available():
        for module, name in (("flash_attn_interface", "flash_attention_3"), ("flash_attn", "flash_attention_2")):
            if importlib.util.find_spec(module):
                return name
    return "sdpa"


class Meter:
    """Times optimizer steps, and at the end sets them beside the prediction and writes measured.csv, one row for `roofplan validate`."""

    def __init__(self, job, config, world, rank):
        self.job, self.config, self.world, self.rank = job, config, world, rank
        self.tokens = job["workload"]["seq_tokens"] * job["workload"]["global_batch"]
        self.times, self.began = [], time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self, step, loss):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.times.append(now - self.began)
        self.began = now
        if self.rank == 0:
            rate = self.tokens / self.times[-1] / self.world
            peak = self.peak_bytes() / 2**30
            print(f"step {step}: loss {loss:.4f}, {self.times[-1]:.3f} s, {rate:,.0f} tokens/s/GPU, peak {peak:.2f} GiB", flush=True)

    def peak_bytes(self):
        """What torch's allocator reserved at most; the CUDA context is not in it, nor in the prediction."""
        return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0

    def finish(self, out):
        """Median step time of all but the first step; nothing is claimed from fewer than two steps."""
        if self.rank or len(self.times) < 2:
            return
        step_s = sorted(self.times[1:])[(len(self.times) - 1) // 2]
        peak = self.peak_bytes()
        for what, value, unit, key in (("step time", step_s, "s", "step_time_s"), ("peak memory", peak / 2**30, "GiB", "peak_gib")):
            predicted = self.job["predicted"].get(key)
            beside = f"predicted {predicted:.3f} {unit}, {predicted / value - 1:+.1%}" if predicted and value else "no prediction"
            print(f"{what}: measured {value:.3f} {unit}; {beside}")
        plan, work, config = self.job["plan"], self.job["workload"], self.config
        row = self.job["truth_row"] | {
            "layers": config.num_hidden_layers, "hidden": config.hidden_size, "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads, "ffn": config.intermediate_size, "vocab": config.vocab_size, "num_gpus": self.world,
            "dp": plan["dp"], "tp": plan["tp"], "cp": plan["cp"], "seq_len": work["seq_tokens"], "global_batch_seqs": work["global_batch"],
            "step_time_s": f"{step_s:.6f}", "tokens_per_s_per_gpu": f"{self.tokens / step_s / self.world:.3f}",
            "peak_mem_gb": f"{peak / 2**30:.3f}" if peak else "",
        }  # fmt: skip
        if not torch.cuda.is_available():
            row["gpu"] = "cpu"
        with open(out, "w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)


def ranks():
    """(rank, local rank, world size) as the launcher set them."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def leave():
    """Ends a finished rank: Python's shutdown kills a gloo thread that still frees the last collective's tensors, and torch aborts."""
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
