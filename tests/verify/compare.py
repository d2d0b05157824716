"""The yardstick of the equality tests: plain single-process PyTorch on the same weights and tokens, and the error of each update."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from .harness import deepspeed, run_ranks, run_script, torch, transformers

STEPS, SEQ, VOCAB, CLIP = 2, 256, 128, 0.25
LR = 8.0  # large, so that an update is not lost in the rounding of weights near 1
BOUND = 1e-5


SHAPE = {
    "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "max_position_embeddings": SEQ, "use_cache": False, "initializer_range": 0.1, "head_dim": 4,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "qwen3-tied": lambda: transformers.Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
"""Tiny models: 8 query heads on 2 KV heads, so SP = 4 replicates KV; several MLP tiles a rank; QK norm, tied embeddings, experts."""


def make_tiny(family: str, folder: Path) -> Path:
    """A tiny random-weight model of one family and random tokens."""
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(folder)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, VOCAB, size=40 * SEQ + 1))
    return folder


def parameters_of(folder: Path) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def reference(tiny: Path, batch: int, clip: float) -> dict[str, Any]:
    """Parameters after STEPS of plain single-process SGD on the same sequences, all logits at once, eager attention, no checkpointing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="eager").train()
    tokens = torch.from_numpy(np.load(tiny / "tokens.npy"))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(STEPS):
        rows = [tokens[i * SEQ : i * SEQ + SEQ + 1] for i in range(step * batch, (step + 1) * batch)]
        sequences = torch.stack(rows)
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        assert norm > 1.5 * clip, f"the gradient norm is {norm}: clipping would not act"
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train_and_dump(script: str, folder: Path, tiny: Path, out: Path, arguments: tuple[str, ...], repeat_samples: bool) -> None:
    """Run an emitted script on the tiny model, and save the full parameters just before it takes its process group down."""
    sys.path.insert(0, str(folder))
    import parts  # type: ignore[import-not-found]

    models = []
    make = parts.WithLoss.__init__

    def remember(self: Any, model: Any, *rest: Any) -> None:
        make(self, model, *rest)
        models.append(model)

    def dump(meter: Any, path: str) -> None:
        full = {}
        for name, p in models[-1].named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                full[name] = (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().cpu().clone()
        if meter.rank == 0:
            torch.save(full, out)

    parts.WithLoss.__init__ = remember
    parts.Meter.finish = dump
    if repeat_samples:
        right = parts.Tokens.batch
        parts.Tokens.batch = lambda *args, **kwargs: right(*args, **(kwargs | {"dp_rank": 0}))
    options = ["--weights", str(tiny), "--data", str(tiny / "tokens.npy"), "--steps", str(STEPS), "--lr", str(LR), *arguments]
    run_script(folder, script, *options)


def update_errors(
    script: str, tiny: Path, folder: Path, *arguments: str, world: int, batch: int, clip: float, repeat_samples: bool = False
) -> dict[str, float]:
    """Relative error of every parameter's update, ``|Δ - Δ_ref| / |Δ_ref|``, of the emitted script in ``folder`` on ``world`` ranks."""
    out = folder / "after.pt"
    run_ranks(world, folder, lambda rank: train_and_dump(script, folder, tiny, out, arguments, repeat_samples))
    before, after, wanted = parameters_of(tiny), torch.load(out), reference(tiny, batch, clip)
    assert after.keys() == wanted.keys()
    found = {}
    for key, start in before.items():
        step = (wanted[key] - start).double()
        assert step.norm() > 1e-3, f"{key} did not move: the comparison would be empty"
        found[key] = float(((after[key] - start).double() - step).norm() / step.norm())
    return found
